"""The cascade: which steps read a message, and how their readings give label, risk, action and reasons.

Scorer, calibration and evaluation call `cascade`, each with its own reader, so that thresholds are set on the cascade
that is served.

The units of a message are the whole and its windows of one and of two sentences: harmless text around a threat dilutes
it in the whole, but not in a window. The prefilter scores every unit. If one of them passes, networks read the message,
once each, until its risk lies outside of a network's bounds; each reading gives the outputs of all units, which have
read their context (model/spans.py). Of a long message a network reads only the parts with a unit that the network
before found risky. The riskiest unit decides; from the log-odds of a window, or of the whole of a long message, which
is the mean of several readings, `discount` is subtracted.

Networks err on different messages: each is sometimes sure of nonsense, but of different nonsense. So a unit gets one
risk from all that have read it (fusion; train/LOG.md): the weighted sum of their log-odds, a product of experts (Hinton
1999).
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jingyin.model.bundle import CascadeRules, Fusion, Manifest, SignScale
from jingyin.model.labels import FLAGGED, LABELS, Action, Reason, Stage
from jingyin.model.prefilter import Units

FLAGGED_INDEX = [LABELS.index(label) for label in FLAGGED]
"""Indices in LABELS of the labels that make up the risk."""

OTHER_INDEX = [i for i in range(len(LABELS)) if i not in FLAGGED_INDEX]

Floats = NDArray[np.float64]


class Decision(NamedTuple):
    """The part of a verdict that depends on the clean text alone; `stage` is the one that answered first.

    `window` is the range of the clean text that decided, None for the whole; `disagreement`, 0 to 1, is how far the
    networks that read it lie apart in its risk. Messages with the same clean text share one Decision: don't mutate it.
    """

    label: str
    probabilities: dict[str, float]
    risk: float
    action: Action
    stage: Stage
    reasons: tuple[Reason, ...] = ()
    window: tuple[int, int] | None = None
    disagreement: float = 0.0


class Read(Protocol):
    """Runs the network with index `network` on a message, whose units (units,) are `worth` reading from 0 on.

    Returns its outputs (units, labels + signs), NaN for units of a long message that it does not read.
    """

    def __call__(self, network: int, message: int, worth: Floats) -> NDArray[np.float32]:
        """Read one message."""


class Cascaded(NamedTuple):
    """The cascade's results for n messages.

    `depth` (n,) counts the networks that have read a message; `odds` (n,) are log-odds of the risk,
    `probabilities` (n, labels); `units` (n,) are the units that decided, `signs` (n,) their sign logits, empty if no
    network with signs read them. `final` (n,) is False if time ran out before everything was read. `disagreement` (n,)
    is the largest difference between the risks that two networks give to the deciding unit, 0 to 1.
    """

    depth: NDArray[np.int64]
    odds: Floats
    probabilities: Floats
    units: NDArray[np.int64]
    signs: list[Floats]
    final: NDArray[np.bool_]
    disagreement: Floats


def prefiltered(
    rules: CascadeRules, units: Units, abstains: NDArray[np.bool_], foreign: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return for each message (n,) its exit: 0 ordinary, 1 lawful, -1 if one of its units continues to the networks.

    The prefilter `abstains` from some messages (n,); `foreign` ones (n,) contain nothing to judge and are ordinary.
    """
    ordinary = units.scores[0] < rules.prefilter.ordinary.threshold
    continues = ~ordinary & (units.scores[1] >= rules.prefilter.lawful.threshold)
    goes = (np.logical_or.reduceat(continues, units.starts) | abstains) & ~foreign
    return np.where(goes, -1, np.where(ordinary[units.starts] | foreign, 0, 1))


def cascade(
    rules: CascadeRules,
    units: Units,
    exits: NDArray[np.int64],
    read: Read,
    *,
    everyone: bool = False,
    until: float | None = None,
) -> Cascaded:
    """Run the networks on the messages without an exit in `exits` (n,), the result of `prefiltered`.

    With `everyone` all networks read them. After `until`, by time.monotonic(), no network starts to read: the readings
    so far decide.
    """
    starts, count, width = units.starts, len(units.starts), len(rules.labels)
    discounts = np.where(units.diluted, rules.discount, 0.0)
    odds, level = np.full(len(units.owners), -np.inf), np.zeros(len(units.owners), np.int64)  # of units; networks read
    outputs: list[Floats] = []  # of each network (units, labels + signs)
    worth = np.asarray(units.scores.sum(0) - units.scores.sum(0).min(initial=0.0), np.float64)
    depth, final = np.zeros(count, np.int64), np.ones(count, np.bool_)
    todo = np.flatnonzero(exits < 0)
    for number, network in enumerate(rules.networks):
        found: dict[int, NDArray[np.float32]] = {}
        for message in todo.tolist():  # in a row, so that a network's weights are loaded from memory once
            if until is not None and time.monotonic() >= until:
                final[message] = False
            else:
                found[message] = read(number, message, worth[starts[message] : units.end(message)])
        if not found:
            break
        todo = np.array(list(found))
        own = np.concatenate([np.arange(starts[message], units.end(message)) for message in found])
        rows = np.concatenate(list(found.values()))
        outputs.append(np.full((len(odds), rows.shape[1]), np.nan))
        outputs[number][own] = rows
        risks = fused_logit(
            network.fusion, units.scores[:, own], [each[own, :width] for each in outputs], rules.flagged
        )
        is_read = ~np.isnan(risks)
        odds[own[is_read]], level[own[is_read]] = (risks - discounts[own])[is_read], number + 1
        depth[todo] = number + 1
        highest = np.maximum.reduceat(odds, starts)[todo]
        todo = todo[reads_on(network.threshold, network.certain, highest) | everyone]
        bound = None if everyone else network.threshold
        worth = odds - (odds[np.isfinite(odds)].min() if bound is None else bound)
    shares = np.log(np.maximum([rules.prefilter.ordinary.probabilities, rules.prefilter.lawful.probabilities], 1e-12))
    logits = shares[np.where(exits >= 0, exits, 1)]
    out = Cascaded(
        depth, risk_logit(logits, rules.flagged), logits, starts.copy(), [np.empty(0)] * count, final, np.zeros(count)
    )
    for message in np.flatnonzero(exits < 0).tolist():
        if not depth[message]:  # time was up before any network had read a word
            out.odds[message] = provisional_odds(rules, units, message)
            continue
        unit = int(starts[message] + odds[starts[message] : units.end(message)].argmax())
        readings = [each[unit] for each in outputs[: level[unit]]]
        weights = rules.networks[len(readings) - 1].fusion.weights
        out.units[message], out.odds[message] = unit, odds[unit]
        logits[message] = sum(weight * each[:width] for weight, each in zip(weights, readings, strict=True))
        risks = _sigmoid(risk_logit([each[:width] for each in readings], rules.flagged))
        out.disagreement[message] = risks.max() - risks.min()
        out.signs[message] = next((each[width:] for each in readings if len(each) > width), np.empty(0))
    out.probabilities[:] = with_risk(logits, out.odds, rules.flagged)
    return out


def provisional_odds(rules: CascadeRules, units: Units, message: int) -> float:
    """Return the log-odds of a message's risk by the prefilter's scores alone."""
    start, end = int(units.starts[message]), units.end(message)
    risks = fused_logit(rules.provisional, units.scores[:, start:end], [], rules.flagged)
    return float((risks - rules.discount * units.diluted[start:end]).max())


def log_odds(risk: float) -> float:
    """Return the log-odds of a risk from 0 to 1."""
    return float(np.log(risk) - np.log1p(-risk)) if 0 < risk < 1 else float(np.copysign(np.inf, risk - 0.5))


def _sigmoid(odds: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(odds, -700, 700))))


def softmax(logits: ArrayLike) -> Floats:
    """Return probabilities along the last axis."""
    array = np.asarray(logits, np.float64)
    powers = np.exp(array - array.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def risk_logit(logits: ArrayLike, flagged: Sequence[int] = FLAGGED_INDEX) -> Floats:
    """Return the log-odds (...) of the risk in logits (..., labels); `flagged` are the indices of its labels."""
    array = np.asarray(logits, np.float64)
    others = [i for i in range(array.shape[-1]) if i not in flagged]
    return _log_sum(array[..., list(flagged)]) - _log_sum(array[..., others])


def _log_sum(values: Floats) -> Floats:
    highest = values.max(-1)
    return np.asarray(highest + np.log(np.exp(values - highest[..., None]).sum(-1)))


def fused_logit(
    fusion: Fusion, scores: ArrayLike, logits: Sequence[ArrayLike], flagged: Sequence[int] = FLAGGED_INDEX
) -> Floats:
    """Return the log-odds (n,) of the risk from the prefilter's scores (2, n) and networks' logits (n, labels) each."""
    fused = fusion.bias + np.asarray(fusion.scores) @ np.asarray(scores, np.float64)
    for weight, each in zip(fusion.weights, logits, strict=True):
        fused = fused + weight * risk_logit(each, flagged)
    return np.asarray(fused)


def fuse(fusion: Fusion, scores: ArrayLike, logits: Sequence[ArrayLike]) -> Floats:
    """Return probabilities (n, labels): the fused risk; within and next to it the networks' weighted proportions."""
    weighted = [weight * np.asarray(logit, np.float64) for weight, logit in zip(fusion.weights, logits, strict=True)]
    return with_risk(np.sum(weighted, axis=0), fused_logit(fusion, scores, logits))


def with_risk(logits: ArrayLike, risk: ArrayLike, flagged: Sequence[int] = FLAGGED_INDEX) -> Floats:
    """Return probabilities (n, labels) in the proportions of `logits`, whose risk has the log-odds `risk` (n,)."""
    array = np.asarray(logits, np.float64)
    inside, outside = list(flagged), [i for i in range(array.shape[-1]) if i not in flagged]
    share = _sigmoid(np.asarray(risk, np.float64))
    out = np.empty_like(array)
    out[..., inside] = softmax(array[..., inside]) * share[..., None]
    out[..., outside] = softmax(array[..., outside]) * (1 - share)[..., None]
    return out


def reads_on(continue_from: float | None, exit_above: float | None, odds: ArrayLike) -> NDArray[np.bool_]:
    """Return whether the next network reads a message, for log-odds of risk `odds` (n,); None stands for no bound."""
    low = -np.inf if continue_from is None else continue_from
    high = np.inf if exit_above is None else exit_above
    values = np.asarray(odds, np.float64)
    return np.asarray((values >= low) & (values < high))


def likeliest(
    probabilities: ArrayLike, weights: Mapping[str, float], labels: Sequence[str] = LABELS
) -> NDArray[np.int64]:
    """Return the index in `labels` of the label (...) by probabilities (..., labels): the most probable one.

    If that is not flagged, the unflagged label with the highest product of probability and weight takes its place: the
    most probable one makes the fewest mistakes, but most of them on rare labels (logit adjustment, Menon et al. 2021).
    Risk and action don't depend on the label.
    """
    array = np.asarray(probabilities, np.float64)
    weighted = array * [0.0 if label in FLAGGED else weights.get(label, 1.0) for label in labels]
    first = array.argmax(-1)
    return np.asarray(np.where(np.isin(labels, FLAGGED)[first], first, weighted.argmax(-1)), np.int64)


_DIGITS = 12


def decide(
    manifest: Manifest,
    probabilities: Floats,
    stage: Stage,
    signs: ArrayLike = (),
    window: tuple[int, int] | None = None,
    disagreement: float = 0.0,
) -> Decision:
    """Return the decision for probabilities (labels,) by the manifest's thresholds.

    `signs` are the logits of the manifest's signs, empty if no network with signs read the message.
    """
    # Rounded: numpy's exponentials differ in the last bit between one message and a batch of them.
    named = {label: round(float(each), _DIGITS) for label, each in zip(manifest.labels, probabilities, strict=True)}
    risk = round(sum(named[label] for label in FLAGGED), _DIGITS)
    action: Action = "pass" if risk < manifest.review.risk else "block" if risk >= manifest.block.risk else "review"
    reasons = reasons_of(manifest, signs) if action != "pass" else ()
    label = manifest.labels[int(likeliest(list(named.values()), manifest.label_weights, manifest.labels))]
    return Decision(label, named, risk, action, stage, reasons, window, round(disagreement, _DIGITS))


def reasons_of(manifest: Manifest, signs: ArrayLike) -> tuple[Reason, ...]:
    """Return the signs whose confidence reaches their threshold, highest first; without logits (signs,) none."""
    pairs = zip(manifest.signs.items(), np.asarray(signs, np.float64), strict=False)
    reasons = [
        Reason(sign, confidence)
        for (sign, scale), logit in pairs
        if (confidence := float(sign_confidence(scale, logit))) >= scale.threshold
    ]
    return tuple(sorted(reasons, key=lambda each: -each.confidence))


def sign_confidence(scale: SignScale, logits: ArrayLike) -> Floats:
    """Return the confidence (n,) that messages show a sign, by its logits (n,)."""
    return _sigmoid(scale.slope * np.asarray(logits, np.float64) + scale.bias)
