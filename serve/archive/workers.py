"""Processes that score blocks of texts; results come back in order."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import pyarrow as pa

from jingyin.model.bundle import Bundle
from jingyin.model.errors import ConfigError
from jingyin.serve.archive.decisions import Packed, decide_packed
from jingyin.serve.pool import in_order, process_pool, unbroken
from jingyin.serve.scorer import ScorerArguments

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[ScorerArguments, Packed], R]

PAYS_FROM = 30_000
"""Rows from which processes are worth their start-up time, about 1.5 s each."""
NOTHING: Packed = (b"", np.zeros(1, np.int64))


class Workers:
    """Works on streams of texts in a pool, `ahead` blocks at a time, or without a pool in this process."""

    def __init__(self, pool: ProcessPoolExecutor | None, ahead: int, arguments: ScorerArguments) -> None:
        self._pool = pool
        self._ahead = ahead
        self._arguments = arguments

    def map(self, stream: Iterator[tuple[T, Work[R], pa.Array]]) -> Iterator[tuple[T, R]]:
        """Yield each item of `stream`, in order, with the result of its work on the bundle and its texts."""
        return in_order(((item, self._submit(work, _pack(texts))) for item, work, texts in stream), self._ahead)

    def _submit(self, work: Work[R], texts: Packed) -> "Future[R]":
        if self._pool is not None:
            return self._pool.submit(work, self._arguments, texts)
        done: Future[R] = Future()
        done.set_result(work(self._arguments, texts))
        return done


@contextmanager
def workers(processes: int | None, rows: int, bundle: Bundle) -> Iterator[Workers]:
    """Start processes, each with its own scorer; they end with the context, or with this process.

    By default one for each core that this process may use, if there are at least PAYS_FROM `rows`. With a single one,
    this process does the work.
    """
    if processes is not None and processes < 1:
        raise ConfigError(f"processes must be at least 1, got {processes}")
    count = processes or (len(os.sched_getaffinity(0)) if rows >= PAYS_FROM else 1)
    arguments = ScorerArguments(bundle.path, bundle.manifest.id)
    if count == 1:
        yield Workers(None, 0, arguments)
        return
    others = multiprocessing.active_children()
    pool = process_pool(count)
    with unbroken("run the same command again, with fewer --processes: it resumes"):
        try:
            # An interrupt is for this process alone, also before a worker says so: workers inherit the mask.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:
                for _ in range(count):
                    pool.submit(decide_packed, arguments, NOTHING)  # starts a process while the inputs are opened
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            started = [each for each in multiprocessing.active_children() if each not in others]
            yield Workers(pool, 2 * count, arguments)
        except BrokenProcessPool:
            for each in started:
                each.join(1)
            if any(each.exitcode == 1 for each in started):  # it failed by itself: it wasn't killed
                raise ConfigError(
                    "a scoring process failed while starting, since it imports the calling script; put the call under "
                    '`if __name__ == "__main__":`, or pass processes=1'
                ) from None
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def system_memory() -> Iterator[None]:
    """Make Arrow allocate with malloc meanwhile: its default, mimalloc, would keep 30 MB of freed memory."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def _pack(texts: pa.Array) -> Packed:
    """Pack an array of strings without nulls."""
    if not len(texts):
        return NOTHING
    _, starts, data = texts.buffers()
    width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    ends = np.frombuffer(starts, width)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return data[ends[0] : ends[-1]].to_pybytes() if data else b"", ends - ends[0]
