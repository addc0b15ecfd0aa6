"""Joins two opinions of one message: the network's probabilities and the gate's score.

They err on different messages. The network reads order and meaning, and is now and then sure of nonsense; the gate, which
knows pairs and triples of characters and sounds, is not fooled by that nonsense. Joined they find more than either. And the network's
word is worth so much and no more: what the gate finds harmless enough is not flagged however sure the network is, so the
gate can stop many more at the same loss (train/LOG.md).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jingyin.model.bundle import Join

_SURE = 1e-9  # keeps log-odds finite


def joined(
    join: Join, probabilities: NDArray[np.float64], scores: ArrayLike, flagged: Sequence[int]
) -> NDArray[np.float64]:
    """Return probabilities (n, labels) whose risk, that of the labels `flagged`, heeds the gate's scores (n,).

    The two log-odds add up (a product of experts, Hinton 1999), and slope and bias calibrate the sum. A logistic regression
    that weighs them freely (stacking) gives the gate 0.6 of the network's weight and is no better; the gate then stops half
    as much (train/LOG.md). Among the flagged labels, and among the others, proportions stay as the network has them.
    """
    network = np.minimum(risk_odds(probabilities, flagged), join.cap)
    odds = join.slope * (network + np.asarray(scores, np.float64)) + join.bias
    new = 1 / (1 + np.exp(-odds))
    parts = np.array(probabilities)
    others = [i for i in range(parts.shape[1]) if i not in flagged]
    for labels, total in ((list(flagged), new), (others, 1 - new)):
        parts[:, labels] *= (total / np.maximum(parts[:, labels].sum(1), _SURE))[:, None]
    return np.asarray(parts / parts.sum(1, keepdims=True))


def risk_odds(probabilities: NDArray[np.float64], flagged: Sequence[int]) -> NDArray[np.float64]:
    """Return the log-odds (n,) of the risk in probabilities (n, labels)."""
    risk = np.clip(probabilities[:, list(flagged)].sum(1), _SURE, 1 - _SURE)
    return np.asarray(np.log(risk) - np.log1p(-risk))
