"""score_many over several processes: chunks go out in order, and come back in order."""

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
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jingyin.model.errors import BundleError, InputError, JingyinError
from jingyin.model.labels import Verdict
from jingyin.model.text import CleanText

# Messages as a stream: checked, and cut into chunks.


CHUNK = 512
"""Messages that are read ahead at most."""


def chunks(texts: Iterable[str | CleanText], size: int) -> Iterator[tuple[list[str | CleanText], BaseException | None]]:
    """Yield lists of at most `size` messages, and with the last one what ended the stream early, if anything did.

    An interrupt (Ctrl-C while `texts` waits for input) is held back like an error: what was read is answered first.
    """
    stream = _checked(texts)
    while True:
        chunk: list[str | CleanText] = []
        try:
            for text in islice(stream, size):
                chunk.append(text)  # noqa: PERF402  extend would lose what came before an error
        except BaseException as error:
            yield chunk, error
            return
        if not chunk:
            return
        yield chunk, None


def _checked(texts: Iterable[str | CleanText]) -> Iterator[str | CleanText]:
    for number, text in enumerate(texts):
        if not isinstance(text, (str, CleanText)):
            raise InputError(
                f"message {number} of the stream is {type(text).__name__}, wanted str; decode bytes first "
                "(jingyin.serve.sms.decode) and drop missing values"
            )
        yield text


if TYPE_CHECKING:
    from jingyin.serve.scorer import Scorer

_ADVICE = 'score again in fewer processes, and in a script under `if __name__ == "__main__":`'


_ALONE_SECONDS = 2.0  # two processes take as long to start and to load the bundle


class Start(NamedTuple):
    """What a process loads its scorer by: the folder and id of a bundle, and the arguments of `Scorer.load`."""

    bundle: Path
    id: str
    review_rate: float | None
    block_rate: float | None
    prefilter: bool
    cache_bytes: int


def score_in_processes(scorer: "Scorer", texts: Iterable[str | CleanText], processes: int) -> Iterator[Verdict]:
    """Score `texts` in `processes` processes like `scorer`; at most two chunks a process are under way at a time.

    `scorer` answers alone at first: to start processes takes longer than to score some thousand messages.
    Raises BundleError when the bundle can't be loaded, or is another one now, JingyinError when a process ends early.
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
    # Forking a process that holds onnxruntime's threads can hang; a spawned one loads the bundle itself.
    context = multiprocessing.get_context("spawn")
    with unbroken(_ADVICE), ProcessPoolExecutor(processes, context, initializer=follow_parent) as pool:
        under_way: deque[Future[list[Verdict]]] = deque()
        for chunk, error in stream:
            under_way.append(pool.submit(_score, scorer.start, chunk))
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


@contextmanager
def unbroken(advice: str) -> Iterator[None]:
    """Turn the end of a worker before its work is done into a JingyinError with advice."""
    try:
        yield
    except BrokenProcessPool:
        raise JingyinError(f"a scoring process was killed, perhaps for want of memory; {advice}") from None


def check_same(found: str, wanted: str | None) -> None:
    """Raise BundleError when the bundle that a worker loaded has another id than the one that its parent read."""
    if wanted not in (None, found):
        raise BundleError(f"the bundle changed from {wanted} to {found} after it was read; start again")


@cache
def _scorer(start: Start) -> "Scorer":
    """Return this process's scorer, loaded with the first texts: from a pool's initializer no error comes through."""
    from jingyin.serve.scorer import Scorer

    bundle, wanted, review, block, prefilter, cache_bytes = start
    scorer = Scorer.load(bundle, review_rate=review, block_rate=block, prefilter=prefilter, cache_bytes=cache_bytes)
    check_same(scorer.bundle.manifest.id, wanted)
    return scorer


def _score(start: Start, texts: list[str | CleanText]) -> list[Verdict]:
    return list(_scorer(start).score_many(texts))
