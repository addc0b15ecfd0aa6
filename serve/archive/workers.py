"""Processes that score blocks: texts go out in order, decisions come back in order and become columns here."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import pyarrow as pa

from jingyin.model.bundle import Bundle
from jingyin.serve.archive.columns import decision_columns
from jingyin.serve.archive.decisions import Packed, decide_packed, load
from jingyin.serve.pool import follow_parent, unbroken

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """Scores streams of texts in a pool, at most `ahead` blocks at a time; without a pool in this process."""

    def __init__(self, pool: ProcessPoolExecutor | None, ahead: int, bundle: tuple[str, str]) -> None:
        self._pool = pool
        self._ahead = ahead
        self._bundle = bundle

    def score(self, stream: Iterator[tuple[T, pa.Array]]) -> Iterator[tuple[T, list[pa.Array]]]:
        """Yield each item of `stream` with the verdict columns of its texts, in order."""
        for item, decisions in self.map(decide_packed, stream):
            yield item, decision_columns(decisions, self._bundle[1])

    def map(
        self, work: Callable[[tuple[str, str], Packed], R], stream: Iterator[tuple[T, pa.Array]]
    ) -> Iterator[tuple[T, R]]:
        """Yield in order each item of `stream` with what `work`, in a process, makes of the bundle and its texts."""
        under_way: deque[tuple[T, Future[R]]] = deque()
        for item, texts in stream:
            under_way.append((item, self._submit(work, texts)))
            if len(under_way) >= self._ahead:
                yield _take(under_way)
        while under_way:
            yield _take(under_way)

    def _submit(self, work: Callable[[tuple[str, str], Packed], R], texts: pa.Array) -> "Future[R]":
        if self._pool is not None:
            return self._pool.submit(work, self._bundle, _pack(texts))
        done: Future[R] = Future()
        done.set_result(work(self._bundle, _pack(texts)))
        return done


def _take(under_way: "deque[tuple[T, Future[R]]]") -> tuple[T, R]:
    item, future = under_way.popleft()
    return item, future.result()


@contextmanager
def workers(processes: int, bundle: Bundle) -> Iterator[Workers]:
    """Start processes, each with its own scorer; they end with the context, or with this process. One is this one."""
    which = str(bundle.path), bundle.manifest.id
    if processes == 1:
        yield Workers(None, 1, which)
        return
    # Forking a process that holds onnxruntime's or Arrow's threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=follow_parent)
    with unbroken("run the same command again, with fewer --processes: it goes on"):
        try:
            for _ in range(processes):
                pool.submit(load, which)  # a process starts with its first task: while the inputs are looked at
            yield Workers(pool, 2 * processes + 1, which)
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def system_memory() -> Iterator[None]:
    """Let Arrow take its memory from malloc meanwhile: mimalloc, its default, would keep 30 MB of what was freed."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def _pack(texts: pa.Array) -> Packed:
    """Pack an array of strings without nulls."""
    if not len(texts):
        return b"", np.zeros(1, np.int64)
    _, starts, data = texts.buffers()
    width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    here = np.frombuffer(starts, width)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    return data[here[0] : here[-1]].to_pybytes() if data else b"", here - here[0]
