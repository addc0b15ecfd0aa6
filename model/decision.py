"""The decision: from the prefilter's score and the networks' logits to probabilities, label, risk and action.

Everything that decides goes through here: scorer, calibration, evaluation. Thresholds are set on what is served.

Networks err on different messages: each is now and then sure of nonsense, and of another one. So a message that several
have read has one risk of them all (fusion; train/LOG.md): the log-odds of each, weighted, add up, a product of experts
(Hinton 1999).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jingyin.model.bundle import Fusion, Manifest, SignScale
from jingyin.model.labels import FLAGGED, LABELS, Action, Reason, Stage

FLAGGED_INDEX = [LABELS.index(label) for label in FLAGGED]
"""Where the labels that make the risk stand in LABELS."""

OTHER_INDEX = [i for i in range(len(LABELS)) if i not in FLAGGED_INDEX]
"""Where the other labels stand."""

Floats = NDArray[np.float64]


class Decision(NamedTuple):
    """What of a verdict depends on the clean text alone; `stage` is what answered first.

    Shared by messages of one clean text: not to be changed.
    """

    label: str
    probabilities: dict[str, float]
    risk: float
    action: Action
    stage: Stage
    reasons: tuple[Reason, ...] = ()


def softmax(logits: ArrayLike) -> Floats:
    """Return probabilities along the last axis."""
    given = np.asarray(logits, np.float64)
    powers = np.exp(given - given.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def risk_logit(logits: ArrayLike) -> Floats:
    """Return the log-odds (...) of the risk in logits (..., labels)."""
    given = np.asarray(logits, np.float64)
    return _log_sum(given[..., FLAGGED_INDEX]) - _log_sum(given[..., OTHER_INDEX])


def _log_sum(values: Floats) -> Floats:
    highest = values.max(-1)
    return np.asarray(highest + np.log(np.exp(values - highest[..., None]).sum(-1)))


def fused_logit(fusion: Fusion, scores: ArrayLike, logits: Sequence[ArrayLike]) -> Floats:
    """Return the log-odds (n,) of the risk from the prefilter's scores (n,) and each network's logits (n, labels)."""
    fused = fusion.bias + fusion.score * np.asarray(scores, np.float64)
    for weight, each in zip(fusion.weights, logits, strict=True):
        fused = fused + weight * risk_logit(each)
    return np.asarray(fused)


def fuse(fusion: Fusion, scores: ArrayLike, logits: Sequence[ArrayLike]) -> Floats:
    """Return probabilities (n, labels): the fused risk; within and beside it the networks' weighted proportions."""
    each = [weight * np.asarray(found, np.float64) for weight, found in zip(fusion.weights, logits, strict=True)]
    return with_risk(np.sum(each, axis=0), fused_logit(fusion, scores, logits))


def with_risk(logits: ArrayLike, risk: ArrayLike) -> Floats:
    """Return probabilities (n, labels) in the proportions of `logits`, whose risk has the log-odds `risk` (n,)."""
    given = np.asarray(logits, np.float64)
    flagged = 1 / (1 + np.exp(-np.clip(np.asarray(risk, np.float64), -700, 700)))
    out = np.empty_like(given)
    out[..., FLAGGED_INDEX] = softmax(given[..., FLAGGED_INDEX]) * flagged[..., None]
    out[..., OTHER_INDEX] = softmax(given[..., OTHER_INDEX]) * (1 - flagged)[..., None]
    return out


def reads_on(threshold: float | None, certain: float | None, risks: ArrayLike) -> NDArray[np.bool_]:
    """Return whether the next network reads a message, for log-odds of risk `risks` (n,); None stands for no bound."""
    low = -np.inf if threshold is None else threshold
    high = np.inf if certain is None else certain
    given = np.asarray(risks, np.float64)
    return np.asarray((given >= low) & (given < high))


def decide(manifest: Manifest, probabilities: Floats, stage: Stage, signs: ArrayLike = ()) -> Decision:
    """Return the decision that probabilities (labels,) make by the manifest's thresholds.

    `signs` are the logits of the manifest's signs, none where no network that has them read the message.
    """
    named = dict(zip(manifest.labels, map(float, probabilities), strict=True))
    risk = sum(named[label] for label in FLAGGED)
    action: Action = "pass"
    if risk >= manifest.review.risk:
        action = "block" if risk >= manifest.block.risk else "review"
    reasons = reasons_of(manifest, signs) if action != "pass" else ()
    return Decision(max(named, key=named.__getitem__), named, risk, action, stage, reasons)


def reasons_of(manifest: Manifest, signs: ArrayLike) -> tuple[Reason, ...]:
    """Return the signs whose confidence reaches their threshold, surest first, by logits (signs,); none for none."""
    found = zip(manifest.signs.items(), np.asarray(signs, np.float64), strict=False)
    reasons = [
        Reason(sign, confidence)
        for (sign, scale), logit in found
        if (confidence := float(sign_confidence(scale, logit))) >= scale.threshold
    ]
    return tuple(sorted(reasons, key=lambda each: -each.confidence))


def sign_confidence(scale: SignScale, logits: ArrayLike) -> Floats:
    """Return the confidence (n,) that messages show a sign, by its logits (n,)."""
    return np.asarray(1 / (1 + np.exp(-np.clip(scale.slope * np.asarray(logits, np.float64) + scale.bias, -700, 700))))
