"""What training minimises: cross-entropy, a margin on the risk, and the order of the two sides of a pair."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from jingyin.model.cascade import FLAGGED_INDEX, OTHER_INDEX
from jingyin.model.labels import LABELS

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs (..., labels) and targets (..., labels) -> losses (...)."""


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy (batch,) of logits to target distributions (batch, labels)."""
    return -(target * output.log_softmax(-1)).sum(-1)


_OTHER_THREAT = LABELS.index("other_threat")
_INNOCENT_MARGIN, _THREAT_MARGIN = -5.0, 2.0
_SURE = 0.2  # a target further than this from both sides belongs to neither


def margin_loss(weight: float) -> Loss:
    """Return cross-entropy plus `weight` times a squared hinge on the log-odds of the risk (batch,).

    An innocent pays above -5, a threat below 2. Cross-entropy alone is content with an innocent at -2, where a filter
    that may flag 1 message in 2,000 is not (train/LOG.md). Other threats pay nothing: they are not flagged, but closer
    to extortion than to any innocent message.
    """

    def loss(output: Tensor, target: Tensor) -> Tensor:
        risk = log_odds_of(output)
        flagged = target[..., FLAGGED_INDEX].sum(-1)
        benign = (flagged < _SURE) & (target[..., _OTHER_THREAT] < _SURE)
        innocent = (risk - _INNOCENT_MARGIN).clamp_min(0).square() * benign
        threat = (_THREAT_MARGIN - risk).clamp_min(0).square() * (flagged > 1 - _SURE)
        return cross_entropy(output, target) + weight * (innocent + threat)

    return loss


def log_odds_of(output: Tensor) -> Tensor:
    """Return the log-odds (...) of the risk in logits (..., labels)."""
    return output[..., FLAGGED_INDEX].logsumexp(-1) - output[..., OTHER_INDEX].logsumexp(-1)


_PAIR_MARGIN = 4.0  # log-odds between a threat and its innocent twin


def pair_loss(output: Tensor, target: Tensor, pairs: Sequence[str]) -> Tensor:
    """Return softplus(margin - difference of log-odds), added up over the threats and innocents of each pair.

    Logits and targets are (batch, labels), `pairs` the ids of the rows' pairs, "" for none (RankNet, Burges et al.
    2005): a pair shares its words, so only what differs can tell them apart.
    """
    rows_of: dict[str, list[int]] = {}
    for row, pair in enumerate(pairs):
        if pair:
            rows_of.setdefault(pair, []).append(row)
    risk, threat = log_odds_of(output), (target[:, FLAGGED_INDEX].sum(-1) > 0.5).tolist()
    sides = [(a, b) for rows in rows_of.values() for a in rows for b in rows if threat[a] and not threat[b]]
    if not sides:
        return output.new_zeros(())
    threats, innocents = torch.tensor(sides, device=output.device).T
    return nn.functional.softplus(_PAIR_MARGIN - risk[threats] + risk[innocents]).sum()
