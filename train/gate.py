"""Trains the gate and sets its threshold by what it may lose."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from jingyin.model.bundle import Gate
from jingyin.model.gate import BUCKETS, code_points, features
from jingyin.train.calibrate import upper_bound

MAX_LOSS = 0.001
"""Largest share of the messages that the network would review or block that the gate may stop, as a 95% bound."""


def train_gate(texts: Sequence[str], flagged: NDArray[np.bool_], seed: int) -> NDArray[np.float16]:
    """Return gate weights (BUCKETS,) that separate `flagged` clean texts from the rest.

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


def set_threshold(
    scores: NDArray[np.float32],
    opaque: NDArray[np.bool_],
    flagged: NDArray[np.bool_],
    probabilities: NDArray[np.float64],
    plain: NDArray[np.bool_],
) -> Gate:
    """Choose the highest threshold whose loss is bounded by MAX_LOSS on held-out messages, evasion copies included.

    `scores` (n,) are the gate's, `opaque` marks what it must not judge, `flagged` what would be reviewed or blocked if
    the network read it, and `probabilities` (n, labels) are the verdicts then; those of `plain` messages, which are no evasion
    copies, make the gate's own verdict. With too few flagged messages the bound can't be met even without a loss; then none of
    them may be lost, and the manifest states the bound that this supports.
    """
    at_risk = np.sort(scores[flagged & ~opaque])
    allowed = 0
    while upper_bound(allowed + 1, int(flagged.sum())) <= MAX_LOSS:
        allowed += 1
    # The bound is the margin: half a unit more let twice as many ordinary messages through.
    threshold = float(at_risk[allowed]) if len(at_risk) > allowed else float(scores.max()) + 1
    stopped = (scores < threshold) & ~opaque
    ordinary = ~flagged
    usual = ordinary & plain
    mean = probabilities[stopped & usual].mean(0) if (stopped & usual).any() else probabilities[usual].mean(0)
    lost = int((stopped & flagged).sum())
    return Gate(
        threshold=threshold, lost=lost, flagged=int(flagged.sum()), loss_bound=upper_bound(lost, int(flagged.sum())),
        passed_share=float((~stopped & ordinary).sum() / max(1, ordinary.sum())), probabilities=tuple(map(float, mean)),
    )  # fmt: skip
