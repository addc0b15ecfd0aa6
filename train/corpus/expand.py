"""Fills the slots of an authored message with drawn values."""

import re
from random import Random

from jingyin.model.errors import InputError
from jingyin.train.corpus.slots import SLOTS

SLOT = re.compile(r"\{(\w+)\}")

# A message that names one of these twice means the same one; two times or two prices are two.
_SAME = frozenset(("name", "lender", "bank", "company", "lawfirm", "court", "school", "amount", "days", "plate"))
# A value may end in the word that the message goes on with: "{deadline}前" and "今天18:00前".
_DOUBLED = (
    (re.compile(r"(?:之前|以前|前)(之前|以前|前)"), r"\1"),
    (re.compile(r"(之前|以前|前)(?:之内|以内|内)"), r"\1"),
    (re.compile(r"(之内|以内|内)(?:之内|以内|内|之前|以前|前)"), r"\1"),
    (re.compile(r"(元|块钱|块)(?:元整|元|块钱|块)"), r"\1"),
    (re.compile(r"(?<=\d)([日号])[日号]"), r"\1"),
    (re.compile(r"([:：]\d\d|点半?)(?:点钟|点整|点)"), r"\1"),
)


def expand(text: str, rng: Random) -> str:
    """Return `text` with every slot filled; the same seed fills it alike.

    Raises InputError for a slot that no list is known for.
    """
    values = draw(text, rng)
    if not values:
        return text
    filled = iter(value for _, value in values)
    pieces = SLOT.split(text)
    pieces[1::2] = filled
    return _undouble(pieces)


def draw(text: str, rng: Random) -> list[tuple[str, str]]:
    """Return (slot, value) for each slot of `text`, in order."""
    same: dict[str, str] = {}
    values = []
    for match in SLOT.finditer(text):
        slot = match[1]
        if slot not in SLOTS:
            raise InputError(f"unknown slot {{{slot}}}; known: {', '.join(sorted(SLOTS))}")
        value = SLOTS[slot](rng)
        if slot in _SAME:
            value = same.setdefault(slot, value)
        values.append((slot, value))
    return values


def _undouble(pieces: list[str]) -> str:
    """Join literal text and values, dropping a word that a value and the text behind it both say."""
    text = pieces[0]
    for value, literal in zip(pieces[1::2], pieces[2::2], strict=True):
        seam = len(text) + len(value)
        text += value + literal
        for pattern, once in _DOUBLED:
            match = pattern.search(text, max(0, seam - 4))
            if match and match.start() < seam < match.end():
                text = text[: match.start()] + match.expand(once) + text[match.end() :]
                break
    return text
