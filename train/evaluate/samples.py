"""Labelled messages to judge on, from JSON lines or Parquet, and the subsets that are reported separately."""

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jingyin.model.cascade import FLAGGED_INDEX
from jingyin.model.errors import InputError
from jingyin.model.files import file_sha256
from jingyin.model.labels import BENIGN, LABELS
from jingyin.model.signs import SIGN_IDS
from jingyin.model.text import clean
from jingyin.train.corpus.public import SOURCES, cut, unknown_label
from jingyin.train.corpus.rows import UNKNOWN, unknown_ids
from jingyin.train.evaluate.statistics import Bools, Ints

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
"""Endings of the names of files that are read."""

NOT_SCORED = ("fragment", "borderline")
"""Columns that exclude a row from the figures if true."""

_BENIGN_INDEX = [LABELS.index(label) for label in BENIGN]
_SEED = 7

RawRow = dict[str, Any]


@dataclass(frozen=True)
class Samples:
    """Labelled messages: texts, label indices (n,), family, source, group, pair, case, writer of each ("" for none).

    Messages of one group are similar or of one situation; those of one minimal pair are nearly the same text.
    `templates` are the texts that messages were made from: the text itself, if the file names none. `signs` are as in
    corpus/rows.py, "?" for a message without annotated signs. `where` names file and row, `left_out` counts rows
    that are not scored, `files` gives the sha256 of each file by its path as given.
    """

    texts: list[str]
    templates: list[str]
    labels: Ints
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
    def benign(self) -> Bools:
        """Which rows (n,) have a benign label."""
        return np.isin(self.labels, _BENIGN_INDEX)

    @property
    def flagged(self) -> Bools:
        """Which rows (n,) have a flagged label."""
        return np.isin(self.labels, FLAGGED_INDEX)

    @property
    def traffic(self) -> Bools:
        """Which rows (n,) are benign messages that people sent: of a public corpus."""
        return self.benign & np.array([source in SOURCES for source in self.sources], np.bool_)

    @property
    def group_numbers(self) -> Ints:
        """The number of each row's group (n,); a row of no group is one of its own."""
        numbers: dict[str | int, int] = {}
        return np.array([numbers.setdefault(group or i, len(numbers)) for i, group in enumerate(self.groups)], np.int64)

    def take(self, index: Ints) -> "Samples":
        """Return the messages at `index`, in that order; file metadata is unchanged."""
        lists = {name: column for name, column in vars(self).items() if isinstance(column, list)}
        taken: dict[str, Any] = {name: [column[i] for i in index.tolist()] for name, column in lists.items()}
        return replace(self, labels=self.labels[index], **taken)


def read_messages(paths: Sequence[Path]) -> Samples:
    """Read `text`, `label` and, if there, `template`, `family`, `source`, `group`, `pair`, `case`, `writer`, `signs`.

    The rows are those of all `paths`. A pair without a group is a group. Raises InputError, with file and row, for a
    missing text, a missing or unknown label or unknown signs.
    """
    numbered = [(f"{path}:{number}", path, row) for path in paths for number, row in enumerate(read_rows(path), 1)]
    scored = [item for item in numbered if not any(item[2].get(key) for key in NOT_SCORED)]
    for where, _, row in scored:
        refuse_unlabelled(row, where)
        _refuse_signs(row, where)
    rows = [row for _, _, row in scored]

    def column(name: str) -> list[str]:
        return [str(row.get(name) or "") for row in rows]

    return Samples(
        texts=column("text"),
        templates=[str(row.get("template") or row["text"]) for row in rows],
        labels=label_indices(rows),
        families=[str(row.get("family") or row["label"]) for row in rows],
        sources=[str(row.get("source") or path.stem) for _, path, row in scored],
        groups=[group or pair for group, pair in zip(column("group"), column("pair"), strict=True)],
        pairs=column("pair"),
        cases=column("case"),
        writers=column("writer"),
        signs=[row.get("signs") or UNKNOWN for row in rows],
        where=[where for where, _, _ in scored],
        left_out=len(numbered) - len(scored),
        files={str(path): file_sha256(path) for path in paths},
    )


def label_indices(rows: Sequence[RawRow]) -> Ints:
    """Return the index in LABELS of each row's label (n,), -1 for a row without one."""
    return np.array([LABELS.index(row["label"]) if row.get("label") else -1 for row in rows], np.int64)


def read_rows(path: Path, columns: Sequence[str] | None = None) -> list[RawRow]:
    """Return the rows of a .parquet, .jsonl or .jsonl.gz file; raises InputError if it can't be read as such.

    Of a Parquet file, which may be a training split of 700,000 rows, only `columns` are read.
    """
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{path} is neither .parquet nor .jsonl; convert it, one message a row with text and label")
    rows: list[RawRow]
    try:
        if path.suffix == ".parquet":
            names = pq.read_schema(path).names
            read_columns = names if columns is None else [name for name in columns if name in names]
            rows = pq.read_table(path, columns=read_columns, partitioning=None).to_pylist()
        else:
            rows = list(_lines(path))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, pa.ArrowException) as error:
        raise InputError(f"{path} can't be read ({type(error).__name__}); check the path and the file") from None
    if not rows:
        raise InputError(f"{path} holds no rows; wanted one message a row with text and label")
    return rows


def _lines(path: Path) -> Iterator[RawRow]:
    encoding = "utf-8-sig"  # Windows begins a file with a mark
    with gzip.open(path, "rt", encoding=encoding) if path.suffix == ".gz" else path.open(encoding=encoding) as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: not a JSON object; write one object a line")
            yield row


def refuse_unlabelled(row: RawRow, where: str, *, open_too: bool = False) -> None:
    """Raise InputError for a row without a text or without one of LABELS; `open_too` accepts a missing label."""
    if not isinstance(row.get("text"), str):
        raise InputError(f"{where}: no text; every row needs 'text', a string")
    if (label := row.get("label")) is None and not open_too:
        raise InputError(f"{where}: no label; every row needs 'label', one of {', '.join(LABELS)}")
    if label is not None and label not in LABELS:
        raise InputError(f"{where}: {unknown_label(str(label), recurs=True)}; known: {', '.join(LABELS)}")


def _refuse_signs(row: RawRow, where: str) -> None:
    signs = row.get("signs") or UNKNOWN
    if not isinstance(signs, str):
        raise InputError(f"{where}: 'signs' is a {type(signs).__name__}; write ids of signs with commas between them")
    if unknown := ", ".join(each[:40] for each in unknown_ids(signs)):
        raise InputError(f"{where}: unknown signs {unknown!r}; known: {', '.join(SIGN_IDS)}")


def refuse_empty_class(labels: Sequence[str], paths: Sequence[Path]) -> None:
    """Raise InputError if any of LABELS is missing in `labels`, those of the rows of `paths` to score."""
    if empty := [label for label in LABELS if label not in set(labels)]:
        raise InputError(
            f"{', '.join(map(str, paths))}: no row to score has label {', '.join(empty)}; add rows of it, or another "
            "file: recall of an empty class is not defined"
        )


def texts_in(training: Path) -> set[str]:
    """Return the texts of a training split, and the templates that they were made from, as `is_among` compares them."""
    names = ("text", "template")
    raw = {str(row[name]) for row in read_rows(training, names) for name in names if row.get(name)}
    return {clean(text).text for text in raw}


def is_among(text: str, seen: Set[str]) -> bool:
    """Return whether `texts_in` has found a text: as it is, or cut as a corpus cuts long messages."""
    return any(clean(each).text in seen for each in {text, cut(" ".join(text.split()))})


def read_traffic(paths: Sequence[Path], seen: Set[str], sources: Set[str]) -> dict[str, list[str]]:
    """Return the distinct texts of each file of ordinary messages, without those that are among `seen`.

    They go by the file's name, or by its path if the name is that of an earlier file or one of `sources`. Raises
    InputError for a row without a text, and for a file without a text that is not seen.
    """
    texts_by_file: dict[str, list[str]] = {}
    for path in paths:
        rows = read_rows(path)
        if not all(isinstance(row.get("text"), str) for row in rows):
            raise InputError(f"{path}: a row has no text; every row of traffic needs 'text', a string")
        texts = [text for text in dict.fromkeys(row["text"] for row in rows) if not is_among(text, seen)]
        if not texts:
            raise InputError(f"{path}: training has seen all of its messages; name traffic that it has not")
        name = path.name.partition(".")[0]
        texts_by_file[str(path) if name in {*texts_by_file, *sources} else name] = texts
    return texts_by_file


# Parts of the data.

# One SMS holds 70 characters in UCS-2, and each part of a longer one 67.
_LENGTHS = ((20, "1-20 characters"), (70, "21-70 characters"), (134, "71-134 characters"))
_TRADITIONAL_SHARE = 0.05

UNSEEN, WRITERS, LIKE, REAL = "unseen cases", "unseen writers", "like training", "real traffic"


class Seen(NamedTuple):
    """Names of the cases, writers and sources in the training data."""

    cases: frozenset[str]
    writers: frozenset[str]
    sources: frozenset[str]


def seen_in(training: Path) -> Seen | None:
    """Return the cases, writers and sources in a training split, or None if there is no such file."""
    if not training.is_file():
        return None
    names = ("case", "writer", "source")
    names_of_rows = {tuple(str(row.get(name) or "") for name in names) for row in read_rows(training, names)}
    return Seen(*map(frozenset, zip(*names_of_rows, strict=True)))


def seen_unseen(messages: Samples, seen: Seen | None) -> dict[str, Ints]:
    """Return the rows of each kind of situation, without empty kinds; none if `seen`, the training data, is unknown.

    Rows of cases and of writers that training has not seen resemble new threats.
    """
    if seen is None:
        return {}

    def none_of(names: Sequence[str], known: Set[str]) -> Bools:
        return np.array([bool(name) and name not in known for name in names], np.bool_)

    unseen = none_of(messages.cases, seen.cases)
    by_others = none_of(messages.writers, seen.writers) & ~unseen
    real = messages.traffic & ~unseen & ~by_others
    kinds = {UNSEEN: unseen, WRITERS: by_others, LIKE: ~(unseen | by_others | real), REAL: real}
    return {name: np.flatnonzero(rows) for name, rows in kinds.items() if rows.any()}


def unseen_rows(messages: Samples, kinds: Mapping[str, Ints]) -> Bools:
    """Return which rows (n,) are of unseen cases; all if none is known to be."""
    return np.isin(np.arange(len(messages)), kinds.get(UNSEEN, np.arange(len(messages))))


def length(text: str) -> str:
    """Name the bucket of a message's length."""
    return next((name for most, name in _LENGTHS if len(text) <= most), "over 134 characters")


def script(text: str) -> str:
    """Name the script of a message: traditional if the normaliser folds one character in twenty or more."""
    han = sum("\u3400" <= character <= "\u9fff" for character in text)
    if not han:
        return "no Han"
    return "traditional" if clean(text).edits.get("traditional", 0) >= _TRADITIONAL_SHARE * han else "simplified"


def parts(values: Sequence[str], name: Callable[[str], str] = str, among: Bools | None = None) -> dict[str, Ints]:
    """Return the row indices by value, sorted, as named by `name`; only of rows that are `among` (n,), if given."""
    rows_by_value: dict[str, list[int]] = defaultdict(list)
    for i, value in enumerate(values):
        if among is None or among[i]:
            rows_by_value[name(value)].append(i)
    return {value: np.array(rows, np.int64) for value, rows in sorted(rows_by_value.items())}


def pairs(messages: Samples, sides: Ints | Bools) -> list[Ints]:
    """Return the row indices of each minimal pair: the rows of one `pair`, where their `sides` (n,) differ."""
    return [rows for pair, rows in parts(messages.pairs).items() if pair and len(np.unique(sides[rows])) > 1]


def sample_evenly(messages: Samples, among: Bools, rows: int) -> list[int]:
    """Return up to `rows` of the rows that are `among` (n,), drawn by a fixed seed, evenly from families.

    This keeps hard families from being lost among plain traffic.
    """
    by_family: dict[str, list[int]] = defaultdict(list)
    for i in np.random.default_rng(_SEED).permutation(np.flatnonzero(among)).tolist():
        by_family[messages.families[i]].append(i)
    turn = {i: place for each in by_family.values() for place, i in enumerate(each)}
    return sorted(turn, key=turn.__getitem__)[:rows]
