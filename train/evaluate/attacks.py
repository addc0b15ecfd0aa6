"""What a lazy sender gets through a filter: by heads and tails, by a greedy search, by messages in two halves.

Ordinary messages get the same, so that nothing is won by flagging everything. All draws are by fixed seeds.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np
from numpy.typing import NDArray

from jingyin.train.corpus.perturb import FAMILIES, HELD_OUT, entries, evade
from jingyin.train.evaluate.results import AttackResult, DressingResult, TriesResult
from jingyin.train.evaluate.samples import Messages, sample_evenly
from jingyin.train.evaluate.statistics import Bools, rate
from jingyin.train.evaluate.systems import System

# A lazy sender: changes a message that is flagged until it passes, seeing nothing but whether it does.
#
# Each try adds one edit to the text of the try before; of the kinds of edit that the message has not had, the sender
# takes the one that has made the largest share of messages pass so far. No try is longer than LONGEST times the message.
# All tables are the sender's, those that training never sees included.


TRIES = 10
LONGEST = 1.5

Edit = Callable[[str, Random], str]
"""Changes a text, or returns it as it is where there is nothing to change."""

_STRENGTH = 0.2  # one character in twenty, at least one word: a reader still understands at once
_CLAUSES = re.compile(r"[，。！？；,!?;\s]+")


def _headed(text: str, rng: Random) -> str:
    return rng.choice((*entries("heads"), *entries("heads_held_out"))) + text


def _tailed(text: str, rng: Random) -> str:
    return text + rng.choice((*entries("tails"), *entries("tails_held_out")))


def _reordered(text: str, rng: Random) -> str:
    """Put the last clause first."""
    clauses = [clause for clause in _CLAUSES.split(text) if clause]
    return "，".join([clauses[-1], *clauses[:-1]]) if len(clauses) > 1 else text


def _polite(text: str, rng: Random) -> str:
    return "麻烦" + text.replace("你", "您").replace("！", "。").rstrip("。!") + "，谢谢"


def _disguised(family: str) -> Edit:
    return partial(_by_family, family)


def _by_family(family: str, text: str, rng: Random) -> str:
    return evade(text, family, _STRENGTH, rng)


EDITS: dict[str, Edit] = {
    "tail": _tailed,
    "head": _headed,
    "homophone": _disguised("homophone"),
    "split": _disguised("symbols"),
    "parts": _disguised("component"),
    "initials": _disguised("initials"),
    "synonym": _disguised("slang"),
    "order": _reordered,
    "polite": _polite,
    "second tail": _tailed,
    "second homophone": _disguised("homophone"),
    "second synonym": _disguised("slang"),
}
"""What the sender may do to a message, each once."""


class LazySender:
    """Learns from each message which edits pass; the same messages in the same order give the same tries."""

    def __init__(self, passes: Callable[[str], bool], seed: int) -> None:
        self._passes = passes
        self._rng = Random(f"sender {seed}")
        self._tried = dict.fromkeys(EDITS, 0)
        self._passed = dict.fromkeys(EDITS, 0)

    def tries(self, text: str) -> int | None:
        """Return at which try, from 1 to TRIES, a flagged message passes; None if it never does."""
        left, now = list(EDITS), text
        for number in range(1, TRIES + 1):
            found = self._next(now, left, LONGEST * len(text))
            if found is None:
                return None
            kind, now = found
            passed = self._passes(now)
            self._tried[kind] += 1
            self._passed[kind] += passed
            if passed:
                return number
        return None

    def _next(self, text: str, left: list[str], longest: float) -> tuple[str, str] | None:
        """Take the most promising of the edits `left` that changes the text and keeps it short enough."""
        for kind in sorted(left, key=self._promise, reverse=True):
            left.remove(kind)
            edited = EDITS[kind](text, self._rng)
            if edited != text and len(edited) <= longest:
                return kind, edited
        return None

    def _promise(self, kind: str) -> float:
        """Return the share of tries that passed, as if one more had been made and passed: untried kinds come first."""
        return (self._passed[kind] + 1) / (self._tried[kind] + 1)


def edited(text: str, edits: int, rng: Random) -> str:
    """Return `text` with up to `edits` edits of kinds drawn at random, no longer than LONGEST times its length."""
    now = text
    for kind in rng.sample(list(EDITS), edits):
        after = EDITS[kind](now, rng)
        now = after if len(after) <= LONGEST * len(text) else now
    return now


def success(tries: Sequence[int | None], within: int) -> list[bool]:
    """Return for each message whether it passed within so many tries."""
    return [each is not None and each <= within for each in tries]


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


# Judges systems on disguised messages: recall of each evasion family, beside what it does to benign rows.


STRENGTH = 0.5
EVASION_ROWS = 300
"""Rows of either kind that are disturbed, at most; a recall of 0.9 on 300 is known to 4 points."""
_EVASION_SEED = 7


@dataclass(frozen=True)
class Disturbed:
    """Rows of `index` (n,) that an evasion family changes, and what they become."""

    family: str
    held_out: bool
    index: NDArray[np.int64]
    texts: list[str]


def disturb(messages: Messages) -> list[Disturbed]:
    """Disturb up to ROWS flagged and ROWS benign rows by each family, the same rows by all.

    Benign rows are drawn evenly from their families, so that the hard ones are not lost among plain traffic.
    """
    kinds = (messages.flagged, messages.benign)
    chosen = [i for among in kinds for i in sample_evenly(messages, among, EVASION_ROWS)]
    out = []
    for family in FAMILIES:
        hidden = {i: evade(messages.texts[i], family, STRENGTH, Random(f"{_SEED}|{family}|{i}")) for i in chosen}
        changed = [i for i in chosen if hidden[i] != messages.texts[i]]
        out.append(Disturbed(family, family in HELD_OUT, np.array(changed, np.int64), [hidden[i] for i in changed]))
    return out


def flags_before_and_after(
    system: System, disturbed: Sequence[Disturbed], flags: Bools
) -> Iterator[tuple[Disturbed, Bools, Bools]]:
    """Yield each family's rows with what `system` flags of them undisturbed, by `flags` (n,), and disturbed."""
    for each in disturbed:
        yield each, flags[each.index], system.judge(each.texts).risks >= system.threshold
