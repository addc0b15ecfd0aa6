"""score_many over several processes: chunks go out in order, and come back in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING

from jingyin.model.labels import Verdict
from jingyin.serve.stream import CHUNK, chunks

if TYPE_CHECKING:
    from jingyin.serve.scorer import Scorer

_worker: "Scorer"


def score_in_processes(start: tuple[Path, bool, int], texts: Iterable[str], processes: int) -> Iterator[Verdict]:
    """Score `texts` in `processes` processes; at most two chunks a process are under way at a time.

    Each loads its own scorer by `start`: the bundle's folder, whether the prefilter is used, and the cache's bytes.
    """
    # Forking a process that holds onnxruntime's threads can hang; a spawned one loads the bundle itself.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_start, initargs=start) as pool:
        under_way: deque[Future[list[Verdict]]] = deque()
        for chunk, error in chunks(texts, CHUNK):
            under_way.append(pool.submit(_score, chunk))
            while under_way and (error or len(under_way) > 2 * processes):
                yield from under_way.popleft().result()
            if error is not None:
                raise error
        while under_way:
            yield from under_way.popleft().result()


def follow_parent() -> None:
    """Leave interrupts to the parent of this worker, and end with it, even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and shuts down
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the parent's end: the queue alone would keep a worker waiting for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start(bundle: Path, prefilter: bool, cache_bytes: int) -> None:
    global _worker
    follow_parent()
    from jingyin.serve.scorer import Scorer

    _worker = Scorer.load(bundle, prefilter=prefilter, cache_bytes=cache_bytes)


def _score(texts: list[str]) -> list[Verdict]:
    return list(_worker.score_many(texts))
