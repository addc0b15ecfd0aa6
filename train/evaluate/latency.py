"""How long a message takes, and how large a bundle is."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jingyin.model.bundle import FILES
from jingyin.serve.scorer import Scorer

MESSAGES = 300
"""Messages that are timed, taken evenly from the data."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds a message, one at a time on one thread: the median, and what 95 of 100 stay below."""

    median: float
    p95: float


def timed_sample(texts: Sequence[str]) -> list[str]:
    """Return up to MESSAGES of `texts`, evenly spaced."""
    return [texts[i] for i in np.linspace(0, len(texts) - 1, min(MESSAGES, len(texts))).astype(int)]


def latencies(ways: Sequence[Callable[[str], object]], texts: Sequence[str]) -> list[Latency]:
    """Time each of `ways` on each of `texts`, in turn, so that a busy machine slows all alike."""
    for way in ways:
        way(texts[0])  # the first call pays for caches
    seconds = np.empty((len(ways), len(texts)))
    for column, text in enumerate(texts):
        for line, way in enumerate(ways):
            start = time.perf_counter()
            way(text)
            seconds[line, column] = time.perf_counter() - start
    return [Latency(float(np.median(line) * 1e3), float(np.percentile(line, 95) * 1e3)) for line in seconds]


def bare_scorer(path: Path, *, gate: bool) -> Scorer:
    """Load a bundle without memo, and without gate if so asked: what a message costs when nothing is remembered."""
    return Scorer.load(path, gate=gate, memo_bytes=0)


def size(path: Path) -> int:
    """Return the bytes of a bundle's files."""
    return sum((path / name).stat().st_size for name in (*FILES, "manifest.json"))
