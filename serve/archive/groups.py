"""Groups of similar texts: locality-sensitive hashing, one band at a time, and connected components.

Handling one band at a time takes a sort but no index, so memory holds only the signatures and a few arrays. Each text
of a bucket is compared with the bucket's first text and with the one before it; similar texts are connected. The most
common text of a component represents it. Texts that aren't akin to it are grouped again without the rest, so that a
chain of similar pairs does not tie dissimilar messages together. The result doesn't depend on the order of bands or
pairs.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jingyin.model.masks import PLACEHOLDERS
from jingyin.model.prefilter import code_points
from jingyin.model.text import clean

# MinHash signatures of clean texts, in numpy: datasketch needs a Python call for each text and band, and gigabytes.
#
# A signature holds the smallest hash of a text's character pairs under each of HASHES hash functions, of which 16 bits
# are kept (b-bit minwise hashing, Li & König 2010). The chance that two texts agree in one of them is the Jaccard
# similarity of their pairs (Broder 1997).


BANDS, ROWS = 32, 3
"""Two texts meet in a band with chance 1 - (1 - J^ROWS)^BANDS: 99% at a Jaccard similarity J of 0.5, 23% at 0.2."""
HASHES = BANDS * ROWS

_CHARACTERS = 1 << 15  # hashed at a time, so that they stay in the processor's cache
_MIX = np.uint64(0xFF51AFD7ED558CCD)  # murmur3's finalizer
_SHIFT = np.uint64(33)
_MULTIPLIERS = np.random.default_rng(21).integers(0, 1 << 63, HASHES, np.uint64) << np.uint64(1) | np.uint64(1)


def signatures(texts: Sequence[str]) -> NDArray[np.uint16]:
    """Return signatures (n, HASHES) of clean texts. Pairs begin before the first character and end after the last."""
    signed = np.empty((len(texts), HASHES), np.uint16)
    start = size = 0
    for i, text in enumerate(texts):
        size += len(text) + 1
        if size >= _CHARACTERS or i + 1 == len(texts):
            codes = code_points(texts[start : i + 1])
            points = codes.points.astype(np.uint64)
            pairs = _mixed(points[:-1] << np.uint64(32) | points[1:])
            smallest = [np.minimum.reduceat(pairs * multiplier, codes.starts) for multiplier in _MULTIPLIERS]
            # The high bits of the smallest hash are nearly zero and the low ones weak: mixed again, any 16 are good.
            signed[start : i + 1] = _mixed(np.stack(smallest, axis=1)) >> np.uint64(48)
            start, size = i + 1, 0
    return signed


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (values ^ values >> _SHIFT) * _MIX
    return np.asarray(mixed ^ mixed >> _SHIFT, np.uint64)


def band_keys(signed: NDArray[np.uint16], band: int) -> NDArray[np.uint64]:
    """Return the key (n,) of one band of each signature (n, HASHES): its ROWS values, concatenated."""
    key = np.zeros(len(signed), np.uint64)
    for column in range(band * ROWS, (band + 1) * ROWS):
        key = key << np.uint64(16) | signed[:, column]
    return key


def similarity(signed: NDArray[np.uint16], one: NDArray[np.int32], other: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the estimated Jaccard similarity (m,) of texts `one` and `other` (m,); standard error at most 0.05."""
    alike = np.empty(len(one))
    for start in range(0, len(one), 1 << 14):
        part = slice(start, start + (1 << 14))
        alike[part] = (signed[one[part]] == signed[other[part]]).mean(1)
    return alike


ALIKE = 0.4
"""Estimated Jaccard similarity of character pairs from which two texts count as similar. Most copies of one template,
with other slot values or disguises, lie between 0.4 and 0.8."""
AKIN = 0.25
"""The same for a text and its group's representative; messages of different templates share less than 0.2."""


def groups(all_signed: NDArray[np.uint16], rows: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the index of the text that represents each text's group (n,), given signatures (n, HASHES).

    `rows` (n,) counts the messages with each text: the most common text, or the first of equals, represents a group.
    """
    representatives = np.empty(len(all_signed), np.int32)
    left, signed = np.arange(len(all_signed), dtype=np.int32), all_signed
    while len(left):
        components = _components(signed)
        order = np.lexsort((-rows[left], components)).astype(np.int32)
        chosen = order[np.searchsorted(components[order], components)]  # the most common text of each component
        representatives[left] = left[chosen]
        left = left[similarity(signed, np.arange(len(left), dtype=np.int32), chosen) < AKIN]
        signed = all_signed[left]
    return representatives


def _components(signed: NDArray[np.uint16]) -> NDArray[np.int32]:
    """Return the smallest index in each text's component (n,)."""
    parent = np.arange(len(signed), dtype=np.int32)
    for band in range(BANDS):
        keys = band_keys(signed, band)
        order = np.argsort(keys, kind="stable").astype(np.int32)
        same = keys[order[1:]] == keys[order[:-1]]
        later = np.flatnonzero(same) + 1
        starts = np.flatnonzero(np.concatenate([[True], ~same]))
        first = starts[np.searchsorted(starts, later, side="right") - 1]
        # Of texts with equal keys each is paired with the first of its bucket, and with the one before it.
        for one, other in ((order[later], order[first]), (order[later], order[later - 1])):
            apart = np.flatnonzero(_roots(parent, one) != _roots(parent, other))
            near = apart[similarity(signed, one[apart], other[apart]) >= ALIKE]
            _union(parent, one[near], other[near])
    return _roots(parent, np.arange(len(signed), dtype=np.int32))


def _roots(parent: NDArray[np.int32], items: NDArray[np.int32]) -> NDArray[np.int32]:
    roots = parent[items]
    while ((higher := parent[roots]) != roots).any():
        roots = higher
    return roots


def _union(parent: NDArray[np.int32], one: NDArray[np.int32], other: NDArray[np.int32]) -> None:
    """Put each pair into one group, named by its smallest number: hooking and jumping (Shiloach & Vishkin 1982)."""
    while len(one):
        one, other = _roots(parent, one), _roots(parent, other)
        apart = one != other
        one, other = one[apart], other[apart]
        np.minimum.at(parent, np.maximum(one, other), np.minimum(one, other))


# The template of a campaign: one of its messages, with slots where the others differ.
#
# Each message is aligned to the pivot, the most common one, by common characters at both ends, and in between by
# longest matching blocks (difflib). A character of the pivot is fixed if most messages have it; other characters, and
# places where many messages insert something, are slots. Masked numbers and links are slots with a name.


MEMBERS = 12
"""Most messages that are aligned."""
LENGTH = 400
"""Characters of a message that are aligned: six parts of an SMS."""

_MASKS = {
    character: name.split("_")[0] if name[:6] in ("amount", "number") else name
    for name, character in PLACEHOLDERS.items()
}
_AMOUNTS = {character for character, name in _MASKS.items() if name == "amount"}
_FIXED = 0.6  # share of messages with a character that makes it fixed; disguised copies lose one in ten or twenty
_INSERTED = 0.4  # share of messages inserting something at one place above which it is a slot
_SHORTEST = 2  # characters between two slots; fewer match by chance


class TemplatePiece(NamedTuple):
    """A part of a template: fixed text, or a slot, which is ‹…›, a masked item (‹phone›) or a sum as written."""

    text: str
    slot: bool


VARIES = TemplatePiece("‹…›", True)


def template(texts: Sequence[str], original: str | None = None) -> list[TemplatePiece]:
    """Return the pieces of the template of clean `texts`, most common first; `original` is the first, uncleaned."""
    pivot, *others = [text[:LENGTH] for text in texts[:MEMBERS]]
    matches = [1] * len(pivot)
    inserted = [0] * (len(pivot) + 1)
    for other in others:
        _align(pivot, other, matches, inserted)
    gaps = [count > _INSERTED * (len(others) + 1) for count in inserted]
    shown = _written_masks(pivot, original)
    parts: list[TemplatePiece] = []
    for i, character in enumerate(pivot):
        fixed = matches[i] >= _FIXED * (len(others) + 1)
        if gaps[i] or not fixed:
            parts.append(VARIES)
        if fixed:
            parts.append(TemplatePiece(shown.get(i, character), slot=i in shown))
    if gaps[-1]:
        parts.append(VARIES)
    return _merged(_merged(parts, shortest=1), shortest=_SHORTEST)


def _written_masks(pivot: str, original: str | None) -> dict[int, str]:
    """Return position -> shown text of the placeholders in clean text: sums as they were written, others by name."""
    shown = {}
    offsets = clean(original).offsets if original is not None and _AMOUNTS & set(pivot) else None
    for i, character in enumerate(pivot):
        if character in _MASKS:
            start, end = offsets[i] if offsets and character in _AMOUNTS else (0, 0)
            shown[i] = original[start:end].strip() if original and end else f"‹{_MASKS[character]}›"
    return shown


def _align(pivot: str, other: str, matches: list[int], inserted: list[int]) -> None:
    """Count the characters of the pivot that another text has, and the places where it inserts something."""
    start = _shared(pivot, other)  # most of a copy is equal at both ends: difflib, which is slow, gets the middle
    tail = _shared(pivot[start:][::-1], other[start:][::-1])
    end = len(pivot) - tail
    for i in (*range(start), *range(end, len(pivot))):
        matches[i] += 1
    at = at_other = 0
    between = SequenceMatcher(None, pivot[start:end], other[start : len(other) - tail], autojunk=False)
    for block in between.get_matching_blocks():
        if block.b > at_other and block.a == at:
            inserted[start + at] += 1
        for i in range(start + block.a, start + block.a + block.size):
            matches[i] += 1
        at, at_other = block.a + block.size, block.b + block.size


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts share at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _merged(parts: Sequence[TemplatePiece], *, shortest: int) -> list[TemplatePiece]:
    """Join fixed characters into pieces, and adjacent slots; a short piece between varying slots merges with them."""
    runs: list[TemplatePiece] = []
    for slot, group in groupby(parts, key=lambda part: part.slot):
        run = list(group)
        runs += run if slot else [TemplatePiece("".join(part.text for part in run), slot=False)]
    merged: list[TemplatePiece] = []
    for i, piece in enumerate(runs):
        lone = not piece.slot and len(piece.text) < shortest and 0 < i < len(runs) - 1
        if lone and runs[i - 1] == VARIES == runs[i + 1]:
            continue
        if piece != VARIES or not merged or merged[-1] != VARIES:
            merged.append(piece)
    return merged


def written(pieces: Sequence[TemplatePiece]) -> str:
    """Return a template as text."""
    return "".join(piece.text for piece in pieces)
