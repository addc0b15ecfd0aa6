"""CSV with a header (RFC 4180). Every column stays text: a guess would turn 0138 into a number.

pyarrow's reader is faster, but gives a whole file up for one bad row, and does not say which.
"""

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from jingyin.model.errors import InputError
from jingyin.serve.relabel.block import Block, Position
from jingyin.serve.relabel.lines import MAX_LINE, TOO_LONG, Line, Lines, Record, cut


class _Feed:
    """Gives the csv module its lines, and takes back those of a record that turned out broken.

    A quote that is never closed would swallow the file: only the record's first line is given up, the others are read
    again.
    """

    def __init__(self, lines: Iterator[Line], encoding: str) -> None:
        self._lines = lines
        self._encoding = encoding
        self._again: deque[Line] = deque()
        self._taken: list[Line] = []
        self.error: str | None = None

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        line, end = self._again.popleft() if self._again else next(self._lines)
        self._taken.append((line, end))
        if len(line) == MAX_LINE:
            self.error = self.error or TOO_LONG
        try:
            return line.decode(self._encoding)
        except UnicodeDecodeError:
            self.error = self.error or f"not {self._encoding.upper()}"
            return line.decode(self._encoding, "surrogateescape")

    def complete(self, lines: int | None = None) -> int:
        """End a record of so many of the lines taken, by default all, and return the offset after it."""
        taken, self._taken, self.error = self._taken, [], None
        kept = taken[:lines]
        self._again.extendleft(reversed(taken[len(kept) :]))
        return kept[-1][1]


def _records(lines: Iterator[Line], encoding: str, width: int | None) -> Iterator[Record]:
    feed = _Feed(lines, encoding)
    reader = csv.reader(feed, strict=True)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            error = feed.error or "malformed CSV"
            yield Record(None, error, feed.complete(1))
            continue
        wrong = feed.error or (width and fields and len(fields) != width and "wrong number of fields") or None
        yield Record(None if wrong else fields or None, wrong, feed.complete())


def csv_schema(path: Path, codec: str | None, encoding: str) -> pa.Schema:
    """Return the columns that the header names, all of them strings; raises InputError when there is no header."""
    with Lines(path, codec) as lines:
        header = next(_records(iter(lines), encoding, None), None)
    if header is None or header.value is None:
        raise InputError(f"{path} does not begin with a header of column names in {encoding}; add one, or name the "
                         "coding with --encoding")  # fmt: skip
    return pa.schema([pa.field(name, pa.string()) for name in header.value])


def csv_blocks(path: Path, codec: str | None, encoding: str, at: Position) -> Iterator[Block]:
    """Yield blocks; the header is no row, a blank line is one that is left out."""
    schema = csv_schema(path, codec, encoding)
    with Lines(path, codec, at[0]) as lines:
        records = _records(iter(lines), encoding, len(schema))
        if not at[1]:
            next(records)

        def build(rows: list[list[str]]) -> tuple[pa.RecordBatch, dict[int, str]]:
            columns = zip(*rows, strict=True) if rows else [()] * len(schema)
            return pa.record_batch([pa.array(column, pa.string()) for column in columns], schema), {}

        yield from cut(records, at, build, lines.share)
