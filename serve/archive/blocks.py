"""Blocks of rows, which readers yield and workers score, and the options of reading."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jingyin.serve.archive.writers import as_json, values_of

ROWS = 4096
BYTES = 4 << 20
"""A block ends after this many rows, or about this many bytes (Parquet) or characters (text) of input."""

NULL_TEXT = "null text"


@dataclass(frozen=True)
class ReadOptions:
    """How to read files: the columns of texts and ids, and properties that CSV and JSON don't state.

    With `encoding` None a file must be UTF-8, or UTF-16 with a byte order mark. `strict` rejects rows with undecodable
    bytes, which otherwise become U+FFFD. `keep` stores the whole line of rejected rows. Only `columns` are read, those
    of JSON as text; None reads all.
    """

    text: str = "text"
    id: str | None = None
    encoding: str | None = None
    delimiter: str = ","
    strict: bool = False
    keep: bool = False
    columns: tuple[str, ...] | None = None


class Reject(NamedTuple):
    """A row that can't be scored: its number, the reason, its id if it has one, and on request the row itself."""

    row: int
    reason: str
    id: str = ""
    line: str = ""


class Block(NamedTuple):
    """Consecutive rows of a file that a worker scores at a time.

    `texts` are strings without nulls, one per row of `batch`; `numbers` (n,) are the row numbers; `replaced` (n,)
    counts the undecodable bytes of each row. After this block `next` rows of the file have been read, and `share` of
    it, 0 to 1.
    """

    batch: pa.RecordBatch
    texts: pa.Array
    numbers: NDArray[np.int64]
    replaced: NDArray[np.int32]
    rejects: list[Reject]
    next: int
    share: float


@dataclass(frozen=True)
class InputFile:
    """An input file: names of all columns, schema of those read, approximate number of rows.

    `blocks` yields the blocks after a given number of rows.
    """

    path: Path
    names: list[str]
    schema: pa.Schema
    rows: int
    blocks: Callable[[int], Iterator[Block]]


def fit(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return a column as another type that holds its values; objects, lists and other nested values as JSON."""
    try:
        return column if column.type == kind else column.cast(kind)
    except pa.ArrowException:
        texts = [None if value is None else as_text(value) for value in values_of(column)]
        return pa.array(texts, kind)


def as_text(value: object) -> str:
    """Return a value as text: strings unchanged, None as "", everything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else as_json(value, exact=True)
