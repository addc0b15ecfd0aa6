"""score_many over several processes: chunks go out in order, and come back in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from itertools import islice
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING

from jingyin.model.errors import BundleError, InputError, JingyinError
from jingyin.model.labels import Verdict

# Messages as a stream: checked, and cut into chunks.


CHUNK = 512
"""Messages that are read ahead at most."""


def chunks(texts: Iterable[str], size: int) -> Iterator[tuple[list[str], BaseException | None]]:
    """Yield lists of at most `size` messages, and with the last one what ended the stream early, if anything did.

    An interrupt (Ctrl-C while `texts` waits for input) is held back like an error: what was read is answered first.
    """
    stream = _checked(texts)
    while True:
        chunk: list[str] = []
        try:
            for text in islice(stream, size):
                chunk.append(text)  # noqa: PERF402  extend would lose what came before an error
        except BaseException as error:
            yield chunk, error
            return
        if not chunk:
            return
        yield chunk, None


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"message {number} of the stream is {type(text).__name__}, wanted str; decode bytes first "
                "(jingyin.serve.sms.decode) and drop missing values"
            )
        yield text


if TYPE_CHECKING:
    from jingyin.serve.scorer import Scorer

_ADVICE = 'score again in fewer processes, and in a script under `if __name__ == "__main__":`'


def score_in_processes(
    start: tuple[Path, bool, int], texts: Iterable[str], processes: int, wanted: str
) -> Iterator[Verdict]:
    """Score `texts` in `processes` processes; at most two chunks a process are under way at a time.

    Each loads its own scorer by `start`: the bundle's folder, whether the prefilter is used, and the cache's bytes.
    Raises BundleError when it can't be loaded, or has another id than `wanted`, JingyinError when a process ends early.
    """
    # Forking a process that holds onnxruntime's threads can hang; a spawned one loads the bundle itself.
    context = multiprocessing.get_context("spawn")
    with unbroken(_ADVICE), ProcessPoolExecutor(processes, context, initializer=follow_parent) as pool:
        under_way: deque[Future[list[Verdict]]] = deque()
        for chunk, error in chunks(texts, CHUNK):
            under_way.append(pool.submit(_score, start, wanted, chunk))
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
def _scorer(bundle: Path, prefilter: bool, cache_bytes: int, wanted: str) -> "Scorer":
    """Return this process's scorer, loaded with the first texts: from a pool's initializer no error comes through."""
    from jingyin.serve.scorer import Scorer

    scorer = Scorer.load(bundle, prefilter=prefilter, cache_bytes=cache_bytes)
    check_same(scorer.bundle.manifest.id, wanted)
    return scorer


def _score(start: tuple[Path, bool, int], wanted: str, texts: list[str]) -> list[Verdict]:
    return list(_scorer(*start, wanted).score_many(texts))
