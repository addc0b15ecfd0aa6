"""`jingyin serve`: the socket, and the processes that serve on it.

    parent    owns the socket, the signals and private copies of bundle and policy; scores nothing
    workers   each an event loop, inference threads and a scorer of its own; all accept on the socket

uvicorn's Multiprocess starts the workers, replaces those that die, and on SIGHUP starts a new worker for each before it
ends the old one, or keeps the old one if the new can't start. Processes and not threads: the event loop and the
normaliser run Python, of which a process runs one core's worth. A replacement loads the private copies, so that all
have the same bundle and policy even if the files have changed. Each writes its metrics to files, which the worker that
answers /metrics adds up (prometheus_client's multiprocess mode). A worker goes on with the counts of a dead one.
"""

import asyncio
import fcntl
import gc
import os
import shutil
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NoReturn

import uvicorn
from starlette.applications import Starlette
from uvicorn.supervisors import Multiprocess

from jingyin.model.bundle import default_path, read_bundle
from jingyin.model.errors import ConfigError, JingyinError
from jingyin.serve.http import app
from jingyin.serve.http.connection import Connection
from jingyin.serve.http.deployment import load_scorers
from jingyin.serve.http.keys import read_keys, stamp
from jingyin.serve.http.service import Service
from jingyin.serve.memory.memory import SECRET, share_secret, shared_state
from jingyin.serve.memory.policy import read_policy
from jingyin.serve.observe import FOLDER, claim_counts, error_site, forget_gauges, log, take_over_logging
from jingyin.serve.scorer import Scorer
from jingyin.serve.settings import REMEMBERED, Settings

QUIET_SECONDS = 1.0
"""How long idle connections stay open at the end: their clients may be about to send."""
LAST_SECONDS = 0.25
"""How long a worker that accepts no more waits for the requests of connections that it has just accepted."""
POLL_SECONDS = 0.02
START_SECONDS = 60
"""Longest time for a worker to load a bundle; also to answer its parent, which then takes it for hung."""

SWITCH_SECONDS = 0.00005
"""How long the event loop may keep an inference thread from the interpreter, which it needs several times per message.

Python's default, 5 ms, is two messages; with 0.5 ms messages for the network took three times as long next to a busy
loop, and the p99 of single calls was 30 ms instead of 12."""

Role = Literal["started", "reloaded", "replaced"]
LoadFrom = Callable[[Settings, Path], tuple[Scorer, Scorer | None]]
"""Loads and checks the folders `bundle` and `shadow` of a folder, as deployment.load_scorers does."""


def run_server(settings: Settings, load: LoadFrom = load_scorers, reread: Callable[[], Settings] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then answer accepted requests and return; SIGHUP reloads the bundle.

    `reread` returns the current settings: SIGHUP applies those of memory. Raises BundleError for a broken bundle before
    the socket opens, ConfigError if it can't be opened, JingyinError if a worker can't start, at first or in place of a
    dead one.
    """
    take_over_logging()
    if settings.keys:
        read_keys(settings.keys)
    if settings.policy:
        read_policy(settings.policy)
    if load is load_scorers:
        for each in filter(None, (settings.bundle or default_path(), settings.shadow)):
            read_bundle(each)
    with (
        TemporaryDirectory(prefix="jingyin-") as folder,
        shared_state(settings, Path(folder)),
        listening(settings) as listener,
    ):
        if settings.cases:
            from jingyin.serve.cases.writer import check_cases

            check_cases(settings, Path(folder))
        workers = Supervisor(settings, listener, load, Path(folder), reread)
        workers.run()
    log("ended")
    if not workers.told_to_stop:
        raise JingyinError("a worker could not start; the lines above say why")


class Supervisor(Multiprocess):
    """The parent; `folder` is a temporary one, for copies of bundles and for metrics."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        load: LoadFrom,
        folder: Path,
        reread: Callable[[], Settings] | None,
    ) -> None:
        self._settings = settings
        self._reread = reread
        self._load = load
        self._folder = folder
        self._numbers = count()
        self._address = address(settings, listener)
        self.told_to_stop = False
        # systemd-tmpfiles, which clears old files from /tmp, leaves a locked folder alone.
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)
        (folder / "metrics").mkdir()
        os.environ[FOLDER] = str(folder / "metrics")  # read when a worker imports prometheus_client
        try:
            server_config(settings, Starlette()).load()  # fails here rather than in a worker
        except OSError as error:
            kind = type(error).__name__
            raise ConfigError(f"the TLS files can't be used ({kind}); check certificate, key and password") from None
        self._copied = self._copy()
        super().__init__(server_config(settings, self._worker("started")), [listener])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)  # also while workers are being started or replaced

    def _stop(self, *_: object) -> None:
        self.told_to_stop = True
        self.should_exit.set()

    handle_ttin = handle_ttou = None  # type: ignore[assignment]  # else they change the number of workers

    def init_processes(self) -> None:
        """Start the workers, and log it when all of them serve."""
        super().init_processes()
        if all(process.wait_until_ready(START_SECONDS, self.should_exit) for process in self.processes):
            log("serving", address=self._address, keys=bool(self._settings.keys), workers=len(self.processes))
        self.config.app = self._worker("replaced")

    def keep_subprocess_alive(self) -> None:
        """Replace workers that died."""
        before = list(self.processes)
        for process in before:
            process.child_conn.close()  # the worker's end: were it open here too, its death would not end a ping
        super().keep_subprocess_alive()
        self._bury(before)

    def handle_hup(self) -> None:
        """Copy the bundle anew, and replace one worker after another, unless the first finds a fault."""
        old_workers, previous = list(self.processes), (self._settings, self._copied, self._load)
        secret = (self._folder / SECRET).read_bytes()
        try:
            if self._reread is not None:
                new = self._reread()
                if new.policy:
                    read_policy(new.policy)
                share_secret(new, self._folder)
                self._settings = previous[0].model_copy(update={name: getattr(new, name) for name in REMEMBERED})
        except (ConfigError, OSError) as error:  # reported by a worker: the parent has no metrics
            self._load = partial(_refuse, error)
        self._copied = self._copy()
        self.config.app = self._worker("reloaded")
        self.restart_all()
        replaced, workers = len(set(self.processes) - set(old_workers)), len(old_workers)
        done = replaced > 0
        event = "reload_failed" if not done else "reload_incomplete" if replaced < workers else "reloaded"
        log(event, level="info" if event == "reloaded" else "error", replaced=replaced, workers=workers)
        gone = previous[1] if done else self._copied
        if not done:
            self._settings, self._copied, self._load = previous
            (self._folder / SECRET).write_bytes(secret)
        self._bury(old_workers)
        self.config.app = self._worker("replaced")
        shutil.rmtree(gone, ignore_errors=True)

    def _bury(self, before: list[Any]) -> None:
        for process in before:
            if process not in self.processes and process.exitcode != -signal.SIGTERM:
                log("worker_died", level="error", status=process.exitcode)
        forget_gauges()  # also those of a worker that failed to start

    def _worker(self, role: Role) -> Callable[[], Starlette]:
        policy = self._settings.policy and self._copied / "policy"
        settings = self._settings.model_copy(update={"policy": policy})
        return partial(make_worker, settings, self._load, self._copied, role)

    def _copy(self) -> Path:
        """Copy bundle, shadow and policy aside; a worker will detect a faulty copy."""
        copy = self._folder / f"{next(self._numbers)}"
        bundle, shadow = self._settings.bundle or default_path(), self._settings.shadow
        try:
            shutil.copytree(bundle, copy / "bundle")
            if shadow:
                shutil.copytree(shadow, copy / "shadow")
            if self._settings.policy:
                shutil.copy(self._settings.policy, copy / "policy")
        except (OSError, shutil.Error) as error:
            log("copy_failed", level="error", **error_site(error))
        return copy


def server_config(settings: Settings, app: Callable[[], Starlette] | Starlette) -> uvicorn.Config:
    """Return uvicorn's settings for an application, or for a factory that a worker calls."""
    password = settings.tls_key_password
    return uvicorn.Config(
        app,
        factory=not isinstance(app, Starlette),
        http=Connection,
        ws="none",
        lifespan="on",
        workers=settings.workers,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_worker_healthcheck=START_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        ssl_keyfile_password=password.get_secret_value() if password else None,
        ssl_ca_certs=str(settings.tls_client_ca) if settings.tls_client_ca else None,
        ssl_cert_reqs=2 if settings.tls_client_ca else 0,
    )


# ---- a worker


def _refuse(error: Exception, *_: object) -> NoReturn:
    raise error


def make_worker(settings: Settings, load: LoadFrom, folder: Path, role: Role) -> Starlette:
    """Make the application in a worker process, which loads its copies of bundle and shadow from `folder`."""
    take_over_logging()
    claim_counts()
    return app.create_app(settings, partial(load, settings, folder), partial(_life, role), folder.parent)


@asynccontextmanager
async def _life(role: Role, starlette: Starlette) -> AsyncIterator[Mapping[str, Any]]:
    """Serve from when the bundle is warm until SIGTERM; count why this worker was started."""
    service: Service = starlette.state.service
    try:
        service.metrics.replaced.inc(role == "replaced")  # also if this one dies while it starts
        async with app.lifespan(starlette) as state:
            if role == "reloaded":
                service.metrics.reloads("done").inc()
            sys.setswitchinterval(SWITCH_SECONDS)
            gc.freeze()  # loaded objects stay: a full collection would stop the service for 30 ms to find that out
            _drain_before_the_end(service)
            if role != "started":
                log("worker_ready", bundle=service.deployment.bundle_id)
            yield state
    except Exception as error:
        if role == "reloaded":
            service.metrics.reloads("failed").inc()
        fault = {"reason": str(error)} if isinstance(error, JingyinError) else error_site(error)
        log("worker_failed", level="error", **fault)
        raise


def _drain_before_the_end(service: Service) -> None:
    """Make SIGTERM and SIGINT notify clients before uvicorn ends, which would close idle connections at once.

    Each connection is closed with its next answer, idle ones after QUIET_SECONDS; a second signal ends at once.
    """
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references

    async def drain(number: int, stop: Any) -> None:  # noqa: ANN401  a signal handler
        log("draining", connections=service.connections)
        end = loop.time() + min(QUIET_SECONDS, service.settings.drain_seconds)
        await asyncio.sleep(POLL_SECONDS)  # drain the backlog first
        while service.connections and loop.time() < end:
            await asyncio.sleep(POLL_SECONDS)
        # uvicorn accepts until it ends, and resets connections whose first request it has not read yet.
        for server in stop.__self__.servers:
            server.close()
        end = loop.time() + LAST_SECONDS
        await asyncio.sleep(POLL_SECONDS)
        while service.connections and loop.time() < end:
            await asyncio.sleep(POLL_SECONDS)
        stop(number, None)

    def begin(number: int, stop: Any) -> None:  # noqa: ANN401
        if service.draining:
            stop(number, None)
        else:
            service.draining = True
            tasks.add(loop.create_task(drain(number, stop)))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, begin, number, signal.getsignal(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal sends it to all; the parent handles it


# ---- the listening socket: TCP or Unix

_BACKLOG = 2_048


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """Open the socket, and remove it at the end; raises ConfigError if it can't be opened."""
    with bind(settings) as listener:
        ours = stamp(settings.uds) if settings.uds else None
        try:
            yield listener
        finally:
            if settings.uds and stamp(settings.uds) == ours:  # else a successor has replaced it meanwhile
                settings.uds.unlink(missing_ok=True)


def bind(settings: Settings) -> socket.socket:
    """Open the socket; raises ConfigError if that fails."""
    try:
        if settings.uds:
            return _bind_unix(settings.uds)
        wanted = settings.host, settings.port
        family, _, _, _, sockaddr = socket.getaddrinfo(*wanted, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(sockaddr[:2], family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host
        at, why = settings.uds or _host_and_port(settings.host, settings.port), getattr(error, "strerror", "") or error
        do = "choose another, or stop the program that uses it"
        if settings.uds and not settings.uds.parent.is_dir():
            why, do = f"there is no folder {settings.uds.parent}", "create it, or choose another"
        raise ConfigError(f"can't listen on {at}: {why}; {do}") from None


def _bind_unix(path: Path) -> socket.socket:
    """Bind a Unix socket for owner and group; one left behind by a dead server is replaced."""
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    os.chmod(path, 0o660)
    listener.listen(_BACKLOG)
    return listener


def address(settings: Settings, listener: socket.socket) -> str:
    """Return the address of the service as a URL."""
    if settings.uds:
        return f"unix:{settings.uds}"
    host, port = listener.getsockname()[:2]
    return f"{'https' if settings.tls_certificate else 'http'}://{_host_and_port(host, port)}"


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
