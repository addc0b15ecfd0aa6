"""Processes that score blocks: texts go out in order, columns come back in order."""

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import pyarrow as pa

from jingyin.model.bundle import Bundle
from jingyin.model.errors import JingyinError
from jingyin.serve.pool import follow_parent
from jingyin.serve.relabel.columns import scorer_of, verdict_columns

T = TypeVar("T")


class Workers:
    """Scores streams of texts in a pool, at most `ahead` blocks at a time; without a pool in this process."""

    def __init__(self, pool: ProcessPoolExecutor | None, ahead: int, bundle: tuple[str, str]) -> None:
        self._pool = pool
        self._ahead = ahead
        self._bundle = bundle

    def score(self, stream: Iterator[tuple[T, pa.Array]]) -> Iterator[tuple[T, list[pa.Array]]]:
        """Yield each item of `stream` with the verdict columns of its texts, in order."""
        under_way: deque[tuple[T, Future[list[pa.Array]]]] = deque()
        for item, texts in stream:
            under_way.append((item, self._submit(texts)))
            if len(under_way) >= self._ahead:
                yield self._take(under_way)
        while under_way:
            yield self._take(under_way)

    def _submit(self, texts: pa.Array) -> Future[list[pa.Array]]:
        if self._pool is not None:
            return self._pool.submit(_score, self._bundle, texts)
        done: Future[list[pa.Array]] = Future()
        done.set_result(_score(self._bundle, texts))
        return done

    def _take(self, under_way: "deque[tuple[T, Future[list[pa.Array]]]]") -> tuple[T, list[pa.Array]]:
        item, future = under_way.popleft()
        try:
            return item, future.result()
        except BrokenProcessPool:
            raise JingyinError(
                "a scoring process was killed, perhaps for want of memory; run the same command again, with fewer "
                "--processes: it goes on"
            ) from None


@contextmanager
def workers(processes: int, bundle: Bundle) -> Iterator[Workers]:
    """Start processes, each with a scorer of its own; they end with the context, or with this process. One is this one.

    The texts travel as Arrow buffers: pickled one by one, as score_many sends them, they cost more.
    """
    which = str(bundle.path), bundle.manifest.id
    if processes == 1:
        yield Workers(None, 1, which)
        return
    # Forking a process that holds onnxruntime's or Arrow's threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=follow_parent)
    try:
        for _ in range(processes):
            pool.submit(_load, which)  # a process starts with its first task: while the inputs are looked at
        yield Workers(pool, 2 * processes + 1, which)
    finally:
        pool.shutdown(cancel_futures=True)


def _load(bundle: tuple[str, str]) -> None:
    scorer_of(*bundle)  # an error will be met again by the first block


def _score(bundle: tuple[str, str], texts: pa.Array) -> list[pa.Array]:
    return verdict_columns(scorer_of(*bundle), texts.to_pylist())
