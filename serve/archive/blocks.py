"""Blocks of rows, what readers give and workers score; and how inputs are read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jingyin.serve.archive.writers import as_json

ROWS = 4096
BYTES = 4 << 20
"""A block ends at so many rows, or about so many bytes (of Parquet) or characters of input."""

NULL_TEXT = "null text"


@dataclass(frozen=True)
class Reading:
    """How to read files: the columns of texts and ids, and properties that CSV and JSON don't state.

    `encoding` None is UTF-8, or UTF-16 by its mark, unless the first rows look otherwise. `strict` rejects rows with
    bytes that aren't text, which else become U+FFFD. `keep` adds rejected rows to their rejects. `columns` are all that
    is read, those of JSON as text; None reads everything.
    """

    text: str = "text"
    id: str | None = None
    encoding: str | None = None
    delimiter: str = ","
    strict: bool = False
    keep: bool = False
    columns: tuple[str, ...] | None = None


class Reject(NamedTuple):
    """A row that can't be scored: its number, why, its id if there is one, and on request the row itself."""

    row: int
    reason: str
    id: str = ""
    line: str = ""


class Block(NamedTuple):
    """Consecutive rows of a file that a worker scores at a time.

    `texts` are strings without nulls, one a row of `batch`; `numbers` (n,) those of its rows; `replaced` (n,) counts
    the
    bytes of a row that weren't text. `next` rows of the file have been read with it, `share` of the file, 0 to 1.
    """

    batch: pa.RecordBatch
    texts: pa.Array
    numbers: NDArray[np.int64]
    replaced: NDArray[np.int32]
    rejects: list[Reject]
    next: int
    share: float


@dataclass(frozen=True)
class Source:
    """An input file: names of all its columns, schema of those read, about how many rows, blocks behind a row."""

    path: Path
    names: list[str]
    schema: pa.Schema
    rows: int
    blocks: Callable[[int], Iterator[Block]]


def fit(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return a column as another type that holds its values; objects, lists and others without a text form as JSON."""
    try:
        return column if column.type == kind else column.cast(kind)
    except pa.ArrowException:
        texts = [None if value is None else as_text(value) for value in column.to_pylist()]
        return pa.array(texts, kind)


def as_text(value: object) -> str:
    """Return a value as text: text as it is, nothing as an empty one, all else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else as_json(value)
