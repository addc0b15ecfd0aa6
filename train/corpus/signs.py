"""Which signs (model/signs.py) a message shows: an authored one by signs.jsonl, read by people; others by their family.

A row's signs are one string: ids with commas between them; "?" at the end says that signs which are not named may be
there too, "!id" that this one is not.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from jingyin.model.errors import InputError
from jingyin.model.signs import SIGN_IDS

UNKNOWN = "?"
ANNOTATED = files("jingyin.train.corpus").joinpath("signs.jsonl")
"""One JSON object a line: `row`, the id of a message, and `signs`, a list of ids."""

OF_FAMILIES = files("jingyin.train.corpus").joinpath("tables/family_signs.txt")

_Row = tuple[str, list[str]]


def row_id(text: str) -> str:
    """Return the id of an authored message: 16 hex digits of the sha256 of its text, slots unfilled."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def signs_of(text: str, family: str) -> str:
    """Return the signs of an authored message: as annotated, else what nearly all annotated ones of its family show."""
    return _annotated().get(row_id(text)) or _of_families().get(family, UNKNOWN)


def is_annotated(signs: str) -> bool:
    """Whether people said of a message which signs it shows."""
    return UNKNOWN not in signs.split(",")


def shown(signs: str) -> list[str]:
    """Return the ids of the signs that a message is known to show."""
    return [each for each in signs.split(",") if each not in ("", "-", UNKNOWN) and not each.startswith("!")]


def unknown_ids(signs: str) -> list[str]:
    """Return the ids in a row's signs that are no signs, sorted."""
    return sorted({each.removeprefix("!") for each in signs.split(",")} - {"", "-", UNKNOWN, *SIGN_IDS})


def sign_targets(signs: str) -> NDArray[np.float32]:
    """Return for each of SIGN_IDS 1 where it is there, 0 where it is not, NaN where nobody knows."""
    target = np.full(len(SIGN_IDS), 0.0 if is_annotated(signs) else np.nan, np.float32)
    for each in signs.split(","):
        if each.startswith("!"):
            target[SIGN_IDS.index(each[1:])] = 0.0
    target[[SIGN_IDS.index(each) for each in shown(signs)]] = 1.0
    return target


def find_errors(ids: frozenset[str] | None = None) -> list[str]:
    """Return a sentence per error of signs.jsonl; with `ids`, those of all packaged messages, also for rows of none."""
    wrong: list[str] = []
    seen: set[str] = set()
    for number, row in enumerate(_rows(), 1):
        wrong += [f"signs.jsonl:{number}: {error}" for error in _row_errors(row, seen, ids)]
    return wrong


def _row_errors(row: _Row | None, seen: set[str], ids: frozenset[str] | None) -> Iterator[str]:
    """Yield what is wrong with a row; `seen` are the ids of those before it."""
    if row is None:
        yield 'not such a row as {"row": "9ad32340e68f8436", "signs": ["joke"]}; write one a line'
        return
    name, signs = row
    if name in seen:
        yield f"the id {name} comes twice; keep one line"
    seen.add(name)
    if ids is not None and name not in ids:
        yield f"no message has the id {name}; remove the line"
    if unknown := sorted(set(signs) - set(SIGN_IDS)):
        yield f"unknown signs {', '.join(unknown)}; known: {', '.join(SIGN_IDS)}"


def _rows() -> list[_Row | None]:
    return [_row(line) for line in ANNOTATED.read_text(encoding="utf-8").splitlines()]


def _row(line: str) -> _Row | None:
    """Return the message id and the signs in a line of signs.jsonl, None where it holds something else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match row:
        case {"row": str(name), "signs": [*signs]} if all(isinstance(each, str) for each in signs):
            return name, signs
    return None


@cache
def _annotated() -> dict[str, str]:
    """Return the annotated signs by message id; "-" stands for none. Raises InputError that lists all errors."""
    if wrong := find_errors():
        raise InputError("the signs of authored messages can't be used:\n" + "\n".join(wrong))
    return {row[0]: ",".join(row[1]) or "-" for row in _rows() if row}


@cache
def _of_families() -> dict[str, str]:
    rows = (line.split(" ") for line in OF_FAMILIES.read_text(encoding="utf-8").splitlines() if line[0] != "#")
    return {family: ",".join([*signs, UNKNOWN]) for family, *signs in rows}
