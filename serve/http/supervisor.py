"""The supervisor: starts workers on one listening socket, replaces those that die, has all of them reload or none.

    supervisor   owns the socket, the signals and a private copy of the bundle; scores nothing
    workers      each an event loop, an inference thread and a scorer of its own; all accept on the socket

Processes and not threads: what the event loop and the normaliser do is Python, one core's worth of it for a process.
They are spawned, since a forked copy of onnxruntime can hang. A worker that replaces another loads the private copy,
so that all have one bundle whatever has happened to the folder since. Each writes its metrics to files that whichever
answers /metrics adds up (prometheus_client's multiprocess mode); a worker that died still counts.
"""

import multiprocessing
import os
import shutil
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from jingyin.model.bundle import default_path, read_bundle
from jingyin.model.errors import JingyinError
from jingyin.serve.http.logs import log
from jingyin.serve.http.metrics import FOLDER
from jingyin.serve.http.settings import Settings
from jingyin.serve.http.worker import Folders, LoadFrom, work

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
