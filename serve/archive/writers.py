"""File formats by suffix, and a writer of rows for each."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime, time
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from jingyin.model.errors import ConfigError

FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json"}
"""Suffix -> format; JSON means one object a line."""

CODECS = {".gz": "gzip", ".zst": "zstd"}
"""Second suffix of compressed text -> codec; Parquet compresses by itself."""

_GROUP_ROWS = 1 << 16
_GROUP_BYTES = 32 << 20


class FileKind(NamedTuple):
    """How a file is read or written: "parquet" | "csv" | "json", and None | "gzip" | "zstd"."""

    format: str
    codec: str | None


def kind_of(path: Path) -> FileKind:
    """Return the kind of a file by its suffix; raises ConfigError for an unknown one."""
    codec = CODECS.get(path.suffix.lower())
    name = path.with_suffix("") if codec else path
    found = FORMATS.get(name.suffix.lower())
    if found is None or (codec and found == "parquet"):
        raise ConfigError(f"the format of {path.name!r} is unknown; known are *.parquet, *.csv, *.jsonl (or .ndjson, "
                          ".json: one object a line), text also as .gz or .zst; rename it or leave it out")  # fmt: skip
    return FileKind(found, codec)


def suffix_of(path: Path) -> str:
    """Return the suffix that names the kind of a file, with that of compression."""
    return "".join(path.suffixes[-2 if path.suffix.lower() in CODECS else -1 :]).lower()


@contextmanager
def writer(kind: FileKind, file: BinaryIO, schema: pa.Schema) -> Iterator["_Parquet | _Text"]:
    """Open the writer of a kind of file; it is closed before `file`, which stays open."""
    sink = _Parquet(file, schema) if kind.format == "parquet" else _Text(file, schema, kind)
    try:
        yield sink
    except BaseException:
        with suppress(OSError, pa.ArrowException):
            sink.close()  # else Arrow does it at garbage collection, and complains that `file` is closed
        raise
    sink.close()


class _Parquet:
    """Gathers blocks into row groups of a useful size, bounded in bytes."""

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")
        self._held: list[pa.RecordBatch] = []
        self._schema = schema

    def write(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        if sum(b.num_rows for b in self._held) >= _GROUP_ROWS or sum(b.nbytes for b in self._held) >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._held, self._schema)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._held = []

    def close(self) -> None:
        if self._held:
            self._flush()
        self._writer.close()


class _Text:
    """CSV or JSON lines. CSV can't hold objects and lists; they become JSON."""

    def __init__(self, file: BinaryIO, schema: pa.Schema, kind: FileKind) -> None:
        # Arrow closes the file that it compresses into: a second handle keeps the file open for fsync.
        self._stream: Any = file
        if kind.codec:
            self._stream = pa.CompressedOutputStream(os.fdopen(os.dup(file.fileno()), "wb"), kind.codec)
        flat = pa.schema([field.with_type(_flattened(pa.nulls(0, field.type)).type) for field in schema])
        self._csv = pa.csv.CSVWriter(self._stream, flat) if kind.format == "csv" else None

    def write(self, batch: pa.RecordBatch) -> None:
        if self._csv:
            flat = {name: _flattened(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
            self._csv.write_batch(pa.record_batch(flat))
        else:
            self._stream.write("".join(f"{as_json(row)}\n" for row in rows_of(batch)).encode())

    def close(self) -> None:
        if self._csv:
            self._csv.close()
        if isinstance(self._stream, pa.CompressedOutputStream):
            self._stream.close()


def _flattened(column: pa.Array) -> pa.Array:
    """Return a column in a form that CSV can hold."""
    if pa.types.is_dictionary(column.type):
        return _flattened(column.dictionary_decode())
    if pa.types.is_nested(column.type):
        return pa.array([None if value is None else as_json(value) for value in values_of(column)], pa.string())
    if column.type in (pa.binary(), pa.large_binary()) or pa.types.is_fixed_size_binary(column.type):
        return pa.array([None if value is None else _plain(value) for value in column.to_pylist()], pa.string())
    return column


def rows_of(rows: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """Return rows as Python values; see `values_of`."""
    return [dict(zip(rows.schema.names, row, strict=True)) for row in zip(*map(values_of, rows.columns), strict=True)]


def values_of(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return a column as Python values; those that Python can't hold, such as the year 10000, become text."""
    try:
        return cast("list[Any]", column.to_pylist())
    except (OverflowError, ValueError):
        return [_value(each) for each in column]


def _value(scalar: pa.Scalar) -> Any:  # noqa: ANN401
    if not scalar.is_valid:
        return None
    if pa.types.is_struct(scalar.type):
        return {field.name: _value(scalar[i]) for i, field in enumerate(scalar.type)}
    if pa.types.is_nested(scalar.type):
        return [_value(each) for each in scalar.values]
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes().decode("utf-8", "replace")
    except (OverflowError, ValueError):
        return scalar.cast(pa.string()).as_py()


def as_json(value: object, *, exact: bool = False) -> str:
    """Return JSON on one line; times as ISO 8601, bytes as text, decimals as strings.

    NaN and infinity, which JSON lacks, become null, or with `exact` stay as Python writes them.
    """
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain, allow_nan=exact)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=_plain)


def _finite(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _plain(value: object) -> str:
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
