"""One process of the service: signals, draining."""

import asyncio
import gc
import multiprocessing
import os
import shutil
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Lock, Thread
from time import monotonic, sleep
from types import FrameType
from typing import Any

import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from jingyin.model.bundle import default_path, read_bundle
from jingyin.model.errors import BundleError, ConfigError, JingyinError
from jingyin.serve.http.app import Guard, create_app
from jingyin.serve.http.deployment import Deployment, ReloadBusyError
from jingyin.serve.http.keys import stamp
from jingyin.serve.http.observe import FOLDER, log, take_over_logging, where
from jingyin.serve.http.protocol import Protocol
from jingyin.serve.http.service import Service
from jingyin.serve.http.settings import Settings
from jingyin.serve.scorer import Scorer

QUIET_SECONDS = 1.0
"""How long idle connections stay open at the end: their clients may be about to send."""
POLL_SECONDS = 0.02

SWITCH_SECONDS = 0.00005
"""How long the event loop may keep the inference thread from the interpreter, which it needs some times a message.

Python's 5 ms are two messages; with 0.5 ms the network's messages took three times as long beside a busy loop, and the
p99 of single calls was 30 ms instead of 12."""


def make_server(app: Guard, service: Service, started: Callable[[], None]) -> "Server":
    """Return a server that is ready to `run` on a socket in this process; raises ConfigError as server_config does.

    It calls `started` once it answers and heeds signals: a SIGTERM before that ends the process at once.
    """
    server = Server(server_config(service.settings, app, service), service, started)
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # what is loaded stays: a full collection would stop the service for 30 ms to find that out
    return server


def server_config(settings: Settings, app: Guard, service: Service) -> uvicorn.Config:
    """Return uvicorn's settings; raises ConfigError when the TLS files can't be used."""
    password = settings.tls_key_password
    config = uvicorn.Config(
        app,
        http=partial(Protocol, settings=settings, service=service),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        ssl_keyfile_password=password.get_secret_value() if password else None,
        ssl_ca_certs=str(settings.tls_client_ca) if settings.tls_client_ca else None,
        ssl_cert_reqs=2 if settings.tls_client_ca else 0,
    )
    try:
        config.load()
    except OSError as error:
        raise ConfigError(
            f"the TLS files can't be used ({type(error).__name__}); check certificate, key and password"
        ) from None
    return config


class Server(uvicorn.Server):
    """uvicorn's server with SIGHUP, and with an end that gives keep-alive clients notice.

    It runs until SIGTERM or SIGINT, then answers what was taken; SIGHUP reloads the bundle.
    """

    def __init__(self, config: uvicorn.Config, service: Service, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._say_started = started
        self._reloads: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, listen to SIGHUP, and tell that it has started."""
        await super().startup(sockets)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        if self.started:
            self._say_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the end; unlike uvicorn don't die of the signal after a clean one."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting; close each connection with its next answer, idle ones after a while; then end.

        uvicorn alone closes idle connections at once, and with them the requests that are on their way.
        """
        self._service.draining = True
        log("draining", connections=len(self.server_state.connections))
        await asyncio.sleep(POLL_SECONDS)  # who has connected already is accepted
        for server in self.servers:
            server.close()
        end = asyncio.get_running_loop().time() + min(QUIET_SECONDS, self._service.settings.drain_seconds)
        while self.server_state.connections and asyncio.get_running_loop().time() < end and not self.force_exit:
            await asyncio.sleep(POLL_SECONDS)
        await super().shutdown(sockets)

    def _reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload_in_thread())
        self._reloads.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._reloads.discard)

    async def _reload_in_thread(self) -> None:
        try:
            await asyncio.to_thread(self._service.reload)
        except Exception as error:  # logged and counted where it happened; the old bundle goes on
            log("sighup_ignored", level="warning", error=type(error).__name__)


# One of several worker processes: serves on the shared socket, and reloads when its supervisor says so.


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


# The supervisor: starts workers on one listening socket, replaces those that die, has all of them reload or none.
#
#     supervisor   owns the socket, the signals and a private copy of the bundle; scores nothing
#     workers      each an event loop, an inference thread and a scorer of its own; all accept on the socket
#
# Processes and not threads: what the event loop and the normaliser do is Python, one core's worth of it for a process.
# They are spawned, since a forked copy of onnxruntime can hang. A worker that replaces another loads the private copy,
# so that all have one bundle whatever has happened to the folder since. Each writes its metrics to files that whichever
# answers /metrics adds up (prometheus_client's multiprocess mode); a worker that died still counts.


REPLY_SECONDS = 120.0
"""Longest time for a worker to load a bundle in a reload; one that takes longer is killed and replaced."""
RETRY_SECONDS = 1.0
"""Rest after a worker that died before it was ready."""
END_SECONDS = 5.0
"""What a worker may take beyond `drain_seconds` to end."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    pipe: Connection
    ready: bool = False


class Supervisor:
    """Minds the workers of one service; `folder` is a temporary one, for copies of bundles and for metrics."""

    def __init__(self, settings: Settings, listener: socket.socket, load: LoadFrom, folder: Path) -> None:
        """Copy the bundle; raises BundleError if it is none."""
        self._settings = settings
        self._listener = listener
        self._load = load
        self._folder = folder
        self._numbers = count()
        self._folders = self._copy()
        self._workers: list[_Worker] = []
        self._askers: list[_Worker] = []

    def run(self, address: str) -> None:
        """Serve at `address` until SIGTERM or SIGINT; SIGHUP reloads. Raises what kept a worker from its start."""
        (self._folder / "metrics").mkdir()
        os.environ[FOLDER] = str(self._folder / "metrics")  # prometheus_client asks when a worker imports it
        try:
            with _signals() as signals:
                bundle = self._start_all()
                number, keys = len(self._workers), bool(self._settings.keys)
                log("serving", address=address, keys=keys, workers=number, bundle=bundle)
                while not self._turn(signals):
                    pass
                self._end(signals)
        finally:
            del os.environ[FOLDER]
            for worker in self._workers:
                worker.process.kill()

    def _start_all(self) -> str:
        """Start the workers, and return the id of the bundle that they have loaded."""
        for _ in range(self._settings.workers):
            self._workers.append(self._start(replaces=False))
        for worker in self._workers:
            kind, content = self._reply(worker, None)
            if kind == "failed":
                raise content
            if kind != "ready":
                raise JingyinError(
                    f"the service can't start: {content}; look for memory that ran out, and start it again"
                )
            worker.ready = True
        return str(content)

    def _start(self, *, replaces: bool) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        given = (self._settings, self._listener, theirs, self._load, self._folders, replaces)
        process = context.Process(target=work, args=given, name="jingyin-worker", daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _turn(self, signals: int) -> bool:
        """Do what is due; return whether the end is."""
        if signals in wait([signals, *(each for w in self._workers for each in (w.pipe, w.process.sentinel))]):
            numbers = os.read(signals, 64)
            if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                return True
            self._reload(None)
        for worker in list(self._workers):
            if worker.pipe.poll():
                self._hear(worker)
            if not worker.process.is_alive():
                self._replace(worker)
        return False

    def _hear(self, worker: _Worker) -> None:
        try:
            kind, content = worker.pipe.recv()
        except (EOFError, OSError):  # it is dying
            worker.process.join(RETRY_SECONDS)
            return
        if kind == "reload":
            self._reload(worker)
        elif kind == "ready":
            worker.ready = True
            log("worker_ready", bundle=content)
        elif kind == "failed":
            log("worker_failed", level="error", error=str(content))

    def _replace(self, worker: _Worker) -> None:
        log("worker_died", level="error", status=worker.process.exitcode, ready=worker.ready)
        mark_process_dead(worker.process.pid, str(self._folder / "metrics"))  # type: ignore[no-untyped-call]
        worker.pipe.close()
        if not worker.ready:
            sleep(RETRY_SECONDS)
        self._workers[self._workers.index(worker)] = self._start(replaces=True)

    # ---- reload

    def _reload(self, asker: _Worker | None) -> None:
        """Have all workers load a new copy of the bundle, and then all use it, or none."""
        outcome = self._reload_all()
        if outcome[0] == "done":
            log("reloaded", bundle=outcome[1])
        else:
            log("reload_failed", level="error", reason=outcome[1])
        for worker in [*filter(None, [asker]), *self._askers]:
            self._send(worker, "outcome", outcome if worker is asker else ("busy", "a reload was under way; ask again"))
        self._askers.clear()

    def _reload_all(self) -> tuple[str, str]:
        try:
            folders = self._copy()
        except (JingyinError, OSError) as error:
            self._ask_all("discard")
            return "refused", str(error) if isinstance(error, JingyinError) else "the bundle can't be copied"
        replies = self._ask_all("prepare", folders)
        refusals = [str(content) for kind, content in replies if kind != "prepared"]
        if refusals:
            self._ask_all("discard")
            shutil.rmtree(folders[0].parent)
            return "refused", refusals[0]
        before, self._folders = self._folders, folders
        self._ask_all("commit")
        shutil.rmtree(before[0].parent)
        return "done", str(replies[0][1])

    def _copy(self) -> Folders:
        """Copy bundle and shadow aside; raises BundleError for what is none, OSError for what can't be copied."""
        aside = self._folder / f"{next(self._numbers)}"
        bundle, shadow = self._settings.bundle or default_path(), self._settings.shadow
        for each in filter(None, (bundle, shadow)):
            read_bundle(each)
        try:
            shutil.copytree(bundle, aside / "bundle")
            return aside / "bundle", shutil.copytree(shadow, aside / "shadow") if shadow else None
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)  # half a copy, at each try, would fill the disk for good
            raise

    def _ask_all(self, what: str, content: object = None) -> Sequence[tuple[str, Any]]:
        for worker in self._workers:
            self._send(worker, what, content)
        return [self._answer(worker) for worker in self._workers]

    def _answer(self, worker: _Worker) -> tuple[str, Any]:
        """Return the answer of a worker, which may have to become ready first, and may ask for a reload meanwhile."""
        while True:
            kind, content = self._reply(worker, REPLY_SECONDS)
            if kind == "ready":
                worker.ready = True
            elif kind == "reload":
                self._askers.append(worker)
            else:
                return kind, content

    def _reply(self, worker: _Worker, seconds: float | None) -> tuple[str, Any]:
        """Return the next message of a worker; that it died, or took longer than `seconds`, is one too."""
        if not wait([worker.pipe], seconds):
            worker.process.kill()
            return "slow", "a worker took too long"
        try:
            kind, content = worker.pipe.recv()
        except (EOFError, OSError):
            return "died", "a worker died meanwhile"
        return kind, content

    def _send(self, worker: _Worker, what: str, content: object) -> None:
        with suppress(OSError):  # it died, and will be replaced
            worker.pipe.send((what, content))

    # ---- the end

    def _end(self, signals: int) -> None:
        """End the workers by SIGTERM, after which each answers what it has taken."""
        self._listener.close()
        for worker in self._workers:
            worker.process.terminate()
            worker.pipe.close()  # who waits for a reload is told, and waits no longer
        end = monotonic() + self._settings.drain_seconds + END_SECONDS
        while (left := [w for w in self._workers if w.process.is_alive()]) and monotonic() < end:
            found = wait([signals, *(worker.process.sentinel for worker in left)], end - monotonic())
            if signals in found and signal.SIGINT in os.read(signals, 64):
                for worker in left:
                    if worker.process.pid is not None:
                        os.kill(worker.process.pid, signal.SIGINT)
        for worker in left:
            log("worker_killed", level="error")
            worker.process.kill()


@contextmanager
def _signals() -> Iterator[int]:
    """Yield a file descriptor from which the numbers of signals are read, instead of what they do by default."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    signal.set_wakeup_fd(write)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


# The socket that is listened on: TCP, or a Unix socket.


_BACKLOG = 2_048


def bind(settings: Settings) -> socket.socket:
    """Open the socket; raises ConfigError if that can't be."""
    try:
        return _bind_unix(settings.uds) if settings.uds else _bind_tcp(settings.host, settings.port)
    except OSError as error:
        at = settings.uds or _host_and_port(settings.host, settings.port)
        raise ConfigError(
            f"can't listen on {at}: {error.strerror or error}; choose another, or end what holds it"
        ) from None


def address(settings: Settings, listener: socket.socket) -> str:
    """Return where the service is found, as a URL."""
    if settings.uds:
        return f"unix:{settings.uds}"
    host, port = listener.getsockname()[:2]
    return f"{'https' if settings.tls_certificate else 'http'}://{_host_and_port(host, port)}"


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind_tcp(host: str, port: int) -> socket.socket:
    family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(found[:2], family=family, backlog=_BACKLOG)


def _bind_unix(path: Path) -> socket.socket:
    """Bind a Unix socket for owner and group; one left behind by a dead server is replaced."""
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _is_served(path):
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


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


# `jingyin serve`: one process, or several.


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
