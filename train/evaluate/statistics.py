"""The arithmetic of judging: rates with bounds, recall at a false-positive rate, paired differences.

Rows of one situation (a case, a user, near-copies) are not independent: with `groups` intervals draw whole situations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from jingyin.model.bundle import rows_needed
from jingyin.model.errors import InputError

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

REPLICATES = 1000
_DRAWN = 10_000_000  # groups drawn at a time, in 120 MB: all replicates of 100,000 groups would take 1.2 GB
_SEED = 7


@dataclass(frozen=True)
class Rate:
    """`count` of `rows`, that share (0 to 1), and its two-sided 95% interval."""

    count: int
    rows: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A figure and its two-sided interval."""

    value: float
    low: float
    high: float


def rate(flags: Bools, groups: Ints | None = None) -> Rate:
    """Return the share of True in `flags` (n,); without rows 0, with the interval 0 to 1.

    The interval is that of independent rows (Clopper & Pearson 1934). With `groups` (n,) whole groups are drawn as well
    (a bootstrap of REPLICATES), and the wider of the two counts on either side.
    """
    count, rows = int(flags.sum()), len(flags)
    if not rows:
        return Rate(0, 0, 0.0, 0.0, 1.0)
    low = float(betaincinv(count, rows - count + 1, 0.025)) if count else 0.0
    high = float(betaincinv(count + 1, rows - count, 0.975)) if count < rows else 1.0
    if groups is not None and 0 < count < rows and len(np.unique(groups)) < rows:
        numbers = np.unique(groups, return_inverse=True)[1]
        sizes, hits = np.bincount(numbers), np.bincount(numbers, flags)
        rng, shares = np.random.default_rng(_SEED), list[float]()
        at_once = max(1, _DRAWN // len(sizes))
        for start in range(0, REPLICATES, at_once):
            drawn = rng.integers(0, len(sizes), (min(at_once, REPLICATES - start), len(sizes)), np.int32)
            shares += (hits[drawn].sum(1) / sizes[drawn].sum(1)).tolist()
        around = np.percentile(shares, (2.5, 97.5))
        low, high = min(low, float(around[0])), max(high, float(around[1]))
    return Rate(count, rows, count / rows, low, high)


def threshold_at(benign: Floats, allowed: int) -> float:
    """Return the lowest threshold that at most `allowed` of the `benign` risks (n,) reach."""
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


def recalls_at(risks: tuple[Floats, Floats], groups: tuple[Ints, Ints], targets: Sequence[float]) -> list[Estimate]:
    """Return recall at each of the false-positive rates `targets`.

    `risks` are of benign and of flagged rows, `groups` their groups' numbers. A replicate of the bootstrap draws whole
    groups, the benign and the flagged ones apart, and sets the threshold anew, since that is an estimate too (Efron &
    Tibshirani 1993). The draws are the same for every system.
    """
    rng = np.random.default_rng(_SEED)
    numbered = [np.unique(each, return_inverse=True)[1] for each in groups]
    out = np.empty((1 + REPLICATES, len(targets)))
    for replicate in range(1 + REPLICATES):
        benign, flagged = (
            side[_drawn(numbers, rng)] if replicate else side for side, numbers in zip(risks, numbered, strict=True)
        )
        out[replicate] = [recall_at(benign, flagged, target) for target in targets]
    low, high = np.percentile(out[1:], (2.5, 97.5), axis=0)
    return [Estimate(*map(float, each)) for each in zip(out[0], low, high, strict=True)]


def _drawn(groups: Ints, rng: np.random.Generator) -> Ints:
    """Return the rows of as many groups as there are, drawn with replacement; `groups` (n,) are 0, 1, ... by row."""
    count = int(groups.max()) + 1
    times = np.bincount(rng.integers(0, count, count), minlength=count)
    return np.repeat(np.arange(len(groups)), times[groups])


def paired_difference(new: NDArray[Any], old: NDArray[Any], groups: Ints, z: float) -> Estimate:
    """Return the mean of `new` - `old` (n,), shares or flags of the same rows, and its interval of `z` standard errors.

    Groups are the units: their sums vary around zero, as in McNemar's test, where `new` is no better or worse. One more
    group that differs by a row is added, so that no interval shrinks to nothing (after Agresti & Min 2005).
    """
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], new.astype(float) - old.astype(float))
    mean = float(sums.sum()) / max(1, len(new))
    half = z * math.sqrt(float((sums**2).sum()) + 1) / max(1, len(new))
    return Estimate(mean, mean - half, mean + half)
