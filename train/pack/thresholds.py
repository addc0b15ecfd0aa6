"""Calibration: how steps of the cascade are fused, how far each reads, and thresholds with the evidence for them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import beta

from jingyin.model.bundle import Fusion, Loss, Threshold
from jingyin.model.decision import risk_logit
from jingyin.model.errors import InputError

Floats = NDArray[np.floating[Any]]

_PENALTY = 1e-3
_CLIP = 8.0
_TRAFFIC, _INNOCENT = 30.0, 3.0  # train/LOG.md compares


def fit_fusion(
    scores: Floats, logits: Sequence[Floats], flagged: NDArray[np.bool_], traffic: NDArray[np.bool_]
) -> Fusion:
    """Fit how prefilter scores (n,) and each network's logits (n, labels) make the risk that `flagged` (n,) shows.

    Logistic regressions without negative weights (stacking, Wolpert 1992; Breiman 1996) on calibration rows, which none
    of them was trained on. The first finds the weights' proportions where thresholds will stand, among few innocents:
    `traffic` (n,) counts thirty times, other innocents three times. The second makes a probability of the sum, all rows
    counting alike (Platt 1999). What is then measured on these same rows, thresholds' bounds and the calibration error,
    is in-sample as far as the fusion goes. Raises InputError when all rows are on one side.
    """
    if flagged.all() or not flagged.any():
        raise InputError(
            f"the calibration split has {int(flagged.sum())} flagged messages of {len(flagged)}; both kinds are "
            "wanted: add authored rows to the corpus"
        )
    columns = np.column_stack([scores, *(np.clip(risk_logit(each), -_CLIP, _CLIP) for each in logits)])
    counted = np.where(flagged, 1.0, np.where(traffic, _TRAFFIC, _INNOCENT))
    proportions, _ = _regression(columns, flagged, counted)
    scale, bias = _regression((columns @ proportions)[:, None], flagged, np.ones(len(flagged)))
    weights = scale[0] * proportions
    return Fusion(score=float(weights[0]), weights=tuple(map(float, weights[1:])), bias=bias)


def _regression(columns: Floats, flagged: NDArray[np.bool_], counted: Floats) -> tuple[NDArray[np.float64], float]:
    """Return weights (columns,), none below 0, and bias of a logistic regression; rows count `counted` (n,) times."""
    signs = np.where(flagged, 1.0, -1.0)
    width = columns.shape[1]

    def loss(given: Floats) -> tuple[float, Floats]:
        margins = signs * (columns @ given[:-1] + given[-1])
        slope = -signs * counted / (1 + np.exp(np.clip(margins, -700, 700))) / len(signs)
        value = float((counted * np.logaddexp(0, -margins)).mean() + _PENALTY * (given[:-1] ** 2).sum())
        return value, np.append(columns.T @ slope + 2 * _PENALTY * given[:-1], slope.sum())

    start = np.append(np.full(width, 1 / width), 0)
    found = minimize(loss, start, jac=True, bounds=[(0, None)] * width + [(None, None)], method="L-BFGS-B").x
    return found[:-1], float(found[-1])


def share_threshold(values: Floats, share: float) -> float:
    """Return a finite value that a `share` of `values` (n,) reaches; infinite ones do even if there are more."""
    finite = values[np.isfinite(values)]
    # Between two infinities np.quantile finds no number: just above all others stands for them.
    top = np.nextafter(finite.max(initial=-np.inf), np.inf)
    return float(np.quantile(np.minimum(values, top), 1 - share))


def loss_of(lost: NDArray[np.bool_], flagged: NDArray[np.bool_]) -> Loss:
    """Count what of the `flagged` (n,) messages is `lost` (n,), with its bound."""
    count, total = int((lost & flagged).sum()), int(flagged.sum())
    return Loss(lost=count, flagged=total, bound=upper_bound(count, total))


def expected_calibration_error(probabilities: Floats, labels: NDArray[np.int64], bins: int = 15) -> float:
    """Return the ECE, 0 to 1, with bins of equal mass over the top probability (Nixon et al. 2019)."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    parts = [p for p in np.array_split(np.argsort(confidence, kind="stable"), bins) if len(p)]
    return float(sum(len(p) * abs(confidence[p].mean() - right[p].mean()) for p in parts) / len(labels))


def upper_bound(count: int, rows: int, confidence: float = 0.95) -> float:
    """Return the one-sided upper bound of a rate (Clopper & Pearson 1934)."""
    return 1.0 if count >= rows else float(beta.ppf(confidence, count + 1, rows - count))


def rows_needed(rate: float, confidence: float = 0.95) -> int:
    """Return how many benign rows without a hit it takes to bound the rate by `rate`."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - rate))


def choose_threshold(risks: Floats, families: Sequence[str], target: float, floor: float) -> Threshold:
    """Return the lowest risk, at least `floor`, at which the rate among benign `risks` (n,) is bounded by `target`.

    The bound holds although the threshold is chosen on the same rows: the rate above the k-th largest of n risks has
    the beta distribution that Clopper and Pearson's bound inverts (Wilks 1941), and k depends on n and `target` alone.
    That the fusion behind the risks was fitted on these rows too it does not make up for: of its few weights it knows
    nothing. It speaks of traffic mixed as `families` are here. Raises InputError, with the number of rows needed, when
    there are too few to support the target.
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
    for family, flagged in zip(families, reached, strict=True):
        count, total = counts.get(family, (0, 0))
        counts[family] = (count + int(flagged), total + 1)
    count = int(reached.sum())
    return Threshold(
        risk=risk,
        target=target,
        bound=upper_bound(count, rows),
        rows=rows,
        false_positives=count,
        families=dict(sorted(counts.items())),
    )
