"""Messages as senders change them: disguised, repunctuated, with affixes, in company, edited until one passes, halved.

Innocent messages get the same, so that flagging everything wins nothing. All draws have fixed seeds.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np

from jingyin.model.labels import LABELS
from jingyin.train.corpus.company import CHARACTERS, Neighbours, framed, frames_of, neighbours, with_company
from jingyin.train.corpus.company import HELD_OUT as HELD_OUT_COMPANY
from jingyin.train.corpus.perturb import FAMILIES, HELD_OUT, entries, evade
from jingyin.train.corpus.store import Row
from jingyin.train.evaluate.samples import Samples, sample_evenly
from jingyin.train.evaluate.statistics import Bools, Ints

_SEED = 7

Change = Callable[[str, Random], str]
"""Changes a text, or returns it unchanged if there is nothing to change."""


@dataclass(frozen=True)
class Suite:
    """Rows (n,) of the data, changed in one way; `name` ends in " *" if training has no such change."""

    name: str
    rows: Ints
    texts: list[str]

    @classmethod
    def of(cls, name: str, rows: Sequence[int], messages: Samples, change: Change) -> "Suite":
        """Change messages, each with a seed of its own, and keep those that do change."""
        texts = {i: change(messages.texts[i], Random(f"{_SEED}|{name.removesuffix(' *')}|{i}")) for i in rows}
        changed = [i for i, text in texts.items() if text != messages.texts[i]]
        return cls(name, np.array(changed, np.int64), [texts[i] for i in changed])


def disguised(messages: Samples, rows: Sequence[int]) -> list[Suite]:
    """Return messages disguised by each evasion family."""
    return [
        Suite.of(f"{family} *" if family in HELD_OUT else family, rows, messages, partial(_evaded, family, 0.5))
        for family in FAMILIES
    ]


def _evaded(family: str, strength: float, text: str, rng: Random) -> str:
    return evade(text, family, strength, rng)


# Heads and tails: those that every sender thinks of first, each measured to let dozens pass; others from the tables.

_FIRST = (
    ("", "哈"), ("", "？"), ("", "，谢谢"), ("", "哦"), ("", "😊"), ("", "[微笑]"), ("", "^_^"), ("那边说，", ""),
    ("有人让我转告你，", ""), ("吃了没？", ""), ("【温馨提示】", "退订回T"),
)  # fmt: skip
_FROM_TABLES = (("heads", 9), ("tails", 9), ("heads_held_out", 5), ("tails_held_out", 6))


def heads_and_tails(messages: Samples, rows: Sequence[int]) -> list[Suite]:
    """Return messages with each of forty heads and tails, the same ones every time."""
    named = {f"{head}…{tail}".replace("\n", "↵") + " *" * new: (head, tail) for head, tail, new in affixes()}
    return [Suite.of(name, rows, messages, partial(_between, *affix)) for name, affix in named.items()]


def _between(head: str, tail: str, text: str, rng: Random) -> str:
    return head + text + tail


def affixes() -> list[tuple[str, str, bool]]:
    """Return the forty pairs of a head and a tail, and whether no training message has them."""
    pairs = [(head, tail, False) for head, tail in _FIRST]
    for name, count in _FROM_TABLES:
        used = {head + tail for head, tail, _ in pairs}
        left = [entry for entry in entries(name) if entry not in used]
        chosen = [left[i] for i in np.linspace(0, len(left) - 1, count).astype(int)]
        new = name.endswith("held_out")
        pairs += [(entry, "", new) if name.startswith("heads") else ("", entry, new) for entry in chosen]
    return pairs


_ANY_MARK, _LAST_MARKS = re.compile(r"[，。！、；,.!;~～…]+(?!\d)"), re.compile(r"[。！!.~～…\s]*$")
_MARKS: dict[str, Change] = {
    "nothing at the end": lambda text, rng: _LAST_MARKS.sub("", text, count=1),
    "。 at the end": lambda text, rng: _LAST_MARKS.sub("。", text, count=1),
    "！ at the end": lambda text, rng: _LAST_MARKS.sub("！", text, count=1),
    "…… at the end": lambda text, rng: _LAST_MARKS.sub("……", text, count=1),
    "！ for all marks": lambda text, rng: _ANY_MARK.sub("！", text),
    "spaces for all marks": lambda text, rng: _ANY_MARK.sub(" ", text),
    "no marks": lambda text, rng: _ANY_MARK.sub("", text),
}


def repunctuated(messages: Samples, rows: Sequence[int]) -> list[Suite]:
    """Return messages in other punctuation."""
    return [Suite.of(name, rows, messages, change) for name, change in _MARKS.items()]


# Company: other messages before or behind, drawn from the benign rows of the same data, and kinds held out.

_COMPANY = (
    ("lawful", 1, "behind"), ("lawful", 2, "behind"), ("lawful", 4, "behind"), ("lawful", 2, "before"),
    ("weather", 2, "behind"), ("delivery", 2, "behind"), ("delivery", 2, "before"),
    ("ads", 100, "behind"), ("ads", 300, "behind"), ("chat", 100, "behind"), ("chat", 300, "behind"),
)  # fmt: skip
LONG = (("chat", 900, "around"), ("ads", 900, "around"))
"""Long messages: more than ten windows, the one that counts in the middle."""


def in_company(messages: Samples, rows: Sequence[int], kinds: Sequence[tuple[str, int, str]] = _COMPANY) -> list[Suite]:
    """Return messages in each of `kinds`, a kind, an amount and a place of company."""
    company = neighbours(
        Row(messages.texts[i], LABELS[messages.labels[i]], messages.families[i], "", messages.sources[i], "", "", "", 1)
        for i in np.flatnonzero(messages.benign).tolist()
    )
    suites = []
    for kind, amount, place in kinds:
        counted = "characters" if kind in CHARACTERS else "sentence" if amount == 1 else "sentences"
        name = f"{place} {amount} {counted} of {kind}" + " *" * (kind in HELD_OUT_COMPANY)
        suites.append(Suite.of(name, rows, messages, partial(_accompany, kind, amount, place, company)))
    return [suite for suite in suites if suite.texts]


def _accompany(kind: str, amount: int, place: str, company: Neighbours, text: str, rng: Random) -> str:
    return with_company(text, kind, amount, place, rng, company).text


def quoted(messages: Samples, among: Bools, count: int) -> list[str]:
    """Return up to `count` threats `among` (n,) the messages, each quoted in a report of a kind that training lacks.

    A report is benign, whatever it quotes.
    """
    reports = neighbours(())["quoted"]
    rows = sample_evenly(messages, messages.flagged & among, count)
    return [Random(f"{_SEED}|quoted|{i}").choice(reports).replace("{}", messages.texts[i]) for i in rows]


# Frames of the test split, each threat in each kind of marks: the frame alone says whether its reader is pressed.

FRAME_MARKS = {"“”": "“”", "「」": "「」", "straight": '""', "none": ""}
"""Name of the marks in tables -> the marks."""


def in_frames(messages: Samples, rows: Sequence[int]) -> list[Suite]:
    """Return messages handed on to their victim, and the same ones reported, in each of FRAME_MARKS."""
    frames = frames_of("test")
    suites = []
    for kind in ("passed_on", "report"):
        for name, marks in FRAME_MARKS.items():

            def change(text: str, rng: Random, kind: str = kind, marks: str = marks) -> str:
                return framed(text, rng.choice(frames[kind])[0], rng, marks).text

            suites.append(Suite.of(f"{kind}, marks {name}", rows, messages, change))
    return [suite for suite in suites if suite.texts]


def suites(messages: Samples, new: Bools, count: int) -> tuple[dict[str, list[Suite]], list[int]]:
    """Return up to `count` threats and as many innocents under every attack, and the rows that were drawn for that.

    Company and long messages are built from rows that are `new` (n,).
    """

    def drawn(among: Bools) -> list[int]:
        kinds = (messages.flagged & among, messages.benign & among)
        return [i for kind in kinds for i in sample_evenly(messages, kind, count)]

    plain, unseen = drawn(np.ones(len(messages), np.bool_)), drawn(new)
    suites_by_attack = {
        "company": in_company(messages, unseen),
        "frames": in_frames(messages, unseen),
        "long messages": in_company(messages, unseen, LONG),
        "heads and tails": heads_and_tails(messages, plain),
        "punctuation": repunctuated(messages, plain),
        "disguises": disguised(messages, plain),
    }
    return suites_by_attack, plain


# A greedy sender, who edits a flagged message until it passes, and learns only whether it did.
#
# Each try adds one edit to the text of the try before; of the kinds of edit that the message has not had, the sender
# takes the one that has made the largest share of messages pass so far. No try is longer than LONGEST times the
# message. All tables are the sender's, those that training never sees included.

TRIES = 10
LONGEST = 1.5

_FEW = 0.2  # one character in twenty, at least one word: a reader still understands at once
_CLAUSES = re.compile(r"[，。！？；,!?;\s]+")
_COMMA = re.compile(r"[，,。！!；;？?\n](?=.)")


def _tailed(text: str, rng: Random) -> str:
    return text + rng.choice((*entries("tails"), *entries("tails_held_out")))


def _reordered(text: str, rng: Random) -> str:
    """Put the last clause first."""
    clauses = [clause for clause in _CLAUSES.split(text) if clause]
    return "，".join([clauses[-1], *clauses[:-1]]) if len(clauses) > 1 else text


EDITS: dict[str, Change] = {
    "tail": _tailed,
    "head": lambda text, rng: rng.choice((*entries("heads"), *entries("heads_held_out"))) + text,
    "homophone": partial(_evaded, "homophone", _FEW),
    "split": partial(_evaded, "symbols", _FEW),
    "parts": partial(_evaded, "component", _FEW),
    "initials": partial(_evaded, "initials", _FEW),
    "synonym": partial(_evaded, "slang", _FEW),
    "order": _reordered,
    "polite": lambda text, rng: f"麻烦{text.replace('你', '您').replace('！', '。').rstrip('。!')}，谢谢",
    "second tail": _tailed,
    "second homophone": partial(_evaded, "homophone", _FEW),
    "second synonym": partial(_evaded, "slang", _FEW),
}
"""Edits that the sender may make to a message, each once."""


def greedy_tries(passes: Callable[[str], bool], texts: Iterable[str]) -> Iterator[int | None]:
    """Yield for each flagged text at which try, from 1 to TRIES, it passes; None if it never does.

    The sender learns from each text which edits pass; the same ones in the same order give the same tries.
    """
    rng, tried, passed = Random(f"sender {_SEED}"), Counter[str](), Counter[str]()
    for text in texts:
        left, attempt, passed_at = list(EDITS), text, None
        for number in range(1, TRIES + 1):
            # Promise is the share of tries that passed, as if one more had passed: untried kinds come first.
            promise = {kind: (passed[kind] + 1) / (tried[kind] + 1) for kind in left}
            for kind in sorted(left, key=promise.__getitem__, reverse=True):
                left.remove(kind)
                previous, attempt = attempt, EDITS[kind](attempt, rng)
                if attempt != previous and len(attempt) <= LONGEST * len(text):
                    break
                attempt = previous
            else:
                break  # no edit is left that changes the text and keeps it short enough
            tried[kind] += 1
            if passes(attempt):
                passed[kind] += 1
                passed_at = number
                break
        yield passed_at


def edited(text: str, edits: int, rng: Random) -> str:
    """Return `text` with up to `edits` edits of kinds drawn at random, no longer than LONGEST times its length."""
    attempt = text
    for kind in rng.sample(list(EDITS), edits):
        longer = EDITS[kind](attempt, rng)
        attempt = longer if len(longer) <= LONGEST * len(text) else attempt
    return attempt


def flagged_halves(flags: Callable[[Sequence[str]], Bools], texts: Sequence[str]) -> Bools:
    """Return for each text with a comma (n,) whether either of its halves is flagged."""
    pairs = [pair for text in texts if (pair := halves(text)) is not None]
    first, second = (flags([pair[side] for pair in pairs]) for side in (0, 1))
    return first | second


def halves(text: str) -> tuple[str, str] | None:
    """Cut a text after the comma, or other mark between clauses, nearest to its middle; None without one."""
    ends = [match.end() for match in _COMMA.finditer(text)]
    if not ends:
        return None
    at = min(ends, key=lambda end: abs(end - len(text) / 2))
    return text[:at], text[at:]
