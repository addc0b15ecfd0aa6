"""What the messages of a campaign share: one of them, with slots where the others differ.

Each message is aligned to the pivot, the commonest one, by what they share at both ends, and between by longest
matching blocks (difflib). A character of the pivot is fixed when most messages have it; other characters, and places
where many put something in, are slots. Masked numbers and links are slots of a kind.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import NamedTuple

from jingyin.model.masks import PLACEHOLDERS, readable

MEMBERS = 12
"""Messages that are aligned, at most."""
LENGTH = 400
"""Characters of a message that are aligned: six parts of an SMS."""

_MASKS = frozenset(PLACEHOLDERS.values())
_FIXED = 0.6  # share of the messages that have a character: disguised copies lose one in ten or twenty
_INSERTED = 0.4  # share of the messages that put something in at one place
_SHORTEST = 2  # characters between two slots below which the likeness is chance


class Piece(NamedTuple):
    """A part of a template: fixed text, or a slot, whose text says what is in it: ‹phone›, or ‹…› for what varies."""

    text: str
    slot: bool


VARIES = Piece("‹…›", True)


def template(texts: Sequence[str]) -> list[Piece]:
    """Return the pieces of a template of clean texts, the commonest first."""
    pivot, *others = [text[:LENGTH] for text in texts[:MEMBERS]]
    kept = [1] * len(pivot)
    inserted = [0] * (len(pivot) + 1)
    for other in others:
        _align(pivot, other, kept, inserted)
    fixed = [count >= _FIXED * (len(others) + 1) for count in kept]
    gaps = [count > _INSERTED * (len(others) + 1) for count in inserted]
    return _pieces(pivot, fixed, gaps)


def _align(pivot: str, other: str, kept: list[int], inserted: list[int]) -> None:
    """Count the characters of the pivot that another text has, and the places where it has something more."""
    start = _shared(pivot, other)  # most of a copy is equal at both ends: difflib, which is slow, gets what is between
    tail = _shared(pivot[start:][::-1], other[start:][::-1])
    end = len(pivot) - tail
    for i in (*range(start), *range(end, len(pivot))):
        kept[i] += 1
    at = there = 0
    between = SequenceMatcher(None, pivot[start:end], other[start : len(other) - tail], autojunk=False)
    for block in between.get_matching_blocks():
        if block.b > there and block.a == at:
            inserted[start + at] += 1
        for i in range(start + block.a, start + block.a + block.size):
            kept[i] += 1
        at, there = block.a + block.size, block.b + block.size


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts share at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _pieces(pivot: str, fixed: list[bool], gaps: list[bool]) -> list[Piece]:
    parts: list[Piece] = []
    for i, character in enumerate(pivot):
        if gaps[i] and (i == 0 or fixed[i]):
            parts.append(VARIES)
        if not fixed[i]:
            parts.append(VARIES)
        else:
            parts.append(Piece(readable(character), slot=True) if character in _MASKS else Piece(character, slot=False))
    if gaps[-1]:
        parts.append(VARIES)
    return _merged(_merged(parts, shortest=1), shortest=_SHORTEST)


def _merged(parts: Sequence[Piece], *, shortest: int) -> list[Piece]:
    """Join fixed characters to pieces, and slots that touch; what is too short between two varying slots joins them."""
    runs: list[Piece] = []
    for slot, group in groupby(parts, key=lambda part: part.slot):
        run = list(group)
        runs += run if slot else [Piece("".join(part.text for part in run), slot=False)]
    merged: list[Piece] = []
    for i, piece in enumerate(runs):
        lone = not piece.slot and len(piece.text) < shortest and 0 < i < len(runs) - 1
        if lone and runs[i - 1] == VARIES == runs[i + 1]:
            continue
        if piece != VARIES or not merged or merged[-1] != VARIES:
            merged.append(piece)
    return merged


def written(pieces: Sequence[Piece]) -> str:
    """Return a template as text."""
    return "".join(piece.text for piece in pieces)
