"""Puts a message into other text: next to notices, ads or chat, or into a frame that reports it or passes it on.

Real threats, and real innocents, may follow a sentence from a bank or an advertisement. The text next to a message
does not change its label, and neither does a frame that hands the message on to its victim; a frame that reports it
makes it ordinary: `label_in` has the rule. Quotation marks, colons and line breaks around a framed message are drawn
independently of the frame and of the label, because a mark that goes with a label becomes the evidence (train/LOG.md).
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from random import Random
from typing import NamedTuple
from zlib import crc32

from jingyin.model.labels import BENIGN
from jingyin.train.corpus.perturb import entries
from jingyin.train.corpus.stats import CorpusMessage

Neighbours = Mapping[str, Sequence[str]]
"""Kind of company -> the messages, slots filled, that accompany others."""

SENTENCES = ("lawful", "service", "weather", "delivery")
"""Kinds whose amount is counted in sentences."""

CHARACTERS = ("ads", "chat")
"""Kinds whose amount is counted in characters."""

FRAMES = ("report", "passed_on", "innocent")
"""Kinds of frames: they report a message to an uninvolved reader, hand it on to its victim, pass on an innocent one."""

TRAINED = ("lawful", "ads", "chat", "service")
"""Kinds of company in training."""

HELD_OUT = ("weather", "delivery")
"""Kinds that, like their way of joining, occur in no training message."""

PLACES = ("before", "behind", "around")
LONGEST = 500
"""Most characters of a training message with its company."""

MARKS = ("“”", "「」", "『』", "‘’", '""', "''", "《》")
"""Quotation marks around a framed message."""

_LONGEST_NEIGHBOUR = 300
_MARKED, _ONE_MISSING = 0.55, 0.05  # shares of framed messages in quotation marks, and of these with a single mark
_LEADS = ("：", "：", "：", "，", "，", "", "", "", "\n", " ")
_FOLLOWS = ("，", "，", "，", "。", "。", "", "", "", "\n", " ")
_JOINTS = ("\n", "", "", " ", "，", "。")
_HELD_OUT_JOINTS = ("\n\n", "；另：", " / ")
_ENDS = "，。！？!?；;~…"
_SENTENCE = re.compile("[^。！？!?；;\n]+[。！？!?；;\n]*")
_NO_NOTICES = frozenset(("friend_repay", "wage_invoice_claim"))
_KINDS = {
    "service_notice": "service", "code_notice": "service", "official_notice": "service",
    "ad": "ads", "seller_ad": "ads", "loan_ad": "ads", "fbs": "ads", "sms800k": "ads",
    "chat": "chat", "nus": "chat", "beke": "chat",
}  # fmt: skip
_MOST_SENTENCES = (1, 1, 1, 2, 2, 3, 4, 6)
_MOST_CHARACTERS = (8, 16, 30, 60, 100, 150, 200, 300)


class Placed(NamedTuple):
    """A text, and the range [start, end) of the message in it."""

    text: str
    start: int
    end: int


@cache
def frames_of(split: str) -> dict[str, list[tuple[str, str]]]:
    """Return the frames of a split by kind, {m} where the message stands, each with the id of its pair or "".

    A pair are two frames of different kinds that share most of their words. No frame, and no pair, is in two splits.
    """
    lines = files("jingyin.train.corpus").joinpath("tables/frames.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, list[tuple[str, str]]] = {kind: [] for kind in FRAMES}
    for line in map(json.loads, lines):
        pair = line.get("pair", "")
        at = crc32((pair or line["frame"]).encode()) % 100
        if split == ("train" if at < 70 else "calibration" if at < 80 else "test"):
            found[line["kind"]].append((line["frame"], pair))
    return found


def twin_frames(split: str, rng: Random) -> tuple[str, str]:
    """Return a frame that hands a message on to its victim and one that reports it, a pair where there is one."""
    frames = frames_of(split)
    passed_on, pair = rng.choice(frames["passed_on"])
    twins = [frame for frame, its_pair in frames["report"] if pair and its_pair == pair]
    return passed_on, rng.choice(twins or [frame for frame, _ in frames["report"]])


def neighbours(messages: Iterable[CorpusMessage]) -> dict[str, list[str]]:
    """Return the texts that may accompany others, by kind: of undisguised messages of one split, and of HELD_OUT."""
    texts_by_kind: dict[str, list[str]] = defaultdict(list)
    for message in messages:
        kind = _KINDS.get(message.family if message.source == "authored" else message.source)
        if message.label == "lawful_collection" and message.family not in _NO_NOTICES:
            kind = "lawful"
        if kind and message.label in BENIGN and len(message.text) <= _LONGEST_NEIGHBOUR:
            texts_by_kind[kind].append(message.text)
    for kind, text in (line.split(" ", 1) for line in entries("company_held_out")):
        texts_by_kind[kind].append(text)
    return dict(texts_by_kind)


def framed(text: str, frame: str, rng: Random, marks: str | None = None) -> Placed:
    """Return `text` in a frame, in `marks` (two characters, "" for none) or in some drawn by chance."""
    head, tail = frame.split("{m}")
    if marks is None:
        marks = rng.choice(MARKS) if rng.random() < _MARKED else ""
        if marks and rng.random() < _ONE_MISSING:
            marks = rng.choice((marks[0] + " ", " " + marks[1]))
    opening, closing = (marks[0].strip(), marks[1].strip()) if marks else ("", "")
    head += rng.choice(_LEADS) if head else ""
    joint = rng.choice(_FOLLOWS) if tail else ""
    if joint in "，。" and not closing and text[-1:] in _ENDS:
        joint = ""
    start = len(head) + len(opening)
    return Placed(head + opening + text + closing + joint + tail, start, start + len(text))


def with_company(text: str, kind: str, amount: int, place: str, rng: Random, neighbours: Neighbours) -> Placed:
    """Return `text` in company of a kind, drawn from `neighbours`; the same seed gives the same company.

    `amount` counts sentences (SENTENCES; whole messages, so that a lawful notice is one) or characters (CHARACTERS);
    `place` is one of PLACES. Without a neighbour of that kind the text is returned unchanged.
    """
    candidates = neighbours.get(kind, ())
    if not candidates:
        return Placed(text, 0, len(text))
    pieces = _sentences(candidates, amount, rng) if kind in SENTENCES else _characters(candidates, amount, rng)
    count_before = {"before": len(pieces), "behind": 0, "around": (len(pieces) + 1) // 2}[place]
    joints = _HELD_OUT_JOINTS if kind in HELD_OUT else _JOINTS
    before = _join(pieces[:count_before], joints, rng)
    head = _join([before, text], joints, rng) if before else text
    return Placed(_join([head, *pieces[count_before:]], joints, rng), len(head) - len(text), len(head))


def label_in(label: str, kind: str) -> str:
    """Return the label of a message in company: the more serious one; lawful company counts as lawful_collection.

    A message in a report is always ordinary.
    """
    if kind == "report":
        return "ordinary"
    return "lawful_collection" if (label, kind) == ("ordinary", "lawful") else label


def label_beside(kind: str) -> str:
    """Return the label of the text next to a message in company of a kind; "" for a frame, which is part of it."""
    return "" if kind in FRAMES else "lawful_collection" if kind == "lawful" else "ordinary"


def training_company(
    text: str, label: str, rng: Random, neighbours: Neighbours, kinds: Sequence[str] = TRAINED
) -> tuple[Placed, str] | None:
    """Return a training message in company of at most LONGEST characters, and the kind; None if none fits.

    A threat without money gets no lawful company: it would read like a debt threat.
    """
    if label == "other_threat":
        kinds = [kind for kind in kinds if kind != "lawful"]
    if not kinds:
        return None
    kind = rng.choice(kinds)
    amount = rng.choice(_MOST_SENTENCES if kind in SENTENCES else _MOST_CHARACTERS)
    place = rng.choice(PLACES)
    for smaller in range(amount, 0, -max(1, amount // 3)):
        accompanied = with_company(text, kind, smaller, place, rng, neighbours)
        if accompanied.text != text and len(accompanied.text) <= LONGEST:
            return accompanied, kind
    return None


def _sentences(messages: Sequence[str], count: int, rng: Random) -> list[str]:
    """Draw whole messages of `count` sentences together; fewer if none drawn fits."""
    sentences_drawn: list[str] = []
    left = count
    for _ in range(20 * count):
        if not left:
            break
        message = rng.choice(messages)
        sentences = _SENTENCE.findall(message)
        if 0 < len(sentences) <= left:
            sentences_drawn += sentences
            left -= len(sentences)
    return sentences_drawn


def _characters(messages: Sequence[str], count: int, rng: Random) -> list[str]:
    """Draw messages of `count` characters together, the last one cut."""
    texts: list[str] = []
    left = count
    while left > 0:
        texts.append(rng.choice(messages)[:left])
        left -= len(texts[-1])
    return texts


def _join(pieces: Sequence[str], joints: Sequence[str], rng: Random) -> str:
    joined = pieces[0] if pieces else ""
    for piece in pieces[1:]:
        joint = rng.choice(joints)
        # A text can't continue with "。，".
        joined += joint + piece if joint not in "，。" or joined[-1] not in _ENDS else piece
    return joined
