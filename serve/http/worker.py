"""One of several worker processes: serves on the shared socket, and reloads when its supervisor says so."""

import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from jingyin.model.errors import BundleError, JingyinError
from jingyin.serve.http.app import create_app
from jingyin.serve.http.deployment import Deployment, ReloadBusyError
from jingyin.serve.http.logs import log, take_over_logging, where
from jingyin.serve.http.server import make_server
from jingyin.serve.http.settings import Settings
from jingyin.serve.scorer import Scorer

Folders = tuple[Path, Path | None]
"""The folders of the bundle and of the shadow."""

LoadFrom = Callable[[Path | None, Path | None], tuple[Scorer, Scorer | None]]
"""Loads and checks the bundle in the first folder, by default the one in the package, and the shadow in the second."""


def work(
    settings: Settings, listener: socket.socket, pipe: Connection, load: LoadFrom, folders: Folders, replaces: bool
) -> None:
    """Run a worker until SIGTERM; `pipe` leads to the supervisor, `replaces` says that a worker before it died."""
    take_over_logging()
    try:
        app, service = create_app(settings, partial(load, *folders))
        link = Link(pipe, service.deployment, load)
        server = make_server(app, service, partial(link.send, "ready", service.deployment.bundle_id))
    except JingyinError as error:
        pipe.send(("failed", error))
        return
    if replaces:
        service.metrics.replaced.inc()
    service.reload = link.reload
    link.start()
    server.run([listener])


class Link(Thread):
    """The worker's end of the pipe: does what the supervisor asks, and asks it for reloads."""

    def __init__(self, pipe: Connection, deployment: Deployment, load: LoadFrom) -> None:
        super().__init__(name="jingyin-link", daemon=True)
        self._pipe = pipe
        self._deployment = deployment
        self._load = load
        self._sending = Lock()
        self._asking = Lock()
        self._outcomes: SimpleQueue[tuple[str, str]] = SimpleQueue()

    def send(self, kind: str, content: object) -> None:
        """Tell the supervisor something."""
        with self._sending:
            self._pipe.send((kind, content))

    def reload(self) -> str:
        """Have all workers reload, or none; return the new bundle's id.

        Raises BundleError if one refuses it or the service ends meanwhile, ReloadBusyError during another reload.
        """
        if not self._asking.acquire(blocking=False):
            raise ReloadBusyError("a reload is under way; wait for it and ask again if the bundle changed since")
        try:
            self.send("reload", None)
            outcome, text = self._outcomes.get()
        finally:
            self._asking.release()
        if outcome == "refused":
            raise BundleError(text)
        if outcome == "busy":
            raise ReloadBusyError(text)
        return text

    def run(self) -> None:
        """Do what is asked until the supervisor is gone, and then end as by SIGTERM."""
        try:
            while True:
                self._do(*self._pipe.recv())
        except (EOFError, OSError):
            self._outcomes.put(("refused", "the service is ending; ask again"))  # for who may wait for one
            os.kill(os.getpid(), signal.SIGTERM)

    def _do(self, what: str, content: Any) -> None:  # noqa: ANN401  by `what`
        if what == "outcome":
            self._outcomes.put(content)
        elif what == "prepare":
            self.send(*self._prepare(content))
        elif what == "commit":
            self.send("committed", self._deployment.commit())
        else:
            self._deployment.discard()
            self.send("discarded", None)

    def _prepare(self, folders: Folders) -> tuple[str, str]:
        try:
            return "prepared", self._deployment.prepare(partial(self._load, *folders))
        except Exception as error:
            log("prepare_failed", level="error", **where(error))
            return "refused", str(error) if isinstance(error, JingyinError) else "the bundle can't be loaded"
