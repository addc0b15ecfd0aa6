"""Trains the prefilter, and tunes one that is there."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from jingyin.model.prefilter import BUCKETS, code_points, features


def train_prefilter(texts: Sequence[str], flagged: NDArray[np.bool_], seed: int) -> NDArray[np.float16]:
    """Return weights (BUCKETS,) of one score that separate clean texts to let through, `flagged` (n,), from the rest.

    By labels and not by what a network says: the score is a second opinion, which fusion weighs in. Where all texts are
    on one side all weights are 0.
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
    weights: NDArray[np.floating[Any]], texts: Sequence[str], flagged: NDArray[np.bool_], times: NDArray[np.int64]
) -> NDArray[np.float16]:
    """Return prefilter weights (BUCKETS,) that also separate the `flagged` of clean `texts`, and else stay as they are.

    Logistic regression whose weights are drawn to `weights` instead of to 0: of features that `texts` do not hold,
    nothing that was learnt is lost. Each text counts `times` (n,), and both sides alike.
    """
    matrix = _matrix(texts)
    before = weights.astype(np.float64)
    signs = np.where(flagged, 1.0, -1.0)
    share = 0.5 * times / np.where(flagged, max(1, times[flagged].sum()), max(1, times[~flagged].sum()))

    def loss(change: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = signs * (matrix @ (before[:-1] + change[:-1]) + before[-1] + change[-1])
        slope = -signs * share / (1 + np.exp(np.clip(margins, -700, 700)))
        value = float((share * np.logaddexp(0, -margins)).sum() + _TUNING_PENALTY * (change[:-1] ** 2).sum())
        return value, np.append(matrix.T @ slope, slope.sum()) + 2 * _TUNING_PENALTY * np.append(change[:-1], 0)

    change = minimize(loss, np.zeros(BUCKETS), jac=True, method="L-BFGS-B", options={"maxiter": _TUNING_STEPS}).x
    return np.asarray(before + change, np.float16)


def _matrix(texts: Sequence[str]) -> csr_matrix:
    rows = [features(code_points([text])[0]) for text in texts]
    lengths = np.array([len(row) for row in rows])
    values = np.repeat(1 / np.sqrt(lengths), lengths).astype(np.float32)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    matrix = csr_matrix((values, np.concatenate(rows), bounds), shape=(len(texts), BUCKETS - 1))
    matrix.sum_duplicates()
    return matrix
