"""A block: consecutive rows of an input file, what a worker scores at a time."""

import csv
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from io import BufferedReader
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from jingyin.model.errors import InputError

ROWS = 4096
BYTES = 4 << 20
"""A block ends at so many rows or about so many bytes of input."""

Position = tuple[int, ...]
"""Where a block begins in its file; each reader has its own three numbers."""

START: Position = (0, 0, 0)


class Reject(NamedTuple):
    """A row that can't be scored: its number in the file, from 1 (JSON: the line), and why."""

    row: int
    reason: str


class Block(NamedTuple):
    """Consecutive rows of a file.

    `numbers` are those of the rows of `batch`; `next` is the position after the block, and `share` how much of the
    file has been read by then, 0 to 1.
    """

    batch: pa.RecordBatch
    numbers: Sequence[int]
    rejects: list[Reject]
    next: Position
    share: float

    @property
    def records(self) -> int:
        """Rows read, rejects included."""
        return len(self.numbers) + len(self.rejects)


def share_read(sizes: Sequence[int], source: int, block: Block) -> float:
    """Return how much of all inputs is read with a block of input `source`, 0 to 1; `sizes` are theirs in bytes."""
    return (sum(sizes[:source]) + block.share * sizes[source]) / sum(sizes)


# Lines of a text file from an offset on, and their way into blocks.


MAX_LINE = 4 << 20
"""Bytes of the longest line; what is longer is cut there, so that a file without line breaks can't fill memory."""

TOO_LONG = "line over 4 MiB"

Line = tuple[bytes, int]
"""A line with its line break, and the offset after it."""

_BOM = b"\xef\xbb\xbf"


class Lines:
    """Iterates over the lines of a file from `offset` on, which counts uncompressed bytes.

    Going on from an offset of a compressed file reads and drops what lies before: no format of the three can seek.
    """

    def __init__(self, path: Path, codec: str | None, offset: int = 0) -> None:
        self.offset = 0
        self._size = path.stat().st_size
        self._file = pa.OSFile(str(path))
        stream = pa.CompressedInputStream(self._file, codec) if codec else self._file
        self._stream = BufferedReader(cast("Any", stream), 1 << 20)
        self._skip_mark(path)
        if offset and not codec:
            self._stream.seek(offset)
            self.offset = offset
        while self.offset < offset:
            self.offset += len(self._stream.read(min(1 << 20, offset - self.offset)))

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._file.close()

    def __iter__(self) -> Iterator[Line]:
        read: Callable[[int], bytes] = cast(BinaryIO, self._stream).readline
        while line := read(MAX_LINE):
            self.offset += len(line)
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                self._drop_rest(read)
            yield line, self.offset

    def _drop_rest(self, read: Callable[[int], bytes]) -> None:
        while rest := read(MAX_LINE):
            self.offset += len(rest)
            if rest.endswith(b"\n"):
                return

    def share(self) -> float:
        """Return how much of the file has been read, 0 to 1."""
        return float(self._file.tell() / self._size)

    def _skip_mark(self, path: Path) -> None:
        start = self._stream.peek(3)[:3]
        if start.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"{path} is UTF-16; convert it first: iconv -f UTF-16 -t UTF-8")
        if start == _BOM:
            self.offset = len(self._stream.read(3))


class Record(NamedTuple):
    """One record of a text file: a value, a reason to reject it, or neither when the line is blank.

    `end` is the offset after it.
    """

    value: Any
    reason: str | None
    end: int


Build = Callable[[list[Any]], tuple[pa.RecordBatch, dict[int, str]]]
"""Values -> rows, and the reasons why some of them, by index, are no rows."""


def cut(records: Iterator[Record], at: Position, build: Build, share: Callable[[], float]) -> Iterator[Block]:
    """Yield blocks of records; a position is (offset, records read of the file, 0)."""
    offset, row, _ = at
    values: list[Any] = []
    numbers: list[int] = []
    rejects: list[Reject] = []

    def block(end: int) -> Block:
        batch, misfits = build(values)
        misread = [Reject(numbers[index], reason) for index, reason in misfits.items()]
        kept = [number for index, number in enumerate(numbers) if index not in misfits]
        return Block(batch, kept, sorted([*rejects, *misread]), (end, row, 0), share())

    end, begun = offset, row
    for value, reason, end in records:
        row += 1
        if reason:
            rejects.append(Reject(row, reason))
        elif value is not None:
            values.append(value)
            numbers.append(row)
        if row - begun >= ROWS or end - offset >= BYTES:
            yield block(end)
            offset, begun, values, numbers, rejects = end, row, [], [], []
    if row > begun:
        yield block(end)


# CSV with a header (RFC 4180). Every column stays text: a guess would turn 0138 into a number.
#
# pyarrow's reader is faster, but gives a whole file up for one bad row, and does not say which.


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


def _csv_records(lines: Iterator[Line], encoding: str, width: int | None) -> Iterator[Record]:
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
        header = next(_csv_records(iter(lines), encoding, None), None)
    if header is None or header.value is None:
        raise InputError(f"{path} does not begin with a header of column names in {encoding}; add one, or name the "
                         "coding with --encoding")  # fmt: skip
    return pa.schema([pa.field(name, pa.string()) for name in header.value])


def csv_blocks(path: Path, codec: str | None, encoding: str, at: Position) -> Iterator[Block]:
    """Yield blocks; the header is no row, a blank line is one that is left out."""
    schema = csv_schema(path, codec, encoding)
    with Lines(path, codec, at[0]) as lines:
        records = _csv_records(iter(lines), encoding, len(schema))
        if not at[1]:
            next(records)

        def build(rows: list[list[str]]) -> tuple[pa.RecordBatch, dict[int, str]]:
            columns = zip(*rows, strict=True) if rows else [()] * len(schema)
            return pa.record_batch([pa.array(column, pa.string()) for column in columns], schema), {}

        yield from cut(records, at, build, lines.share)


# JSON, one object a line. The first block gives the columns their types; what does not fit them later is rejected.


_MISFIT = (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError)


def _json_records(lines: Iterator[Line], encoding: str) -> Iterator[Record]:
    for line, end in lines:
        try:
            value = json.loads(line.decode(encoding)) if line.strip() else None
        except UnicodeDecodeError:
            yield Record(None, f"not {encoding.upper()}", end)
        except (ValueError, RecursionError):
            yield Record(None, TOO_LONG if len(line) == MAX_LINE else "malformed JSON", end)
        else:
            wrong = None if value is None or isinstance(value, dict) else "not a JSON object"
            yield Record(None if wrong else value, wrong, end)


def json_schema(path: Path, codec: str | None, encoding: str, text_column: str) -> pa.Schema:
    """Return the columns of the first rows. Raises no error for a row that is none: it will be rejected."""
    with Lines(path, codec) as lines:
        rows = [record.value for record in islice(_json_records(iter(lines), encoding), ROWS) if record.value]
    names = dict.fromkeys(name for row in rows for name in row if _is_utf8(name))
    kinds = [pa.string() if name == text_column else _kind([row.get(name) for row in rows]) for name in names]
    return pa.schema(list(zip(names, kinds, strict=True)))


def _is_utf8(name: str) -> bool:
    """Whether a key can name a column: half of a cut emoji, a lone surrogate, can't."""
    return name.encode(errors="ignore").decode() == name


def _kind(values: Sequence[Any]) -> pa.DataType:
    """Return the type of a column: that of all values, else of the first that Arrow takes; strings if there is none."""
    for tried in chain([values], ([value] for value in values if value is not None)):
        with suppress(*_MISFIT):
            found = pa.array(tried).type
            return pa.string() if pa.types.is_null(found) else found
    return pa.string()


def json_blocks(path: Path, codec: str | None, encoding: str, schema: pa.Schema, at: Position) -> Iterator[Block]:
    """Yield blocks; row numbers are those of lines, and blank lines are left out."""
    with Lines(path, codec, at[0]) as lines:
        yield from cut(_json_records(iter(lines), encoding), at, partial(_build, schema=schema), lines.share)


def _build(rows: list[dict[str, Any]], schema: pa.Schema) -> tuple[pa.RecordBatch, dict[int, str]]:
    kind = pa.struct(list(schema))
    misfits = {index: "unknown key" for index, row in enumerate(rows) if _loses(row, kind)}
    if not _fit(rows, schema):
        misfits |= {index: "wrong type" for index, row in enumerate(rows) if not _fit([row], schema)}
    kept = [row for index, row in enumerate(rows) if index not in misfits]
    return pa.RecordBatch.from_pylist(kept, schema=schema), misfits


def _fit(rows: list[dict[str, Any]], schema: pa.Schema) -> bool:
    try:
        pa.RecordBatch.from_pylist(rows, schema=schema)
    except _MISFIT:
        return False
    return True


def _loses(value: object, kind: pa.DataType) -> bool:
    """Whether a value has keys, in whatever depth of objects and lists, that its type lacks: Arrow would drop them."""
    if isinstance(value, dict) and pa.types.is_struct(kind):
        known = set(kind.names)
        return not known.issuperset(value) or any(_loses(inner, kind.field(name).type) for name, inner in value.items())
    if isinstance(value, list) and pa.types.is_list(kind):
        return any(_loses(inner, kind.value_type) for inner in value)
    return False


# Parquet, page by page: a row group of any size is never held as a whole.


def _open(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, buffer_size=1 << 18, pre_buffer=False)


def parquet_schema(path: Path) -> pa.Schema:
    """Return the columns; metadata of writers (pandas, datasets) describes a table that the output no longer is."""
    with _open(path) as file:
        return pa.schema([field.remove_metadata() for field in file.schema_arrow])


def parquet_blocks(path: Path, at: Position) -> Iterator[Block]:
    """Yield blocks; a position is (row group, batches read of it, rows read of the file)."""
    group, done, row = at
    with _open(path) as file:
        rows = file.metadata.num_rows
        for number in range(group, file.num_row_groups):
            size = _batch_rows(file.metadata.row_group(number))
            batches = file.iter_batches(size, [number], use_threads=False)
            skip = done if number == group else 0
            for index, batch in enumerate(islice(batches, skip, None), skip + 1):
                numbers = range(row + 1, row + batch.num_rows + 1)
                row += batch.num_rows
                yield Block(batch, numbers, [], (number, index, row), row / rows)


def _batch_rows(group: pq.RowGroupMetaData) -> int:
    return max(1, min(ROWS, BYTES * int(group.num_rows) // max(1, int(group.total_byte_size))))
