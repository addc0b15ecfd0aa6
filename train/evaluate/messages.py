"""Reads labelled messages from JSON lines or Parquet: what a model is judged on."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
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
from jingyin.train.corpus.signs import UNKNOWN, unknown_ids

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
