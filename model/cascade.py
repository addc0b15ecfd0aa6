"""The cascade: which steps read a message, and how their readings give label, risk, action and reasons.

Scorer, calibration and evaluation call `cascade`, each with its own reader, so that thresholds are set on the cascade
that is served.

The units of a message are the whole and its windows of one and of two sentences: harmless text around a threat dilutes
it in the whole, but not in a window of its own. The prefilter scores every unit. Networks read the whole, then the
riskiest windows, until one of them is certain or no remaining unit could make the action stronger. The riskiest unit
decides; from a window's log-odds `discount` is subtracted, because it lacks its context.

Networks err on different messages: each is sometimes sure of nonsense, but of different nonsense. So a unit that
several have read gets one risk from all of them (fusion; train/LOG.md): the weighted sum of their log-odds, a product
of experts (Hinton 1999). Where they doubt, a mark at the end moves the log-odds by about 1, though it means next to
nothing: such a unit is read again with other `endings`, and the mean counts (test-time augmentation, Krizhevsky et al.
2012).
"""

import time
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jingyin.model.bundle import CascadeRules, Fusion, Manifest, SignScale
from jingyin.model.labels import FLAGGED, LABELS, Action, Reason, Stage
from jingyin.model.prefilter import Units
from jingyin.model.text import CleanString

FLAGGED_INDEX = [LABELS.index(label) for label in FLAGGED]
"""Indices in LABELS of the labels that make up the risk."""

OTHER_INDEX = [i for i in range(len(LABELS)) if i not in FLAGGED_INDEX]

WINDOWS = 6
"""Most windows of a message that networks read besides the whole."""

TOKENS = {"tiny.onnx": 1024, "model.onnx": 320, "verifier.onnx": 160}
"""Most tokens of a message that each network reads; a unit that does not fit is left to the networks before it."""

DOUBTED = (-1.0, 2.0)
"""Log-odds of risk, discount included, between which a unit is read again."""

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
    """Runs the network with index `network` on a unit of at most `room` tokens.

    An `ending` takes the place of the marks at the unit's end (see `ended`). Returns its outputs (labels + signs,) and
    the number of tokens, or None if the unit has more than `room`.
    """

    def __call__(
        self, network: int, unit: int, room: int, ending: str | None = None
    ) -> tuple[NDArray[np.float32], int] | None:
        """Read one unit."""


class _Found(NamedTuple):
    """The log-odds of a unit's risk, discounted for a window, and the outputs of the networks that read it."""

    odds: float
    outputs: list[Floats]


class Cascaded(NamedTuple):
    """The cascade's results for n messages.

    `depth` (n,) counts the networks that have read any unit of a message; `odds` (n,) are log-odds of the risk,
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
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which units (u,) continue to networks, and for each message (n,) its exit: 0 ordinary, 1 lawful, -1 none.

    The prefilter `abstains` from some messages (n,); `foreign` ones (n,) contain nothing to judge and are ordinary.
    """
    ordinary = units.scores[0] < rules.prefilter.ordinary.threshold
    continues = ~ordinary & (units.scores[1] >= rules.prefilter.lawful.threshold)
    continues = (continues | abstains[units.owners]) & ~foreign[units.owners]
    goes = np.logical_or.reduceat(continues, units.starts)
    return continues, np.where(goes, -1, np.where(ordinary[units.starts] | foreign, 0, 1))


def cascade(
    rules: CascadeRules,
    units: Units,
    continues: NDArray[np.bool_],
    exits: NDArray[np.int64],
    read: Read,
    *,
    everyone: bool = False,
    enough: float = np.inf,
    until: float | None = None,
) -> Cascaded:
    """Run the networks on the units that `continues` (u,) marks, except of messages with an exit in `exits` (n,).

    Both are results of `prefiltered`. With `everyone` all networks read the wholes, and windows only of wholes that are
    too long. Once a message's log-odds of risk reach `enough`, no further unit of it is read. After `until`, by
    time.monotonic(), no network starts to read: the readings so far decide.
    """
    wholes, count = units.starts, len(units.starts)
    shares = np.log(np.maximum([rules.prefilter.ordinary.probabilities, rules.prefilter.lawful.probabilities], 1e-12))
    # A whole that stops while a window continues counts as stopped; one that continues counts once it is read.
    stopped = shares[np.where(units.scores[0, wholes] < rules.prefilter.ordinary.threshold, 0, 1)]
    rows = np.where((exits >= 0)[:, None], shares[exits], stopped)
    odds = np.where(continues[wholes], -np.inf, risk_logit(rows, rules.flagged))
    out = Cascaded(
        np.zeros(count, np.int64), odds, rows, wholes.copy(), [np.empty(0)] * count, np.ones(count, np.bool_),
        np.zeros(count),
    )  # fmt: skip
    unstopped = np.flatnonzero(exits < 0).tolist()
    rooms = {i: [TOKENS.get(network.file, 0) for network in rules.networks] for i in unstopped}
    found: dict[int, _Found] = {}
    todo = [int(wholes[i]) for i in unstopped if continues[wholes[i]]]
    settled = _turn(rules, units, todo, read, out, found, rooms, everyone, until)
    unread = [i for i in unstopped if continues[wholes[i]] and not out.depth[i]]
    queues = riskiest_windows(rules, units, continues & (not everyone), unstopped, unread)
    for turn in range(WINDOWS):
        settled |= {i for i in queues if out.odds[i] >= enough}
        todo = [queue[turn] for i, queue in queues.items() if len(queue) > turn and i not in settled]
        settled |= _turn(rules, units, todo, read, out, found, rooms, everyone, until)
    if rules.endings:
        _read_again(rules, units, read, out, found, rooms, until)
    for i in unstopped:
        if np.isneginf(out.odds[i]):  # time was up before any network had read a word
            out.odds[i], out.probabilities[i] = provisional_odds(rules, units, i), shares[1]
    out.probabilities[:] = with_risk(out.probabilities, out.odds, rules.flagged)
    return out


def riskiest_windows(
    rules: CascadeRules, units: Units, continues: NDArray[np.bool_], messages: Iterable[int],
    unread: Container[int] = (),
) -> dict[int, list[int]]:  # fmt: skip
    """Return for each message at most WINDOWS windows for the networks, riskiest first by the prefilter's scores.

    Only windows that `continues` (u,) marks count, or all if the message is in `unread`, because its whole is too long.
    """
    risks = fused_logit(rules.provisional, units.scores, [], rules.flagged)

    def chosen(message: int) -> list[int]:
        windows = range(int(units.starts[message]) + 1, units.end(message))
        return sorted((i for i in windows if message in unread or continues[i]), key=lambda i: -risks[i])[:WINDOWS]

    return {int(message): chosen(int(message)) for message in messages}


def _turn(
    rules: CascadeRules, units: Units, todo: list[int], read: Read, out: Cascaded, found: dict[int, _Found],
    rooms: dict[int, list[int]], everyone: bool, until: float | None,
) -> set[int]:  # fmt: skip
    """Run the networks in order on `todo`, at most one unit of each message; return messages settled by certainty.

    A network reads all of its units in a row, so that its weights are loaded from memory once.
    """
    width, settled = len(rules.labels), set()
    outputs_by_unit: dict[int, list[Floats]] = {unit: [] for unit in todo}
    odds: dict[int, float] = {}
    for number, network in enumerate(rules.networks):
        answered = []
        for unit in todo:
            message = int(units.owners[unit])
            if until is not None and time.monotonic() >= until:
                out.final[message] = False
            elif (reading := read(number, unit, rooms[message][number])) is not None:
                outputs_by_unit[unit].append(np.asarray(reading[0], np.float64))
                rooms[message][number] -= reading[1]
                answered.append(unit)
        if not answered:
            break
        logits = [np.array([outputs_by_unit[unit][i][:width] for unit in answered]) for i in range(number + 1)]
        discounts = np.where(units.starts[units.owners[answered]] == answered, 0.0, rules.discount)
        risks = fused_logit(network.fusion, units.scores[:, answered], logits, rules.flagged) - discounts
        odds.update(zip(answered, risks.tolist(), strict=True))
        if not everyone and network.certain is not None:
            settled |= {int(units.owners[unit]) for unit in answered if odds[unit] >= network.certain}
        goes = reads_on(network.threshold, network.certain, risks) | everyone
        todo = [unit for unit, goes_on in zip(answered, goes, strict=True) if goes_on]
    for unit, risk in odds.items():
        message, found[unit] = int(units.owners[unit]), _Found(risk, outputs_by_unit[unit])
        out.depth[message] = max(out.depth[message], len(found[unit].outputs))
        if risk > out.odds[message]:
            _let_decide(rules, out, message, unit, found[unit])
    return settled


def _let_decide(rules: CascadeRules, out: Cascaded, message: int, unit: int, found: _Found) -> None:
    width, weights = len(rules.labels), rules.networks[len(found.outputs) - 1].fusion.weights
    out.odds[message], out.units[message] = found.odds, unit
    out.probabilities[message] = sum(w * output[:width] for w, output in zip(weights, found.outputs, strict=True))
    risks = _sigmoid(risk_logit([output[:width] for output in found.outputs], rules.flagged))
    out.disagreement[message] = risks.max() - risks.min()
    out.signs[message] = next((output[width:] for output in found.outputs if len(output) > width), np.empty(0))


def _read_again(
    rules: CascadeRules, units: Units, read: Read, out: Cascaded, found: dict[int, _Found],
    rooms: dict[int, list[int]], until: float | None,
) -> None:  # fmt: skip
    """Let the mean over all endings decide where all networks have read the riskiest unit and its risk is doubted.

    If the mean leaves another unit of the message riskier, that one is read again too, as long as there is room.
    """
    by_message: dict[int, list[int]] = {}
    for unit in found:
        by_message.setdefault(int(units.owners[unit]), []).append(unit)
    for message, own in by_message.items():
        read_again = set[int]()
        while (unit := max(own, key=lambda each: found[each].odds)) not in read_again:
            odds, outputs = found[unit]
            if len(outputs) < len(rules.networks) or not DOUBTED[0] < odds < DOUBTED[1]:
                break
            read_again.add(unit)
            readings = [odds]
            for ending in rules.endings:
                if until is not None and time.monotonic() >= until:
                    out.final[message] = False
                    break
                if (again := _odds_ended(rules, units, read, unit, ending, rooms[message])) is None:
                    break
                readings.append(again)
            found[unit] = _Found(float(np.mean(readings)), outputs)
        if read_again:
            _let_decide(rules, out, message, unit, found[unit])


def _odds_ended(
    rules: CascadeRules, units: Units, read: Read, unit: int, ending: str, rooms: list[int]
) -> float | None:
    """Return a unit's log-odds of risk, read by all networks with another ending, None if one has no room for it."""
    logits = []
    for number in range(len(rules.networks)):
        if (reading := read(number, unit, rooms[number], ending)) is None:
            return None
        rooms[number] -= reading[1]
        logits.append(np.asarray(reading[0][None, : len(rules.labels)], np.float64))
    odds = fused_logit(rules.networks[-1].fusion, units.scores[:, [unit]], logits, rules.flagged)
    return float(odds[0]) - (0.0 if unit in units.starts else rules.discount)


def ended(text: CleanString, ending: str | None) -> CleanString:
    """Return a clean text with `ending` in place of the marks at its end, or unchanged if it is None."""
    return text if ending is None else CleanString(text.rstrip("。!. ") + ending)


def provisional_odds(rules: CascadeRules, units: Units, message: int) -> float:
    """Return the log-odds of a message's risk by the prefilter's scores alone."""
    start, end = int(units.starts[message]), units.end(message)
    risks = fused_logit(rules.provisional, units.scores[:, start:end], [], rules.flagged)
    return float(max(risks[0], risks[1:].max(initial=-np.inf) - rules.discount))


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


def fuse(
    fusion: Fusion, scores: ArrayLike, logits: Sequence[ArrayLike], flagged: Sequence[int] = FLAGGED_INDEX
) -> Floats:
    """Return probabilities (n, labels): the fused risk; within and next to it the networks' weighted proportions."""
    weighted = [weight * np.asarray(logit, np.float64) for weight, logit in zip(fusion.weights, logits, strict=True)]
    return with_risk(np.sum(weighted, axis=0), fused_logit(fusion, scores, logits, flagged), flagged)


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
    label, apart = max(named, key=named.__getitem__), round(disagreement, _DIGITS)
    return Decision(label, named, risk, action, stage, reasons, window, apart)


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
