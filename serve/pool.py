"""Processes that work for this one and end with it; results come back in order."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from jingyin.model.errors import JingyinError

T = TypeVar("T")
R = TypeVar("R")

_GRACE_SECONDS = 1.0


def in_order(submitted: Iterable[tuple[T, Future[R]]], ahead: int) -> Iterator[tuple[T, R]]:
    """Yield each item with the result of its future; up to `ahead` futures are pending meanwhile."""
    under_way: deque[tuple[T, Future[R]]] = deque()
    for item, future in submitted:
        under_way.append((item, future))
        if len(under_way) > ahead:
            first, done = under_way.popleft()
            yield first, done.result()
    for item, future in under_way:
        yield item, future.result()


def process_pool(processes: int) -> ProcessPoolExecutor:
    """Return a pool of processes that end with this one; if one is killed, what waits for it gets BrokenProcessPool.

    Forking a process that holds onnxruntime's or Arrow's threads can hang; spawned ones load the bundle themselves.
    """
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_follow_parent)
    threading.Thread(target=_watch, args=[pool], daemon=True).start()
    return pool


def _watch(pool: ProcessPoolExecutor) -> None:
    """Break a pool whose worker was killed in the middle of a result.

    The executor would wait for the rest for ever: this process itself holds the pipe open, and the other workers wait
    for the dead one's lock on it. There is no public way to tell it.
    """
    while (workers := pool._processes) is not None:
        if any(worker.exitcode for worker in list(workers.values())):
            time.sleep(_GRACE_SECONDS)  # in which it mostly notices by itself
            for worker in list(workers.values()):
                worker.kill()
            if (results := pool._result_queue) is not None:
                results._writer.close()  # type: ignore[attr-defined]
            return
        time.sleep(_GRACE_SECONDS)


def _follow_parent() -> None:
    """Leave interrupts to this worker's parent, and end with it: otherwise a worker would wait on its queue forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and shuts down

    def end_with(parent: multiprocessing.process.BaseProcess) -> None:
        parent.join()
        os._exit(1)

    if parent := multiprocessing.parent_process():
        threading.Thread(target=end_with, args=[parent], daemon=True).start()


@contextmanager
def unbroken(advice: str) -> Iterator[None]:
    """Turn the premature end of a worker into a JingyinError with advice."""
    try:
        yield
    except BrokenProcessPool:
        raise JingyinError(f"a scoring process was killed, perhaps for want of memory; {advice}") from None
