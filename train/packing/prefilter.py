"""Trains the prefilter."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from jingyin.model.prefilter import BUCKETS, code_points, features


def train_prefilter(texts: Sequence[str], flagged: NDArray[np.bool_], seed: int) -> NDArray[np.float16]:
    """Return prefilter weights (BUCKETS,) that separate `flagged` clean texts from the rest.

    Flagged by their labels and not by the network: the score is a second opinion, which the join weighs in.
    """
    model = LogisticRegression(C=30.0, class_weight="balanced", max_iter=300, random_state=seed, solver="liblinear")
    model.fit(_matrix(texts), flagged)
    weights = np.zeros(BUCKETS, np.float16)
    weights[:-1] = model.coef_[0].astype(np.float16)
    weights[-1] = np.float16(model.intercept_[0])
    return weights


def _matrix(texts: Sequence[str]) -> csr_matrix:
    rows = [features(code_points([text])[0]) for text in texts]
    lengths = np.array([len(row) for row in rows])
    values = np.repeat(1 / np.sqrt(lengths), lengths).astype(np.float32)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    matrix = csr_matrix((values, np.concatenate(rows), bounds), shape=(len(texts), BUCKETS - 1))
    matrix.sum_duplicates()
    return matrix
