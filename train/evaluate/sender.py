"""A lazy sender: changes a message that is flagged until it passes, seeing nothing but whether it does.

Each try adds one edit to the text of the try before; of the kinds of edit that the message has not had, the sender
takes the one that has made the largest share of messages pass so far. No try is longer than LONGEST times the message.
All tables are the sender's, those that training never sees included.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from jingyin.train.corpus.dress import entries
from jingyin.train.corpus.evade import evade

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
