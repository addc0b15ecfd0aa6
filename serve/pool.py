"""Several processes that score for this one; results come back in order."""

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
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from jingyin.model.errors import BundleError, InputError, JingyinError
from jingyin.model.labels import Verdict
from jingyin.model.text import CleanText

if TYPE_CHECKING:
    from jingyin.serve.scorer import Scorer

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 512
"""Most messages of a stream that are read ahead."""
WORKER_CACHE_BYTES = 32 << 20
"""A worker's cache, to bound the memory of many workers; half the default loses no hits on templated traffic."""
_ALONE_SECONDS = 2.0  # two processes take as long to start and to load the bundle
_GRACE_SECONDS = 1.0
_ADVICE = 'score again in fewer processes, and in a script under `if __name__ == "__main__":`'


class ScorerArguments(NamedTuple):
    """Arguments for loading a process's scorer: the folder and id of a bundle, and those of `Scorer.load`."""

    bundle: str | Path | None
    id: str | None = None
    review_rate: float | None = None
    block_rate: float | None = None
    prefilter: bool = True
    cache_bytes: int = WORKER_CACHE_BYTES


@cache
def scorer_of(arguments: ScorerArguments) -> "Scorer":
    """Return this process's scorer, loaded on first use, because a pool's initializer could not report an error.

    Raises BundleError if the bundle in the folder has another id than the one wanted.
    """
    from jingyin.serve.scorer import Scorer

    bundle, wanted, review, block, prefilter, cache_bytes = arguments
    scorer = Scorer.load(bundle, review_rate=review, block_rate=block, prefilter=prefilter, cache_bytes=cache_bytes)
    if wanted not in (None, loaded := scorer.bundle.manifest.id):
        raise BundleError(f"the bundle changed from {wanted} to {loaded} after it was read; start again")
    return scorer


def chunks(texts: Iterable[str | CleanText], size: int) -> Iterator[tuple[list[str | CleanText], BaseException | None]]:
    """Yield lists of at most `size` messages, the last one with the exception that ended the stream early, if any.

    An interrupt (Ctrl-C while `texts` waits for input) is delayed like an error: messages already read are answered
    first.
    """
    stream = enumerate(texts)
    while True:
        chunk: list[str | CleanText] = []
        try:
            for number, text in islice(stream, size):
                if not isinstance(text, (str, CleanText)):
                    raise InputError(
                        f"message {number} of the stream is {type(text).__name__}, wanted str; decode bytes first "
                        "(jingyin.serve.sms.decode) and drop missing values"
                    )
                chunk.append(text)
        except BaseException as error:
            yield chunk, error
            return
        if not chunk:
            return
        yield chunk, None


def score_in_processes(scorer: "Scorer", texts: Iterable[str | CleanText], processes: int) -> Iterator[Verdict]:
    """Score `texts` in `processes` processes like `scorer`, with at most two chunks per process pending.

    `scorer` answers alone at first: starting processes takes longer than scoring some thousand messages. Raises
    BundleError if the bundle can't be loaded or has changed, JingyinError if a process ends early.
    """
    stream, begun = chunks(texts, CHUNK), time.monotonic()
    for chunk, error in stream:
        yield from map(scorer.verdict, scorer.scored(chunk))
        if error is not None:
            raise error
        if time.monotonic() - begun > _ALONE_SECONDS:
            break
    else:
        return
    with unbroken(_ADVICE), process_pool(processes) as pool:
        submitted = ((error, pool.submit(_score, scorer.arguments, chunk)) for chunk, error in stream)
        for error, verdicts in in_order(submitted, 2 * processes):
            yield from verdicts
            if error is not None:
                raise error


def _score(arguments: ScorerArguments, texts: list[str | CleanText]) -> list[Verdict]:
    return list(scorer_of(arguments).score_many(texts))


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
