"""Trains the prefilter, or tunes an existing one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from jingyin.model.errors import InputError
from jingyin.model.prefilter import BUCKETS, code_points, divisor, features
from jingyin.train.data import LAWFUL, ORDINARY, Rows

_COPIES = 2
"""Copies of a message that the prefilter learns from besides it: more take hours and gigabytes, and add little."""


def prefilter_of(train: Rows, seed: int, initial: NDArray[np.floating[Any]] | None = None) -> NDArray[np.float16]:
    """Return weights (2, BUCKETS) trained on each message and two of its copies, starting from `initial` if given.

    The first separate the ordinary from all else, so that messages they stop are rightly called ordinary; the second,
    trained on that rest alone, separate the lawful from threats. Raises InputError for `initial` without such a rest.
    """
    order = np.random.default_rng(seed).permutation(len(train))
    order[train.first] = -1
    ranked = np.lexsort((order, train.messages))
    starts = np.flatnonzero(np.diff(train.messages[ranked], prepend=-1))
    rank = np.arange(len(train)) - np.repeat(starts, np.diff(starts, append=len(train)))
    train = train.take(np.sort(ranked[rank <= _COPIES]))
    other = train.labels != ORDINARY
    if initial is not None and not other.any():
        raise InputError(
            f"all {len(train):,} training messages are ordinary; the prefilter is tuned on lawful ones and threats "
            "too: add some to the training split"
        )
    rest = train.take(np.flatnonzero(other))
    weights = []
    for i, (rows, flagged) in enumerate(((train, other), (rest, rest.labels != LAWFUL))):
        texts = [each.text for each in rows.cleaned]
        if initial is None:
            weights.append(train_prefilter(texts, flagged, seed))
        else:
            weights.append(tune_prefilter(initial[i], texts, flagged, rows.weights))
    return np.stack(weights)


def train_prefilter(texts: Sequence[str], flagged: NDArray[np.bool_], seed: int) -> NDArray[np.float16]:
    """Return weights (BUCKETS,) of one score that separate clean texts to let through, `flagged` (n,), from the rest.

    Trained on labels, not on a network's outputs: fusion uses the score as a second opinion. If all texts are on one
    side, all weights are 0.
    """
    weights = np.zeros(BUCKETS, np.float16)
    if flagged.all() or not flagged.any():
        return weights
    model = LogisticRegression(C=30.0, class_weight="balanced", max_iter=300, random_state=seed, solver="liblinear")
    model.fit(_matrix(texts), flagged)
    weights[:-1] = model.coef_[0].astype(np.float16)
    weights[-1] = np.float16(model.intercept_[0])
    return weights


_TUNING_PENALTY = 2e-5  # 2e-3 lost: it let no more threats of a new kind through than before (train/LOG.md)
_TUNING_STEPS = 100


def tune_prefilter(
    weights: NDArray[np.floating[Any]],
    texts: Sequence[str],
    flagged: NDArray[np.bool_],
    times: NDArray[np.floating[Any]],
) -> NDArray[np.float16]:
    """Return prefilter weights (BUCKETS,) changed to separate the `flagged` among clean `texts` too.

    Logistic regression with weights regularised towards `weights` instead of 0: features that `texts` lack keep theirs.
    Each text counts `times` (n,), which may be a fraction; both sides have equal weight. If all texts are on one side,
    `weights` stay as they are: nothing would keep the bias, which has no penalty, from growing.
    """
    if flagged.all() or not flagged.any():
        return np.asarray(weights, np.float16)
    matrix, tuned = _matrix(texts), weights.astype(np.float64)
    used = np.append(np.unique(matrix.indices), BUCKETS - 1)  # the bias is last
    matrix, initial = matrix[:, used[:-1]], tuned[used]
    signs = np.where(flagged, 1.0, -1.0)
    of_side = [max(1e-9, float(times[side].sum())) for side in (flagged, ~flagged)]
    share = 0.5 * times / np.where(flagged, *of_side)

    def loss(change: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = signs * (matrix @ (initial[:-1] + change[:-1]) + initial[-1] + change[-1])
        slope = -signs * share / (1 + np.exp(np.clip(margins, -700, 700)))
        value = float((share * np.logaddexp(0, -margins)).sum() + _TUNING_PENALTY * (change[:-1] ** 2).sum())
        return value, np.append(matrix.T @ slope, slope.sum()) + 2 * _TUNING_PENALTY * np.append(change[:-1], 0)

    options = {"maxiter": _TUNING_STEPS}
    tuned[used] += minimize(loss, np.zeros(len(used)), jac=True, method="L-BFGS-B", options=options).x
    return np.asarray(tuned, np.float16)


def _matrix(texts: Sequence[str]) -> csr_matrix:
    rows = [features(code_points([text])[0]) for text in texts]
    lengths = np.array([len(row) for row in rows])
    values = np.repeat(1 / divisor(lengths), lengths).astype(np.float32)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    matrix = csr_matrix((values, np.concatenate(rows), bounds), shape=(len(texts), BUCKETS - 1))
    matrix.sum_duplicates()
    return matrix
