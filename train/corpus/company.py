"""Puts a message into company: notices, advertisements, chat before, behind or around it, or a report about it.

Real threats, and real innocents, may follow a sentence from a bank or an advertisement. The text next to a message
does not change its label, except that a threat in a report is only reported: `label_in` has the rule.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from random import Random

from jingyin.model.labels import BENIGN, FLAGGED
from jingyin.train.corpus.perturb import entries
from jingyin.train.corpus.stats import CorpusMessage

Neighbours = Mapping[str, Sequence[str]]
"""Kind of company -> the messages, slots filled, that accompany others."""

SENTENCES = ("lawful", "service", "weather", "delivery")
"""Kinds whose amount is counted in sentences."""

CHARACTERS = ("ads", "chat")
"""Kinds whose amount is counted in characters."""

REPORTS = ("report", "quoted")
"""Kinds that report a threat; they surround it."""

HELD_OUT = ("weather", "delivery", "quoted")
"""Kinds that, like their way of joining, occur in no training message."""

PLACES = ("before", "behind", "around")
LONGEST = 500
"""Most characters of a training message with its company."""

_LONGEST_NEIGHBOUR = 300
_REPORTED = 0.12  # share of a threat's copies that are reports
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


def neighbours(messages: Iterable[CorpusMessage]) -> dict[str, list[str]]:
    """Return the texts that may accompany others, by kind: of undisguised messages of one split, and of HELD_OUT."""
    texts_by_kind: dict[str, list[str]] = defaultdict(list)
    for message in messages:
        kind = _KINDS.get(message.family if message.source == "authored" else message.source)
        if message.label == "lawful_collection" and message.family not in _NO_NOTICES:
            kind = "lawful"
        if kind and message.label in BENIGN and len(message.text) <= _LONGEST_NEIGHBOUR:
            texts_by_kind[kind].append(message.text)
    texts_by_kind["report"] = list(entries("reports"))
    for kind, text in (line.split(" ", 1) for line in entries("company_held_out")):
        texts_by_kind[kind].append(text)
    return dict(texts_by_kind)


def with_company(text: str, kind: str, amount: int, place: str, rng: Random, neighbours: Neighbours) -> str:
    """Return `text` in company of a kind, drawn from `neighbours`; the same seed gives the same company.

    `amount` counts sentences (SENTENCES; whole messages, so that a lawful notice is one) or characters (CHARACTERS);
    REPORTS ignore amount and place. `place` is one of PLACES. Without a neighbour of that kind the text is returned
    unchanged.
    """
    candidates = neighbours.get(kind, ())
    if not candidates:
        return text
    if kind in REPORTS:
        return rng.choice(candidates).replace("{}", text)
    pieces = _sentences(candidates, amount, rng) if kind in SENTENCES else _characters(candidates, amount, rng)
    count_before = {"before": len(pieces), "behind": 0, "around": (len(pieces) + 1) // 2}[place]
    joints = _HELD_OUT_JOINTS if kind in HELD_OUT else _JOINTS
    return _join([*pieces[:count_before], text, *pieces[count_before:]], joints, rng)


def label_in(label: str, kind: str) -> str:
    """Return the label of a message in company: the more serious one; lawful company counts as lawful_collection.

    A message in a report is always ordinary.
    """
    if kind in REPORTS:
        return "ordinary"
    return "lawful_collection" if (label, kind) == ("ordinary", "lawful") else label


def training_company(text: str, label: str, rng: Random, neighbours: Neighbours) -> tuple[str, str] | None:
    """Return a training message in company of at most LONGEST characters, and the kind; None if none fits.

    Only threats are put into reports. A threat without money gets no lawful company: it would read like a debt threat.
    """
    kinds = ["lawful", "ads", "chat", "service"]
    if label == "other_threat":
        kinds.remove("lawful")
    if label in FLAGGED and rng.random() < _REPORTED:
        kinds = ["report"]
    kind = rng.choice(kinds)
    amount = rng.choice(_MOST_SENTENCES if kind in SENTENCES else _MOST_CHARACTERS)
    place = rng.choice(PLACES)
    for smaller in range(amount, 0, -max(1, amount // 3)):
        accompanied = with_company(text, kind, smaller, place, rng, neighbours)
        if accompanied != text and len(accompanied) <= LONGEST:
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
    joined = pieces[0]
    for piece in pieces[1:]:
        joint = rng.choice(joints)
        # A text can't continue with "。，".
        joined += joint + piece if joint not in "，。" or joined[-1] not in _ENDS else piece
    return joined
