"""Calibration: a temperature, the join of network and gate, and thresholds with the evidence for them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import beta
from sklearn.linear_model import LogisticRegression

from jingyin.model.bundle import Calibration, Join, Threshold
from jingyin.model.errors import InputError

Floats = NDArray[np.floating[Any]]


def softmax(logits: Floats) -> Floats:
    """Return probabilities along the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def fit_temperature(logits: Floats, labels: NDArray[np.int64]) -> Calibration:
    """Choose the temperature that minimises the negative log-likelihood (Guo et al. 2017).

    `logits` (n, labels) and `labels` (n,) come from the calibration split, which the network never saw.

    Compared by `python tests/bench/calibrators.py` on 4,025 rows of a trial bundle, five folds: without, ECE 0.0175 and
    log-likelihood -0.1077; temperature 0.0066, -0.1009; vector scaling 0.0051, -0.0956; isotonic 0.0041, -0.1080. Vector
    scaling fits the classes' shares a little better, moves recall at fixed false-positive rates by -1.0 to +2.7 points, and
    has ten numbers to go wrong on another mix of classes. Isotonic lost: it ties 4,025 risks to 776 values,
    among which no threshold can be chosen.
    """

    def loss(log_temperature: float) -> float:
        chosen = softmax(logits / math.exp(log_temperature))[np.arange(len(labels)), labels]
        return float(-np.log(np.maximum(chosen, 1e-12)).mean())

    best = minimize_scalar(loss, bounds=(math.log(0.2), math.log(5)), method="bounded")
    temperature = float(math.exp(best.x))
    before, after = (expected_calibration_error(softmax(logits / t), labels) for t in (1.0, temperature))
    return Calibration(temperature=temperature, ece_before=before, ece_after=after, rows=len(labels))


CAP = 3.0
"""Log-odds that the network's risk counts for at most in the join. At 4 the gate passes twice as many messages on and finds
as many threats at equal false positives on real traffic (train/LOG.md)."""


def fit_join(odds: Floats, scores: Floats, flagged: NDArray[np.bool_]) -> Join:
    """Fit how the sum of the network's log-odds of risk (n,) and the gate's scores (n,) makes the risk that `flagged` (n,) shows.

    Both come from the calibration split, which neither was trained on. Raises InputError when all rows are on one side.
    """
    if flagged.all() or not flagged.any():
        raise InputError(
            f"the calibration split has {int(flagged.sum())} flagged messages of {len(flagged)}; both kinds are wanted: "
            "add authored rows to the corpus"
        )
    model = LogisticRegression(C=100.0).fit((np.minimum(odds, CAP) + scores)[:, None], flagged)
    return Join(cap=CAP, slope=float(model.coef_[0, 0]), bias=float(model.intercept_[0]))


def expected_calibration_error(probabilities: Floats, labels: NDArray[np.int64], bins: int = 15) -> float:
    """Return the ECE, 0 to 1, with bins of equal mass over the top probability (Nixon et al. 2019)."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    parts = [p for p in np.array_split(np.argsort(confidence, kind="stable"), bins) if len(p)]
    return float(sum(len(p) * abs(confidence[p].mean() - right[p].mean()) for p in parts) / len(labels))


def upper_bound(hits: int, rows: int, confidence: float = 0.95) -> float:
    """Return the one-sided upper bound of a rate (Clopper & Pearson 1934)."""
    return 1.0 if hits >= rows else float(beta.ppf(confidence, hits + 1, rows - hits))


def rows_needed(rate: float, confidence: float = 0.95) -> int:
    """Return how many benign rows without a hit it takes to bound the rate by `rate`."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - rate))


def choose_threshold(risks: Floats, families: Sequence[str], target: float, floor: float) -> Threshold:
    """Return the lowest risk, at least `floor`, at which the rate among benign `risks` (n,) is bounded by `target`.

    The bound holds although the threshold is chosen on the same rows: the rate above the k-th largest of n risks has the
    beta distribution that Clopper and Pearson's bound inverts (Wilks 1941), and k depends on n and `target` alone. It
    speaks of traffic mixed as `families` are here. Raises InputError, with the number of rows needed, when there are too
    few to support the target.
    """
    rows = len(risks)
    if upper_bound(0, rows) > target:
        raise InputError(
            f"{rows} benign calibration rows can't support a false-positive rate of {target:g}: even without a hit the "
            f"95% bound is {upper_bound(0, rows):.2g}; wanted at least {rows_needed(target)} rows: add benign messages "
            "to the corpus, or ask for a higher rate in the recipe"
        )
    descending = np.sort(risks)[::-1]
    allowed = 0
    while upper_bound(allowed + 1, rows) <= target:
        allowed += 1
    # Above, not at, the first risk too many; past 1 where even certain ones are too many: then nothing reaches it.
    risk = max(floor, float(np.nextafter(descending[allowed], np.inf)))
    reached = risks >= risk
    counts: dict[str, tuple[int, int]] = {}
    for family, hit in zip(families, reached, strict=True):
        hits, total = counts.get(family, (0, 0))
        counts[family] = (hits + int(hit), total + 1)
    hits = int(reached.sum())
    return Threshold(
        risk=risk,
        target=target,
        bound=upper_bound(hits, rows),
        rows=rows,
        hits=hits,
        families=dict(sorted(counts.items())),
    )
