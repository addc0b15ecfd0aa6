"""Calibration: how steps of the cascade are fused, how far each reads, and thresholds with the evidence for them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import beta

from jingyin.model.bundle import Fusion, Missed, Point, Threshold, rows_needed
from jingyin.model.cascade import risk_logit
from jingyin.model.errors import InputError

Floats = NDArray[np.floating[Any]]

_PENALTY = 1e-3
_CLIP = 8.0
_HIGHEST_RATE = 0.1
_CONFIDENCE = 0.95
_TRAFFIC, _INNOCENT = 30.0, 3.0  # train/LOG.md compares


def fit_fusion(
    scores: Floats, logits: Sequence[Floats], flagged: NDArray[np.bool_], traffic: NDArray[np.bool_], times: Floats
) -> Fusion:
    """Fit how the prefilter's scores (2, n) and the networks' logits (n, labels) make the risk of `flagged` (n,).

    Logistic regressions without negative weights (stacking, Wolpert 1992; Breiman 1996) on calibration rows, which none
    of them was trained on. The first finds the weights' proportions where thresholds will stand, among few innocents:
    `traffic` (n,) counts thirty times, other innocents three times. The second makes a probability of the sum, all rows
    counting alike (Platt 1999). A row stands for `times` (n,) rows. Later measurements on these same rows, thresholds'
    bounds and the calibration error, are in-sample as far as the fusion goes. Raises InputError when all rows are on
    one side.
    """
    if flagged.all() or not flagged.any():
        raise InputError(
            f"the calibration split has {int(flagged.sum())} flagged messages of {len(flagged)}; both kinds are "
            "wanted: add authored rows to the corpus"
        )
    columns = np.column_stack([*scores, *(np.clip(risk_logit(each), -_CLIP, _CLIP) for each in logits)])
    counted = times * np.where(flagged, 1.0, np.where(traffic, _TRAFFIC, _INNOCENT))
    proportions, _ = _regression(columns, flagged, counted)
    scale, bias = _regression((columns @ proportions)[:, None], flagged, times)
    weights = scale[0] * proportions
    first, second, *rest = map(float, weights)
    return Fusion(scores=(first, second), weights=tuple(rest), bias=bias)


def _regression(columns: Floats, flagged: NDArray[np.bool_], counted: Floats) -> tuple[NDArray[np.float64], float]:
    """Return weights (columns,), none below 0, and bias of a logistic regression; rows count `counted` (n,) times."""
    signs = np.where(flagged, 1.0, -1.0)
    width = columns.shape[1]

    def loss(weights_and_bias: Floats) -> tuple[float, Floats]:
        margins = signs * (columns @ weights_and_bias[:-1] + weights_and_bias[-1])
        slope = -signs * counted / (1 + np.exp(np.clip(margins, -700, 700))) / len(signs)
        value = float((counted * np.logaddexp(0, -margins)).mean() + _PENALTY * (weights_and_bias[:-1] ** 2).sum())
        return value, np.append(columns.T @ slope + 2 * _PENALTY * weights_and_bias[:-1], slope.sum())

    start = np.append(np.full(width, 1 / width), 0)
    fitted = minimize(loss, start, jac=True, bounds=[(0, None)] * width + [(None, None)], method="L-BFGS-B").x
    return fitted[:-1], float(fitted[-1])


def share_threshold(values: Floats, share: float) -> float:
    """Return a finite value that a `share` of `values` (n,) reaches.

    Positive infinities reach it even if they are more. All finite ones do if negative infinities leave fewer.
    """
    finite = values[np.isfinite(values)]
    # np.quantile can't interpolate between infinities: a value just above all others replaces them, or the lowest one.
    top = np.nextafter(finite.max(initial=-np.inf), np.inf)
    return float(np.quantile(np.clip(values, finite.min(initial=top), top), 1 - share))


def missed_of(missed: NDArray[np.bool_], flagged: NDArray[np.bool_]) -> Missed:
    """Count the `flagged` (n,) messages that are `missed` (n,), with a bound on their share."""
    count, total = int((missed & flagged).sum()), int(flagged.sum())
    return Missed(lost=count, flagged=total, bound=upper_bound(count, total))


def expected_calibration_error(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Return the ECE, 0 to 1, with 15 bins of equal mass over the top probability (Nixon et al. 2019)."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    parts = [p for p in np.array_split(np.argsort(confidence, kind="stable"), 15) if len(p)]
    return float(sum(len(p) * abs(confidence[p].mean() - right[p].mean()) for p in parts) / len(labels))


def upper_bound(count: int, rows: int) -> float:
    """Return the one-sided 95% upper bound of a rate (Clopper & Pearson 1934)."""
    return 1.0 if count >= rows else float(beta.ppf(_CONFIDENCE, count + 1, rows - count))


_FEWEST = 300  # rows of a source that counts by itself; smaller ones count together as one
_POINTS = 40


def false_alarm_curve(risks: Floats, sources: Sequence[str], threats: Floats) -> tuple[Point, ...]:
    """Return some 40 points, from one in ten flagged to none, by the risks of the benign (n,) and of `threats`.

    Rates and bounds are those of `choose_threshold`.
    """
    descending, rates, bounds = _alarms(risks, sources)
    last = int((rates <= _HIGHEST_RATE).sum())
    ranks = np.unique(np.geomspace(1, max(1, last), _POINTS).astype(int)) - 1
    points = []
    for risk in sorted({_above(descending, rank) for rank in ranks.tolist()}):
        count = int((risks >= risk).sum())
        recall = float((threats >= risk).mean()) if len(threats) else 0.0
        points.append(Point(risk=risk, rate=float(rates[count]), bound=float(bounds[count]), recall=recall))
    return tuple(points)


def choose_threshold(risks: Floats, sources: Sequence[str], target: float, least: float = 0.0) -> Threshold:
    """Return a risk, not below `least`, at which benign `risks` (n,) are flagged at most at the rate `target`.

    As many are flagged as the target allows. Between the last of these and the next one the risk lies halfway, in
    log-odds: just above the next one, the message after it would be as likely to be flagged.

    Two rates must keep to it: the 95% upper bound of all rows together (Clopper and Pearson), and the estimate in which
    every one of the `sources` (n,) counts alike, so that no large corpus speaks for all traffic. A bound by source
    would need thousands of rows of each. The bound holds although the threshold is chosen on the same rows: the rate
    above the k-th largest of n risks has the beta distribution that the bound inverts (Wilks 1941). It ignores that the
    fusion behind the risks, with its few weights, was fitted on these rows too.

    A target that the rows can't bound leads to the strictest threshold that they support: above every row. `bound` is
    the upper bound of its rate, and the bundle's maker warns (`unsupported`); Scorer.load refuses such a rate.
    """
    descending, rates, bounds = _alarms(risks, sources)
    allowed = max(0, int((np.maximum(rates, bounds) <= target).sum()) - 1)
    lowest = _above(descending, allowed)
    if 0 < allowed < len(descending) and 0 < lowest < descending[allowed - 1] < 1:
        lowest = float(expit((logit(lowest) + logit(descending[allowed - 1])) / 2))
    risk = max(least, lowest)
    flagged = Counter(compress(sources, risks >= risk))
    count = flagged.total()
    return Threshold(
        risk=risk, target=target, bound=float(bounds[count]), rows=len(risks), false_positives=count, least=least,
        sources={source: (flagged[source], rows) for source, rows in sorted(Counter(sources).items())},
    )  # fmt: skip


def rate_at(risks: Floats, sources: Sequence[str], risk: float, *, bounded: bool) -> float:
    """Return the share of benign `risks` (n,), every source counting alike, that a threshold of `risk` flags.

    `bounded` gives the lowest target at which `choose_threshold` flags as many: no lower than the bound of that share.
    """
    _, rates, bounds = _alarms(risks, sources)
    count = int((risks >= risk).sum())
    return float(max(rates[count], bounds[count]) if bounded else rates[count])


def _above(descending: Floats, rank: int) -> float:
    """Return the lowest threshold that exactly the first `rank` of risks reach: just above the next one."""
    # Above 1 if even risks of 1 are too many: then nothing reaches it.
    return float(np.nextafter(descending[rank], np.inf)) if rank < len(descending) else 0.0


def _alarms(risks: Floats, sources: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """Return risks in descending order (n,), and two rates (n + 1,) for flagging the first 0 to n of them.

    The first is an estimate in which every source counts alike, the second the upper bound of all rows together.
    """
    counts = Counter(sources)
    named = [source if counts[source] >= _FEWEST else "" for source in sources]
    sizes = Counter(named)
    weights = np.array([1 / (len(sizes) * sizes[source]) for source in named])
    order = np.argsort(-risks, kind="stable")
    rates = np.minimum(np.concatenate([[0.0], weights[order].cumsum()]), 1.0)
    hits = np.arange(len(risks) + 1)
    bounds = np.append(beta.ppf(_CONFIDENCE, hits[:-1] + 1, len(risks) - hits[:-1]), 1.0)
    return risks[order], rates, bounds


def highest_allowed(risks: Floats, rate: float) -> float:
    """Return the lowest threshold that about `rate` of `risks` (n,) reach, to the nearest row."""
    descending = np.sort(risks)[::-1]
    return _above(descending, round(rate * len(descending))) if len(descending) else 0.0


def unsupported(parts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each target rate that the calibration rows of a manifest's parts are too few to show."""
    for action in ("review", "block"):
        threshold = parts[action]
        if threshold.rows < (wanted := rows_needed(threshold.target)):
            yield (
                f"{action}_rate {threshold.target:g} needs {wanted:,} ordinary calibration messages, there are "
                f"{threshold.rows:,}: the threshold is above them all and shows {threshold.bound:.2g}; add traffic "
                "or raise the rate"
            )
