"""Slices of the data in which a figure may hide: length, script, source, family; minimal pairs; even samples."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from jingyin.model.text import clean
from jingyin.train.evaluate.figures import Bools
from jingyin.train.evaluate.messages import Messages

# One SMS holds 70 characters in UCS-2, and each part of a longer one 67.
_LENGTHS = ((20, "1-20 characters"), (70, "21-70 characters"), (134, "71-134 characters"))
_TRADITIONAL_SHARE = 0.05
_SEED = 7


def length(text: str) -> str:
    """Name the bucket of a message's length."""
    return next((name for most, name in _LENGTHS if len(text) <= most), "over 134 characters")


def script(text: str) -> str:
    """Name the script of a message: traditional where the normaliser folds one character in twenty or more."""
    han = sum("\u3400" <= character <= "\u9fff" for character in text)
    if not han:
        return "no Han"
    return "traditional" if clean(text).edits.get("traditional", 0) >= _TRADITIONAL_SHARE * han else "simplified"


def dimensions(messages: Messages) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Return the row indices of each value of each dimension."""
    return {
        "length": _by(messages.texts, length),
        "script": _by(messages.texts, script),
        "source": _by(messages.sources, str),
    }


def families(messages: Messages, among: Bools) -> dict[str, NDArray[np.int64]]:
    """Return the row indices of each family, of those rows that are `among` (n,)."""
    found = _by(messages.families, str)
    kept = {family: rows[among[rows]] for family, rows in found.items()}
    return {family: rows for family, rows in sorted(kept.items()) if len(rows)}


def pairs(messages: Messages) -> list[NDArray[np.int64]]:
    """Return the row indices of each minimal pair: the rows of one `pair`, where their labels differ."""
    paired = _by(messages.pairs, str)
    paired.pop("", None)
    return [rows for rows in paired.values() if len(set(messages.labels[rows].tolist())) > 1]


def all_right(pairs: Sequence[NDArray[np.int64]], right: Bools) -> Bools:
    """Return for each pair whether all of its rows are `right` (n,)."""
    return np.array([bool(right[rows].all()) for rows in pairs], np.bool_)


def sample_evenly(messages: Messages, among: Bools, rows: int) -> list[int]:
    """Return up to `rows` of the rows that are `among` (n,), drawn by a fixed seed, evenly from families.

    So hard families are not lost among plain traffic.
    """
    drawn: dict[str, list[int]] = defaultdict(list)
    for i in np.random.default_rng(_SEED).permutation(np.flatnonzero(among)).tolist():
        drawn[messages.families[i]].append(i)
    turn = {i: place for each in drawn.values() for place, i in enumerate(each)}
    return sorted(turn, key=turn.__getitem__)[:rows]


def _by(values: Sequence[str], name: Callable[[str], str]) -> dict[str, NDArray[np.int64]]:
    found: dict[str, list[int]] = defaultdict(list)
    for i, value in enumerate(values):
        found[name(value)].append(i)
    return {value: np.array(rows, np.int64) for value, rows in sorted(found.items())}
