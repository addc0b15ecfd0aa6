"""CSV and JSON lines as blocks of rows: text of any encoding, line by line."""

import codecs
import csv
import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from io import BufferedReader, BytesIO, TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jingyin.model.errors import InputError
from jingyin.serve.archive.blocks import BYTES, NULL_TEXT, ROWS, Block, InputFile, ReadOptions, Reject, as_text
from jingyin.serve.archive.writers import as_json, kind_of
from jingyin.serve.encodings import KEEP, decodes, escaped, guess
from jingyin.serve.encodings import replaced as replaced_in

MAX_LINE = 4 << 20
"""Longest line in characters; the rest is dropped, so that a file without line breaks can't fill memory."""

TOO_LONG, MALFORMED_CSV, WRONG_WIDTH = "line over 4 MiB", "malformed CSV", "wrong number of fields"
LONG_FIELD = "field over 128 KiB, or unclosed quote"
"""The csv module's own limit, in characters: each unclosed quote has that much read twice."""
RESCUED = "jingyin_rescued"
"""The column for JSON values that fit no other column: an object as text, null if everything fits."""

_SAMPLE_ROWS, _SAMPLE_BYTES = 1000, 1 << 18
"""The sample for encoding and line ends; the types of JSON columns are those of the first ROWS rows."""
_STRANGE = 10  # lines in no known encoding that show a wrong encoding rather than damage
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")
_MISFIT = (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError, RecursionError)


class _Lines:
    """Iterates over the lines of a file, each with its line break."""

    def __init__(self, path: Path, encoding: str, newline: str) -> None:
        self._size = path.stat().st_size
        self._file, stream = _opened(path)
        self._text = TextIOWrapper(stream, encoding, KEEP, newline)

    def __iter__(self) -> Iterator[str]:
        line = self._text.readline(MAX_LINE).removeprefix("\ufeff")
        while line:
            yield line
            if len(line) == MAX_LINE and not line.endswith(("\n", "\r")):
                while (rest := self._text.readline(MAX_LINE)) and not rest.endswith(("\n", "\r")):
                    pass
            line = self._text.readline(MAX_LINE)

    def share(self) -> float:
        """Return how much of the file has been read, 0 to 1."""
        return float(self._file.tell() / self._size)

    def close(self) -> None:
        self._text.close()
        self._file.close()


def _opened(path: Path) -> tuple[pa.NativeFile, BufferedReader]:
    file, codec = pa.OSFile(str(path)), kind_of(path).codec
    return file, BufferedReader(cast("Any", pa.CompressedInputStream(file, codec) if codec else file), 1 << 20)


def open_text(path: Path, how: ReadOptions) -> InputFile:
    """Open a file of CSV or JSON lines; raises InputError for another encoding, or CSV without a header."""
    file, stream = _opened(path)
    with stream:
        head = stream.read(_SAMPLE_BYTES)
    file.close()
    encoding = _encoding_of(path, head, how)
    start = head.decode(encoding, "replace")
    opened = partial(_Lines, path, encoding, "\n" if "\n" in start or "\r" not in start else "\r")
    fault = f"not {encoding.removesuffix('-sig').upper()}"
    size = path.stat().st_size * (4 if kind_of(path).codec else 1)
    rows = size * max(1, start.count("\n")) // len(head) if head else 0
    schema_of, records_of, to_batch = _CSV if kind_of(path).format == "csv" else _JSON
    with closing(opened()) as lines:
        schema = whole = schema_of(path, iter(lines), how)
    if how.columns:
        schema = pa.schema([field for field in whole if field.name in how.columns])

    def read(start: int) -> Iterator[Block]:
        with closing(opened()) as lines:
            records = records_of(iter(lines), whole, how, fault)
            yield from _blocks_from(
                islice(records, start, None), start, partial(to_batch, schema, how), how, lines.share
            )

    return InputFile(path, whole.names, schema, rows, read)


def _encoding_of(path: Path, head: bytes, how: ReadOptions) -> str:
    """Return UTF-16 if the file has a byte order mark, else the encoding named, else UTF-8.

    Raises InputError if most of the first lines beyond ASCII aren't UTF-8.
    """
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if how.encoding:
        return how.encoding
    lines = (head.splitlines()[:-1] if len(head) == _SAMPLE_BYTES else head.splitlines())[:_SAMPLE_ROWS]
    foreign = [line for line in lines if not line.isascii()]
    strange = [line for line in foreign if not decodes(line, "utf-8")]
    likely = guess(strange) if strange else None
    if 2 * len(strange) <= len(foreign) or (not likely and len(strange) < _STRANGE):
        return "utf-8-sig"
    hint = f"they look like {likely}: --encoding {likely}" if likely else "name their coding with --encoding"
    raise InputError(f"{path} isn't UTF-8: {len(strange)} of its first {len(lines)} lines can't be decoded; {hint} "
                     "(or --encoding utf-8, to read it nevertheless)")  # fmt: skip


class _Parsed(NamedTuple):
    """A record of one or more lines: its value, or the reason why it has none; a blank line has neither."""

    value: Any
    reason: str | None
    lines: str
    replaced: int = 0


_ToBatch = Callable[[list[Any]], tuple[pa.RecordBatch, dict[int, str]]]
"""Values -> rows, and index -> reason for those that can't be scored."""


def _blocks_from(
    records: Iterator[_Parsed], row: int, to_batch: _ToBatch, how: ReadOptions, share: Callable[[], float]
) -> Iterator[Block]:
    while records_of_block := list(_up_to_a_block(records)):
        scorable = [i for i, record in enumerate(records_of_block) if record.value is not None and not record.reason]
        batch, misfits = to_batch([records_of_block[i].value for i in scorable])
        reasons = {i: record.reason for i, record in enumerate(records_of_block) if record.reason}
        reasons |= {scorable[i]: reason for i, reason in misfits.items()}
        rejects = []
        for i, reason in sorted(reasons.items()):
            value, _, lines, _ = records_of_block[i]
            identity = value.get(how.id) if how.id and isinstance(value, dict) else None
            shown = escaped(lines.rstrip("\r\n")) if how.keep else ""
            rejects.append(Reject(row + i + 1, reason, replaced_in(as_text(identity))[0], shown))
        numbered = [i for i in scorable if i not in reasons]
        numbers = np.array(numbered, np.int64) + row + 1
        replaced = np.array([records_of_block[i].replaced for i in numbered], np.int32)
        row += len(records_of_block)
        yield Block(batch, batch.column(how.text), numbers, replaced, rejects, row, share())


def _up_to_a_block(records: Iterator[_Parsed]) -> Iterator[_Parsed]:
    size = 0
    for record in islice(records, ROWS):
        yield record
        size += len(record.lines)
        if size >= BYTES:
            return


# CSV with a header (RFC 4180). Every column stays text: a guess would turn 0138 into a number.
#
# pyarrow's reader is faster, but rejects a whole file for one bad row, without saying which.


class _Feed:
    """Feeds lines to the csv module, and takes back those of a record that turned out to be malformed.

    An unclosed quote would swallow the file, so only the record's first line is rejected and the others are read again.
    """

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.again: deque[str] = deque()
        self.taken: list[str] = []

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        self.taken.append(self.again.popleft() if self.again else next(self._lines))
        return self.taken[-1]

    def complete(self, lines: int | None = None) -> str:
        """End a record after the first `lines` lines taken, by default all, and return them."""
        kept, again = self.taken[:lines], self.taken[len(self.taken[:lines]) :]
        self.taken = []
        self.again.extendleft(reversed(again))
        return "".join(kept)


def _csv_schema(path: Path, lines: Iterator[str], how: ReadOptions) -> pa.Schema:
    try:
        names = next(csv.reader(lines, delimiter=how.delimiter, strict=True))
    except (StopIteration, csv.Error):
        names = []
    if not names or any(replaced_in(name)[1] for name in names):
        raise InputError(f"{path} does not begin with a header of column names; add one, or name the coding with "
                         "--encoding")  # fmt: skip
    return pa.schema([(name, pa.string()) for name in names])


def _csv_records(lines: Iterator[str], schema: pa.Schema, how: ReadOptions, fault: str) -> Iterator[_Parsed]:
    """Yield the records after the header; a blank line has no value."""
    feed, names = _Feed(lines), schema.names
    reader = csv.reader(feed, delimiter=how.delimiter, strict=True)
    next(reader)
    feed.complete()
    while True:
        reason, fields = None, []
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "new-line character" in str(error):  # a carriage return within the last line, outside quotes
                line = feed.taken[-1].rstrip("\r\n")
                feed.taken[-1] = line.replace("\r", " ") + feed.taken[-1][len(line) :]
                feed.complete(0)
                continue
            line = feed.complete(1)
            reason = LONG_FIELD if "field limit" in str(error) else MALFORMED_CSV
            reason, held = TOO_LONG if len(line) == MAX_LINE else reason, line
        else:
            held = feed.complete()
        bad = 0 if held.isascii() else replaced_in(held)[1]
        if not reason and len(held) >= MAX_LINE and not held.endswith(("\n", "\r")):
            reason = TOO_LONG
        elif not reason and fields and len(fields) != len(names):
            reason = WRONG_WIDTH
        elif bad and how.strict:
            reason = fault
        if bad:
            fields = [replaced_in(field)[0] for field in fields]
        yield _Parsed(dict(zip(names, fields, strict=False)) if fields else None, reason, held, bad)


def _csv_rows(schema: pa.Schema, how: ReadOptions, rows: list[dict[str, str]]) -> tuple[pa.RecordBatch, dict[int, str]]:
    return pa.record_batch([pa.array([row[name] for row in rows], pa.string()) for name in schema.names], schema), {}


# JSON, one object a line.


def _json_schema(path: Path, lines: Iterator[str], how: ReadOptions) -> pa.Schema:
    """Return the columns of the first rows; invalid rows are ignored here, because reading rejects them."""
    records = list(islice(_json_records(lines, None, how, ""), ROWS))
    rows = [record.value for record in records if isinstance(record.value, dict)]
    if records and not rows:
        raise InputError(f"{path} has no JSON object in its first {len(records)} lines; wanted one object a line")
    names = dict.fromkeys(name for row in rows for name in row)
    if how.columns:
        return pa.schema([(name, pa.string()) for name in names])
    kinds = {
        name: pa.string() if name in (how.text, RESCUED) else _kind([row.get(name) for row in rows]) for name in names
    }
    return pa.schema(list({**kinds, RESCUED: pa.string()}.items()))


def _kind(values: list[Any]) -> pa.DataType:
    """Return the type of a column, text if its values have no common type or one that Parquet lacks."""
    try:
        kind = pa.array(values).type
        if pa.types.is_nested(kind):
            if _depth(kind) > 100:  # Python's stack ends at about 300
                return pa.string()
            pq.write_table(pa.table({"": pa.array([], kind)}), BytesIO())
    except _MISFIT:
        return pa.string()
    return pa.string() if pa.types.is_null(kind) else kind


def _depth(kind: pa.DataType) -> int:
    return 1 + max((_depth(kind.field(i).type) for i in range(kind.num_fields)), default=0)


def _json_records(lines: Iterator[str], schema: object, how: ReadOptions, fault: str) -> Iterator[_Parsed]:
    for line in lines:
        value, reason = None, None
        bad = 0 if line.isascii() else replaced_in(line)[1]
        try:
            value = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            reason = TOO_LONG if len(line) == MAX_LINE else "malformed JSON"
        if not reason and value is not None and not isinstance(value, dict):
            reason = "not a JSON object"
        if value is not None and (bad or _ESCAPED.search(line)):  # an escape may be half an emoji
            text, bad = replaced_in(json.dumps(value, ensure_ascii=False))
            value = json.loads(text) if bad else value
        if bad and how.strict:
            reason = fault
        yield _Parsed(value, reason, line, bad)


def _json_rows(
    schema: pa.Schema, how: ReadOptions, rows: list[dict[str, Any]]
) -> tuple[pa.RecordBatch, dict[int, str]]:
    reasons: dict[int, str] = {}
    for i, row in enumerate(rows):
        if (text := row.get(how.text)) is None:
            reasons[i] = NULL_TEXT
        elif not isinstance(text, str):
            reasons[i] = f"column {how.text!r} is {_TYPES[type(text)]}, wanted text"
    scorable = [row for i, row in enumerate(rows) if i not in reasons]
    rescued: list[dict[str, Any]] = [{} for _ in scorable]
    columns = {}
    for field in schema:
        columns[field.name], misfits = _column([row.get(field.name) for row in scorable], field.type)
        for i in misfits:
            rescued[i][field.name] = scorable[i][field.name]
    if RESCUED in columns:
        names = set(schema.names)
        for row, rest in zip(scorable, rescued, strict=True):
            if len(row) != len(names.intersection(row)):
                rest |= {name: value for name, value in row.items() if name not in names}
        if any(rescued):
            earlier = columns[RESCUED].to_pylist()
            pairs = zip(rescued, earlier, strict=True)
            merged = [as_json(_object(old) | rest, exact=True) if rest else old for rest, old in pairs]
            columns[RESCUED] = pa.array(merged, pa.string())
    return pa.record_batch(list(columns.values()), schema), reasons


def _object(rescued: str | None) -> dict[str, Any]:
    """Return the values that an earlier run rescued."""
    try:
        found = json.loads(rescued or "{}")
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {RESCUED: rescued}


_TYPES = {int: "a number", float: "a number", bool: "a truth value", list: "a list", dict: "an object"}


def _column(values: list[Any], kind: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Return values as an array of a type, with null for misfits, and the indices of the misfits."""
    if kind == pa.string():
        return pa.array([None if value is None else as_text(value) for value in values], kind), []
    misfits = [i for i, value in enumerate(values) if value is not None and not _suits(value, kind)]
    for i in misfits:
        values[i] = None
    return pa.array(values, kind), misfits


def _suits(value: object, kind: pa.DataType) -> bool:
    """Whether a type holds a value without loss: Arrow would turn 0.5 into 0 and "" into a list, and drop keys."""
    if isinstance(value, dict):
        fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
        return all(name in fields and _suits(inner, fields[name]) for name, inner in value.items()) and bool(fields)
    if isinstance(value, list):
        return pa.types.is_list(kind) and all(_suits(inner, kind.value_type) for inner in value)
    if isinstance(value, bool):
        return bool(pa.types.is_boolean(kind))
    if isinstance(value, int):
        most = 2**63 if pa.types.is_integer(kind) else 2**53 if pa.types.is_floating(kind) else 0
        return -most <= value < most
    return value is None or (pa.types.is_floating(kind) if isinstance(value, float) else pa.types.is_string(kind))


_CSV: tuple[Any, Any, Any] = (_csv_schema, _csv_records, _csv_rows)
_JSON: tuple[Any, Any, Any] = (_json_schema, _json_records, _json_rows)
