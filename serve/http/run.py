"""`jingyin serve`: one process, or several."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from jingyin.serve.http.app import create_app
from jingyin.serve.http.keys import stamp
from jingyin.serve.http.listening import address, bind
from jingyin.serve.http.logs import log, take_over_logging
from jingyin.serve.http.server import make_server
from jingyin.serve.http.settings import Settings
from jingyin.serve.http.supervisor import Supervisor
from jingyin.serve.http.worker import LoadFrom
from jingyin.serve.scorer import Scorer


def load_scorers(bundle: Path | None, shadow: Path | None) -> tuple[Scorer, Scorer | None]:
    """Load and check a bundle, by default the one in the package, and a shadow if there is one."""
    return Scorer.load(bundle), Scorer.load(shadow) if shadow else None


def run_server(settings: Settings, load: LoadFrom = load_scorers) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was taken and return; SIGHUP reloads the bundle.

    Raises BundleError for what is no bundle before the socket opens, ConfigError if it can't be opened.
    """
    take_over_logging()
    if settings.workers == 1:
        _serve_alone(settings, load)
    else:
        with TemporaryDirectory(prefix="jingyin-") as folder, _listening(settings) as listener:
            Supervisor(settings, listener, load, Path(folder)).run(address(settings, listener))
    log("ended")


def _serve_alone(settings: Settings, load: LoadFrom) -> None:
    app, service = create_app(settings, partial(load, settings.bundle, settings.shadow))
    with _listening(settings) as listener:
        at, keys = address(settings, listener), bool(settings.keys)
        started = partial(log, "serving", address=at, keys=keys, workers=1, bundle=service.deployment.bundle_id)
        make_server(app, service, started).run([listener])


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    with bind(settings) as listener:
        ours = stamp(settings.uds) if settings.uds else None
        try:
            yield listener
        finally:
            if settings.uds and stamp(settings.uds) == ours:  # else a successor has replaced it meanwhile
                settings.uds.unlink(missing_ok=True)
