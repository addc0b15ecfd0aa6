"""How long a message takes, and how large a bundle is."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jingyin.model.bundle import read_bundle
from jingyin.serve.scorer import Scorer

MESSAGES = 300
"""Messages that are timed, taken evenly from the data."""
REPEATS = 3


@dataclass(frozen=True)
class Latency:
    """Milliseconds a message, one at a time on one thread: median, mean, and what 95 of 100 stay below.

    The mean is what traffic costs; the median alone would not see how many messages a prefilter lets through.
    """

    median: float
    mean: float
    p95: float


def timed_sample(texts: Sequence[str]) -> list[str]:
    """Return up to MESSAGES of `texts`, evenly spaced."""
    return [texts[i] for i in np.linspace(0, len(texts) - 1, min(MESSAGES, len(texts))).astype(int)]


def latencies(ways: Sequence[Callable[[str], object]], texts: Sequence[str]) -> list[Latency]:
    """Time each of `ways` on each of `texts`: the best of REPEATS, in an order drawn for each text.

    A busy machine then slows all alike, and nobody always finds the caches that another one filled.
    """
    rng = np.random.default_rng(0)
    seconds = np.full((len(ways), len(texts)), np.inf)
    for _ in range(REPEATS):
        for column, text in enumerate(texts):
            for line in rng.permutation(len(ways)).tolist():
                start = time.perf_counter()
                ways[line](text)
                seconds[line, column] = min(seconds[line, column], time.perf_counter() - start)
    return [_latency(line * 1e3) for line in seconds]


def _latency(milliseconds: NDArray[np.float64]) -> Latency:
    return Latency(float(np.median(milliseconds)), float(milliseconds.mean()), float(np.percentile(milliseconds, 95)))


def bare_scorer(path: Path, *, prefilter: bool) -> Scorer:
    """Load a bundle without cache, and without prefilter if so asked: what a message costs when it is new."""
    return Scorer.load(path, prefilter=prefilter, cache_bytes=0)


def size(path: Path) -> int:
    """Return the bytes of a bundle's files."""
    return sum((path / name).stat().st_size for name in (*read_bundle(path).manifest.files, "manifest.json"))
