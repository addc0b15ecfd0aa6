"""How bundles of format 9 are read: each window of a message as if it were a message of its own.

Their networks have not learnt to read windows in their context. The whole module goes with the last such bundle, and
with it what names it: `Scorer._decide_apart`, NetworkReader.read_unit, and in serve/explain.py.
"""

import re
import time
from collections.abc import Container, Iterable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from jingyin.model.bundle import CascadeRules
from jingyin.model.cascade import (
    DOUBTED,
    Cascaded,
    Floats,
    fused_logit,
    provisional_odds,
    reads_on,
    risk_logit,
    with_risk,
)
from jingyin.model.prefilter import Units, windows

WINDOWS = 6
"""Most windows of a message that networks read besides the whole."""

TOKENS = {"tiny.onnx": 1024, "model.onnx": 320, "verifier.onnx": 160}
"""Most tokens of a message that each network reads; a unit that does not fit is left to the networks before it."""

# A quotation with words before it in its sentence (收到“…”) stays in one window with them, up to this length: alone, a
# threat that a victim or a warning quotes is a threat. A message that is a quotation throughout is cut as ever.
_QUOTATION = re.compile(r"""(?<=[^。!?;,\s])(?:“[^”]{1,160}”|「[^」]{1,160}」|『[^』]{1,160}』|"[^"]{1,160}")""")


def windows_apart(text: str) -> list[tuple[int, int]]:
    """Return the ranges of windows as `windows` does, but none that ends inside a quotation."""
    quotations = [match.span() for match in _QUOTATION.finditer(text)]
    return windows(text, lambda end: not any(first < end < last for first, last in quotations))


class ReadUnit(Protocol):
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


def continuing(
    rules: CascadeRules, units: Units, abstains: NDArray[np.bool_], foreign: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return which units (u,) continue to networks; see `prefiltered`."""
    continues = (units.scores[0] >= rules.prefilter.ordinary.threshold) & (
        units.scores[1] >= rules.prefilter.lawful.threshold
    )
    return np.asarray((continues | abstains[units.owners]) & ~foreign[units.owners])


def cascade_apart(
    rules: CascadeRules,
    units: Units,
    continues: NDArray[np.bool_],
    exits: NDArray[np.int64],
    read: ReadUnit,
    *,
    everyone: bool = False,
    enough: float = np.inf,
    until: float | None = None,
) -> Cascaded:
    """Run the networks on the units that `continues` (u,) marks, except of messages with an exit in `exits` (n,).

    They are results of `continuing` and `prefiltered`. With `everyone` all networks read the wholes, and windows only
    of wholes that are too long. Once a message's log-odds of risk reach `enough`, no further unit of it is read. After
    `until`, by time.monotonic(), no network starts to read: the readings so far decide.
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
    rules: CascadeRules, units: Units, todo: list[int], read: ReadUnit, out: Cascaded, found: dict[int, _Found],
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
    risks = np.exp(-np.logaddexp(0.0, -risk_logit([output[:width] for output in found.outputs], rules.flagged)))
    out.disagreement[message] = risks.max() - risks.min()
    out.signs[message] = next((output[width:] for output in found.outputs if len(output) > width), np.empty(0))


def _read_again(
    rules: CascadeRules, units: Units, read: ReadUnit, out: Cascaded, found: dict[int, _Found],
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
    rules: CascadeRules, units: Units, read: ReadUnit, unit: int, ending: str, rooms: list[int]
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
