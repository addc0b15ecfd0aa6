"""The arithmetic of judging: rates with bounds, recall at a false-positive rate, differences between two systems.

Intervals and tests take rows as independent. Rows of one situation are not, and a test split has dozens of each unseen
case: what is said of those is too narrow. recalls_at alone draws whole groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from jingyin.model.errors import InputError
from jingyin.train.pack.thresholds import rows_needed

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

REPLICATES = 1000
_SEED = 7


@dataclass(frozen=True)
class Rate:
    """`count` of independent `rows`, and the two-sided 95% interval of that share (Clopper & Pearson 1934); 0 to 1."""

    count: int
    rows: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A figure and its two-sided 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """One system against another on the same independent rows: those that only one has right, and McNemar's exact p."""

    only_first: int
    only_second: int
    p: float


def rate(flags: Bools) -> Rate:
    """Return the share of true among `flags` (n,) of independent rows; of no rows it is 0, between 0 and 1."""
    count, rows = int(flags.sum()), len(flags)
    if not rows:
        return Rate(0, 0, 0.0, 0.0, 1.0)
    low, high = binomtest(count, rows).proportion_ci(0.95, method="exact")
    return Rate(count, rows, count / rows, float(low), float(high))


def threshold_at(benign: Floats, allowed: int) -> float:
    """Return the lowest threshold that at most `allowed` of the `benign` risks (n,) reach, from the data's view."""
    if allowed >= len(benign):
        return -np.inf
    return float(np.nextafter(np.partition(benign, len(benign) - 1 - allowed)[len(benign) - 1 - allowed], np.inf))


def refuse_few(benign: int, rates: Sequence[float]) -> None:
    """Raise InputError, with the number needed, when `benign` rows can't bound the highest of `rates`."""
    if benign < rows_needed(max(rates)):
        raise InputError(
            f"{benign} benign rows (ordinary, lawful_collection) can't support a false-positive rate of "
            f"{max(rates):g}; wanted at least {rows_needed(max(rates))}: add benign messages to the data"
        )


def recall_at(benign: Floats, flagged: Floats, target: float) -> float:
    """Return the share of `flagged` risks above a threshold that at most `target` of the `benign` ones reach."""
    return float((flagged >= threshold_at(benign, int(target * len(benign)))).mean())


def recalls_at(
    systems: Sequence[tuple[Floats, Floats]], groups: tuple[Ints, Ints], targets: Sequence[float]
) -> NDArray[np.float64]:
    """Return recalls (1 + REPLICATES, systems, targets): first the figures, then their bootstrap replicates.

    Each system is (benign risks, flagged risks) of the same rows, `groups` are their (benign, flagged) groups' numbers.
    A replicate draws groups anew, since rows of one are not independent, the benign and the flagged ones apart and the
    same ones for all systems, and sets the threshold anew: so intervals know that the threshold is an estimate too, and
    differences between systems are paired (Efron & Tibshirani 1993).
    """
    rng = np.random.default_rng(_SEED)
    numbered = [np.unique(each, return_inverse=True)[1] for each in groups]
    out = np.empty((1 + REPLICATES, len(systems), len(targets)))
    for replicate in range(1 + REPLICATES):
        some, others = (_drawn(each, rng) if replicate else np.arange(len(each)) for each in numbered)
        for i, (benign, flagged) in enumerate(systems):
            out[replicate, i] = [recall_at(benign[some], flagged[others], target) for target in targets]
    return out


def _drawn(groups: Ints, rng: np.random.Generator) -> Ints:
    """Return the rows of as many groups as there are, drawn with replacement; `groups` (n,) are 0, 1, ... by row."""
    count = int(groups.max()) + 1
    times = np.bincount(rng.integers(0, count, count), minlength=count)
    return np.repeat(np.arange(len(groups)), times[groups])


def estimate(replicates: NDArray[np.float64]) -> Estimate:
    """Return the first value of `replicates` (1 + n,) with the percentile interval of the others."""
    low, high = np.percentile(replicates[1:], (2.5, 97.5))
    return Estimate(float(replicates[0]), float(low), float(high))


def share_difference(first: Bools, second: Bools) -> Estimate:
    """Return how much more often `first` (n,) is true than `second` on the same independent rows, with its interval.

    The interval is that of paired shares with a half added to either count (Agresti & Min 2005): unlike Wald's it
    does not shrink to nothing where the two never differ, and unlike a bootstrap's it needs no draws.
    """
    rows = len(first)
    if not rows:
        return Estimate(0.0, -1.0, 1.0)
    more, fewer = int((first & ~second).sum()) + 0.5, int((~first & second).sum()) + 0.5
    total = rows + 2
    middle = (more - fewer) / total
    half = 1.96 * math.sqrt(more + fewer - (more - fewer) ** 2 / total) / total
    return Estimate((more - fewer) / rows, max(-1.0, middle - half), min(1.0, middle + half))


def mcnemar(first: Bools, second: Bools) -> Paired:
    """Compare two systems by which independent rows (n,) each has right: the exact test (McNemar 1947)."""
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    apart = only_first + only_second
    return Paired(only_first, only_second, float(binomtest(only_first, apart).pvalue) if apart else 1.0)


def mean_difference(differences: Floats) -> Estimate:
    """Return the mean of paired differences (n,), one for each independent row, with its normal 95% interval."""
    mean = float(differences.mean())
    half = 1.96 * float(differences.std(ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else 1.0
    return Estimate(mean, mean - half, mean + half)
