"""Reads labelled messages from JSON lines or Parquet: what a model is judged on."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jingyin.model.decision import FLAGGED_INDEX
from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.model.signs import SIGN_IDS
from jingyin.model.text import clean
from jingyin.train.corpus.rows import UNKNOWN, unknown_ids
from jingyin.train.evaluate.statistics import Bools

BENIGN = ("ordinary", "lawful_collection")
"""Labels whose rows count as false positives when they are flagged; other_threat is neither benign nor flagged."""

NOT_SCORED = ("fragment", "borderline")
"""Columns that, where true, take a row out of the figures."""

_BENIGN_INDEX = [LABELS.index(label) for label in BENIGN]

Row = dict[str, Any]


@dataclass(frozen=True)
class Messages:
    """Labelled messages: label indices (n,), and of each its family, source, group, pair, case, writer ("" for none).

    Messages of one group are alike or of one situation, and no independent messages; those of one minimal pair are
    nearly one text. `templates` are what messages were made from: the text itself, where the file names none. `signs`
    are as in corpus/signs.py, "?" for a message of which nobody said any. `where` names file and row, `left_out` counts
    rows that are not scored, `files` gives the sha256 of each file by its path as given.
    """

    texts: list[str]
    templates: list[str]
    labels: NDArray[np.int64]
    families: list[str]
    sources: list[str]
    groups: list[str]
    pairs: list[str]
    cases: list[str]
    writers: list[str]
    signs: list[str]
    where: list[str]
    left_out: int
    files: dict[str, str]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def benign(self) -> NDArray[np.bool_]:
        """Which rows (n,) have a benign label."""
        return np.isin(self.labels, _BENIGN_INDEX)

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Which rows (n,) have a flagged label."""
        return np.isin(self.labels, FLAGGED_INDEX)

    @property
    def group_numbers(self) -> NDArray[np.int64]:
        """The number of each row's group (n,); a row of no group is one of its own."""
        numbers: dict[str | int, int] = {}
        return np.array([numbers.setdefault(group or i, len(numbers)) for i, group in enumerate(self.groups)], np.int64)

    def take(self, index: NDArray[np.int64]) -> "Messages":
        """Return the messages at `index`, in that order; what is said of the files stays."""

        def some(values: list[str]) -> list[str]:
            return [values[i] for i in index.tolist()]

        return Messages(
            some(self.texts), some(self.templates), self.labels[index], some(self.families), some(self.sources),
            some(self.groups), some(self.pairs), some(self.cases), some(self.writers), some(self.signs),
            some(self.where), self.left_out, self.files,
        )  # fmt: skip


def read_messages(paths: Sequence[Path]) -> Messages:
    """Read `text`, `label` and, if there, `template`, `family`, `source`, `group`, `pair`, `case`, `writer`, `signs`.

    The rows are those of all `paths`. A pair without a group is a group. Raises InputError that names the file and row
    for a missing text, a missing or unknown label, unknown signs, and one that names the labels of which no row is left
    to score.
    """
    found = [(path, number, row) for path in paths for number, row in enumerate(read_rows(path), 1)]
    scored = [(path, number, row) for path, number, row in found if not any(row.get(key) for key in NOT_SCORED)]
    for path, number, row in scored:
        _check(row, f"{path}:{number}")
    rows = [row for _, _, row in scored]
    refuse_empty_class([row["label"] for row in rows], paths)
    return Messages(
        texts=[row["text"] for row in rows],
        templates=[str(row.get("template") or row["text"]) for row in rows],
        labels=label_indices(rows),
        families=[str(row.get("family") or row["label"]) for row in rows],
        sources=[str(row.get("source") or path.stem) for path, _, row in scored],
        groups=[str(row.get("group") or row.get("pair") or "") for row in rows],
        pairs=[str(row.get("pair") or "") for row in rows],
        cases=[str(row.get("case") or "") for row in rows],
        writers=[str(row.get("writer") or "") for row in rows],
        signs=[row.get("signs") or UNKNOWN for row in rows],
        where=[f"{path}:{number}" for path, number, _ in scored],
        left_out=len(found) - len(scored),
        files={str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths},
    )


def label_indices(rows: Sequence[Row]) -> NDArray[np.int64]:
    """Return the index in LABELS of each row's label (n,), -1 for a row without one."""
    return np.array([LABELS.index(row["label"]) if row.get("label") else -1 for row in rows], np.int64)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a .parquet or .jsonl file; raises InputError when it can't be read as such."""
    if path.suffix not in (".parquet", ".jsonl"):
        raise InputError(f"{path} is neither .parquet nor .jsonl; convert it, one message a row with text and label")
    try:
        rows = pq.read_table(path, partitioning=None).to_pylist() if path.suffix == ".parquet" else list(_lines(path))
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise InputError(f"{path} can't be read ({type(error).__name__}); check the path and the file") from None
    if not rows:
        raise InputError(f"{path} holds no rows; wanted one message a row with text and label")
    return rows


def _lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: not a JSON object; write one object a line")
            yield row


def _check(row: Row, where: str) -> None:
    if not isinstance(row.get("text"), str):
        raise InputError(f"{where}: no text; every row needs 'text', a string")
    if row.get("label") is None:
        raise InputError(f"{where}: no label; every row needs 'label', one of {', '.join(LABELS)}")
    if row["label"] not in LABELS:
        raise InputError(f"{where}: unknown label {str(row['label'])[:40]!r}; known: {', '.join(LABELS)}")
    signs = row.get("signs") or UNKNOWN
    if not isinstance(signs, str):
        raise InputError(f"{where}: 'signs' is a {type(signs).__name__}; write ids of signs with commas between them")
    if unknown := unknown_ids(signs):
        named = ", ".join(each[:40] for each in unknown)
        raise InputError(f"{where}: unknown signs {named!r}; known: {', '.join(SIGN_IDS)}")


def refuse_empty_class(labels: Sequence[str], paths: Sequence[Path]) -> None:
    """Raise InputError that names those of LABELS that none of `labels`, of the rows to score of `paths`, is."""
    counts = Counter(labels)
    empty = [label for label in LABELS if not counts[label]]
    if empty:
        raise InputError(
            f"{', '.join(map(str, paths))}: no row to score has label {', '.join(empty)}; add rows of it, or another "
            "file: recall of an empty class is not defined"
        )


# Slices of the data in which a figure may hide: length, script, source, family; minimal pairs; even samples.


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
