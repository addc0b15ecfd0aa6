"""Fits the outputs of signs on a trained encoder: a logistic regression each.

The loss of signs in training shapes the encoder; their outputs learn too slowly there, since most signs are rare.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from jingyin.model.network import SmsClassifier, mean_pool
from jingyin.train.loop import predict

_STRENGTH = 0.3  # inverse weight of the penalty; 0.01 and 0.05 found fewer on held-out rows
_FEWEST = 5  # rows on either side


class Pooled(torch.nn.Module):
    """A classifier up to its pooled hidden state (batch, hidden)."""

    def __init__(self, classifier: SmsClassifier) -> None:
        super().__init__()
        self.encoder = classifier.encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the mean of the last hidden states over the mask."""
        return mean_pool(self.encoder, input_ids, attention_mask)


def fit_sign_head(model: SmsClassifier, ids: Sequence[Sequence[int]], signs: NDArray[np.float32]) -> None:
    """Fit the outputs of signs on token ids and what is known of their signs (n, signs), NaN for unknown; in place.

    A sign that too few rows show, or too few don't, keeps its weights.
    """
    some = np.flatnonzero(~np.isnan(signs).all(1))
    pooled = predict(Pooled(model), [ids[i] for i in some.tolist()])
    features = (pooled - model.mean.numpy()) / model.sd.numpy()
    # A network that goes on from a bundle has standardised features folded into its head: they come in their own scale.
    mean, sd = features.mean(0), np.maximum(features.std(0), 1e-6)
    features = (features - mean) / sd
    for column, targets in enumerate(signs[some].T, model.labels):
        known = ~np.isnan(targets)
        there = targets[known] > 0
        if min(there.sum(), (~there).sum()) < _FEWEST:
            continue
        fitted = LogisticRegression(C=_STRENGTH, max_iter=300).fit(features[known], there)
        with torch.no_grad():
            weight = fitted.coef_[0] / sd
            model.head.weight[column] = torch.tensor(weight, dtype=torch.float32)
            model.head.bias[column] = float(fitted.intercept_[0] - weight @ mean)
