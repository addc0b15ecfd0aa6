"""Shards: written aside, and given their final names when they are whole."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from jingyin.model.errors import JingyinError
from jingyin.serve.archive.inputs import Kind

_GROUP_ROWS = 1 << 16
_GROUP_BYTES = 32 << 20


class Writer(Protocol):
    """Writes rows to an open file."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows."""

    def close(self) -> None:
        """Write what is held back, and the end of the format; the file stays open."""


@contextmanager
def aside(path: Path) -> Iterator[BinaryIO]:
    """Open a file that gets its name when the context ends well: until then it is `_NAME.writing`."""
    draft = path.with_name(f"_{path.name}.writing")
    with draft.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def no_room(what: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission and their like into an error that says how to go on."""
    try:
        yield
    except OSError as error:
        raise JingyinError(
            f"{what} can't be written: {error.strerror or error}; "
            "see to that and run the same command again: it goes on"
        ) from None


@contextmanager
def writer(kind: Kind, file: BinaryIO, schema: pa.Schema) -> Iterator[Writer]:
    """Open the writer of a kind of file; it is closed before `file`, which stays open."""
    sink = _open(kind, file, schema)
    try:
        yield sink
    except BaseException:
        with suppress(OSError, pa.ArrowException):
            sink.close()  # Arrow would do it when the garbage is collected, and complain that `file` is closed
        raise
    sink.close()


def _open(kind: Kind, file: BinaryIO, schema: pa.Schema) -> Writer:
    if kind.format == "parquet":
        return _Parquet(file, schema)
    # Arrow closes what it compresses into: a second handle keeps the file open for fsync.
    stream = pa.CompressedOutputStream(os.fdopen(os.dup(file.fileno()), "wb"), kind.codec) if kind.codec else file
    return _Text(stream, schema, csv=kind.format == "csv")


class _Parquet:
    """Gathers blocks to row groups of a useful size, bounded in bytes."""

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
    """CSV or JSON lines. What CSV can't hold, objects and lists, becomes JSON in it."""

    def __init__(self, stream: Any, schema: pa.Schema, *, csv: bool) -> None:  # noqa: ANN401  a file of Arrow or Python
        self._stream = stream
        self._csv = pa.csv.CSVWriter(stream, pa.schema(list(map(_flat, schema)))) if csv else None

    def write(self, batch: pa.RecordBatch) -> None:
        if self._csv:
            columns = [_flattened(column) for column in batch.columns]
            self._csv.write_batch(pa.record_batch(columns, pa.schema(list(map(_flat, batch.schema)))))
        else:
            self._stream.write("".join(f"{as_json(row)}\n" for row in batch.to_pylist()).encode())

    def close(self) -> None:
        if self._csv:
            self._csv.close()
        if isinstance(self._stream, pa.CompressedOutputStream):
            self._stream.close()


def _flat(field: pa.Field) -> pa.Field:
    if pa.types.is_dictionary(field.type):
        return field.with_type(field.type.value_type)
    return field.with_type(pa.string()) if pa.types.is_nested(field.type) else field


def _flattened(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode()
    if pa.types.is_nested(column.type):
        return pa.array([None if value is None else as_json(value) for value in column.to_pylist()], pa.string())
    return column


def as_json(value: object) -> str:
    """Return JSON on one line; times as ISO 8601, bytes as text, decimals as strings."""
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: object) -> str:
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
