"""What a lazy sender gets through a filter: by heads and tails, by a greedy search, by messages in two halves.

Ordinary messages get the same, so that nothing is won by flagging everything. All draws are by fixed seeds.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from jingyin.train.corpus.dress import entries
from jingyin.train.evaluate.baselines import System
from jingyin.train.evaluate.figures import Bools, rate
from jingyin.train.evaluate.messages import Messages
from jingyin.train.evaluate.results import AttackResult, DressingResult, TriesResult
from jingyin.train.evaluate.sender import TRIES, LazySender, edited, success
from jingyin.train.evaluate.slices import sample_evenly

ROWS = 300
"""Flagged messages that are attacked, at most, and benign ones beside, at most as many."""

AT_TRIES = (1, 3, TRIES)
_SEED = 7
_COMMA = re.compile(r"[，,。！!；;？?\n](?=.)")

# What was measured to pass by the dozen, and what every sender thinks of first; others are taken from the tables.
_FIRST = (
    ("", "哈"), ("", "？"), ("", "，谢谢"), ("", "哦"), ("", "😊"), ("", "[微笑]"), ("", "^_^"), ("那边说，", ""),
    ("有人让我转告你，", ""), ("吃了没？", ""), ("【温馨提示】", "退订回T"),
)  # fmt: skip
_FROM_TABLES = (("heads", 9), ("tails", 9), ("heads_held_out", 5), ("tails_held_out", 6))


@dataclass(frozen=True)
class Dressing:
    """A head and a tail that are put on a message; held out where no training message has them."""

    head: str
    tail: str
    held_out: bool

    @property
    def name(self) -> str:
        """The dressing on an ellipsis, a line break as an arrow."""
        return f"{self.head}…{self.tail}".replace("\n", "↵")

    def put_on(self, text: str) -> str:
        """Return the dressed message."""
        return self.head + text + self.tail


def dressings() -> list[Dressing]:
    """Return the forty dressings that filters are attacked with, the same ones every time."""
    found = [Dressing(head, tail, held_out=False) for head, tail in _FIRST]
    for name, count in _FROM_TABLES:
        known = {each.head + each.tail for each in found}
        left = [entry for entry in entries(name) if entry not in known]
        chosen = [left[i] for i in np.linspace(0, len(left) - 1, count).astype(int)]
        sides = [(entry, "") if name.startswith("heads") else ("", entry) for entry in chosen]
        found += [Dressing(head, tail, name.endswith("held_out")) for head, tail in sides]
    return found


def attack(system: System, flags: Bools, messages: Messages, rows: int = ROWS) -> AttackResult:
    """Attack up to `rows` flagged messages that `system` flags, by `flags` (n,), and up to `rows` benign ones."""
    threats = [messages.texts[i] for i in sample_evenly(messages, messages.flagged & flags, rows)]
    benign = [messages.texts[i] for i in sample_evenly(messages, messages.benign, rows)]

    def flagged(texts: Sequence[str]) -> Bools:
        return np.asarray(system.judge(texts).risks >= system.threshold) if texts else np.zeros(0, np.bool_)

    dressed = [_dressed(each, flagged, threats, benign) for each in dressings()]
    return AttackResult(
        rows=len(threats),
        plain_false_positives=rate(flagged(benign)),
        dressings=sorted(dressed, key=lambda each: -each.passed.value),
        mean_passed=float(np.mean([each.passed.value for each in dressed])),
        mean_false_positives=float(np.mean([each.false_positives.value for each in dressed])),
        sender=_sent(flagged, threats, benign),
        halves_passed=rate(~_flagged_halves(flagged, threats)),
        halves_false_positives=rate(_flagged_halves(flagged, benign)),
    )


def passing_shares(system: System, texts: Sequence[str]) -> NDArray[np.float64]:
    """Return for each of `texts` (n,) the share of dressings with which it passes `system`."""
    passed = [system.judge([each.put_on(text) for text in texts]).risks < system.threshold for each in dressings()]
    return np.asarray(np.mean(passed, axis=0), np.float64)


def _dressed(
    dressing: Dressing, flagged: Callable[[Sequence[str]], Bools], threats: Sequence[str], benign: Sequence[str]
) -> DressingResult:
    first, second = (flagged([dressing.put_on(text) for text in texts]) for texts in (threats, benign))
    return DressingResult(dressing.name, dressing.held_out, rate(~first), rate(second))


def _sent(
    flagged: Callable[[Sequence[str]], Bools], threats: Sequence[str], benign: Sequence[str]
) -> list[TriesResult]:
    sender = LazySender(lambda text: not flagged([text])[0], _SEED)
    tries = [sender.tries(text) for text in threats]
    rng = Random(f"benign {_SEED}")
    return [
        TriesResult(
            within, rate(np.array(success(tries, within), np.bool_)),
            rate(flagged([edited(text, within, rng) for text in benign])),
        )
        for within in AT_TRIES
    ]  # fmt: skip


def _flagged_halves(flagged: Callable[[Sequence[str]], Bools], texts: Sequence[str]) -> Bools:
    """Return for each text with a comma (n,) whether either of its halves is flagged."""
    pairs = [pair for text in texts if (pair := halves(text)) is not None]
    first, second = (flagged([pair[side] for pair in pairs]) for side in (0, 1))
    return first | second


def halves(text: str) -> tuple[str, str] | None:
    """Cut a text behind the comma, or other mark between clauses, that is nearest to its middle; None without one."""
    ends = [match.end() for match in _COMMA.finditer(text)]
    if not ends:
        return None
    at = min(ends, key=lambda end: abs(end - len(text) / 2))
    return text[:at], text[at:]
