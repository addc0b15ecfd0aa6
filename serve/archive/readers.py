"""Reads archives: files -> blocks of scorable rows, and rejected rows with the reason, starting after any row.

Only the text column can get a row rejected. Everything else is kept: columns of several types become text, columns
missing from a file are null, and JSON keys or values that fit no column go to `jingyin_rescued`. Rows are
numbered from 1 in their file (in JSON lines: by line), and the blocks after a row depend on its number alone, not on
where reading began, so the output of a resumed run is byte for byte that of an uninterrupted one.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jingyin.model.errors import ConfigError, InputError
from jingyin.serve.archive.blocks import BYTES, NULL_TEXT, ROWS, Block, InputFile, ReadOptions, Reject, as_text, fit
from jingyin.serve.archive.shards import DONE, check_finished
from jingyin.serve.archive.text_files import RESCUED, open_text
from jingyin.serve.archive.writers import FORMATS, as_json, kind_of, rows_of, values_of
from jingyin.serve.encodings import check_encoding

# Input files: named, in folders, or by patterns.


def find(inputs: Iterable[str | Path], *outputs: Path | None) -> list[Path]:
    """Return the input files in the order named, those of a folder or pattern sorted by path.

    Raises ConfigError if one does not exist, is named twice or overlaps with `outputs`, InputError if one is empty,
    can't be read or belongs to a run that isn't finished. Patterns match no bookkeeping files, which start with _.
    """
    files: list[Path] = []
    for name in map(str, inputs):
        found = sorted(path for path in map(Path, glob.glob(name, recursive=True)) if not path.name.startswith("_"))
        matched = [Path(name)] if Path(name).exists() else found
        if not matched:
            raise ConfigError(f"input {name} does not exist, and as a pattern it matches nothing")
        for path in matched:
            _keep_apart(path, outputs)
            files += _files_of(path) if path.is_dir() else [path]
    for file in files:
        kind_of(file)
        _keep_apart(file, outputs)  # a link in a folder may lead there
        try:
            with file.open("rb") as stream:
                if not stream.read(1) and not (file.parent / DONE).is_file():  # all rows of a part can be rejected
                    raise InputError(f"{file} is empty (0 bytes); leave it out or copy it again")
        except OSError as error:
            raise InputError(f"{file} can't be read: {error.strerror}") from None
    for folder in sorted({file.parent for file in files if file.name.startswith("part-")}):
        check_finished(folder)
    if len({file.resolve() for file in files}) < len(files):
        raise ConfigError("an input file is named twice; its rows would come twice")
    return files


def _files_of(folder: Path) -> list[Path]:
    """Return the files in a folder with a known suffix, last or not (`.csv.bz2`); names after _ or . don't count."""

    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename} can't be read: {error.strerror}")

    walked = os.walk(folder, onerror=fail, followlinks=True)
    matched = [
        file
        for file in sorted(Path(at, name) for at, _, names in walked for name in names)
        if FORMATS.keys() & {suffix.lower() for suffix in file.suffixes}
        and not any(part.startswith(("_", ".")) for part in file.relative_to(folder).parts)
    ]
    if not matched:
        raise InputError(f"folder {folder} holds no file to read; wanted {', '.join(FORMATS)}, or text as .gz or .zst")
    return matched


def _keep_apart(source: Path, outputs: Iterable[Path | None]) -> None:
    for output in filter(None, outputs):
        source_path, output_path = source.resolve(), output.resolve()
        if source_path == output_path:
            raise ConfigError(f"input and output are both {source}; the input is never changed, name another output, "
                              "or a pattern that leaves it out")  # fmt: skip
        if source_path in output_path.parents and source_path.is_dir():
            raise ConfigError(f"output {output} lies in the input folder {source}; a second run would read it as input")
        if output_path in source_path.parents:
            raise ConfigError(f"input {source} lies in the output folder {output}; name another output")


def fingerprint(files: Iterable[Path]) -> list[list[str | int]]:
    """Return [path, size in bytes, modification time in ns] of each file."""
    states = ((file, file.stat()) for file in files)
    return [[str(file.resolve()), state.st_size, state.st_mtime_ns] for file, state in states]


# Sources, and their blocks one after another.


def open_sources(files: Sequence[Path], how: ReadOptions) -> list[InputFile]:
    """Open files; all their blocks have one schema, with the columns of all files.

    Raises InputError if a file is damaged or in another encoding, ConfigError if it lacks the text column.
    """
    check_encoding(how.encoding or "utf-8")
    if len(how.delimiter) != 1 or how.delimiter in '"\r\n':
        raise ConfigError(f"delimiter {how.delimiter!r} isn't a character that can separate fields, such as ; or a tab")
    opened = []
    for file in files:
        try:
            opened.append(_open_parquet(file, how) if kind_of(file).format == "parquet" else open_text(file, how))
        except (OSError, EOFError, UnicodeError, pa.ArrowException) as error:
            raise _broken(file, error) from None
        if opened[-1].names or opened[-1].rows:  # else JSON lines without a line
            _check_columns(opened[-1], how)
    schema = _united([source.schema for source in opened])
    return [InputFile(each.path, each.names, schema, each.rows, partial(_fitted, each, schema)) for each in opened]


def blocks(sources: Sequence[InputFile], source: int = 0, row: int = 0) -> Iterator[tuple[int, Block]]:
    """Yield (number of the source, block), starting after `row` rows of `source`."""
    for number in range(source, len(sources)):
        try:
            for block in sources[number].blocks(row if number == source else 0):
                yield number, block
        except (OSError, EOFError, UnicodeError, pa.ArrowException) as error:
            raise _broken(sources[number].path, error) from None


_MESSAGE = re.compile(r"[0-9]{5}|[，。！？、：；…【]")


def _check_columns(source: InputFile, how: ReadOptions) -> None:
    path, names = source.path, [name for name in source.names if name != RESCUED]
    if len(set(names)) < len(names):
        raise InputError(f"{path} has columns of the same name: {_shown(names)}; rename them")
    if how.text not in names:
        raise ConfigError(f"{path} has no column {how.text!r}; it has: {_shown(names)}; name one of them with "
                          "--text-column")  # fmt: skip
    if not is_text(kind := source.schema.field(how.text).type):
        raise ConfigError(f"column {how.text!r} of {path} is {kind}, wanted strings; name another with --text-column")
    if how.id is not None and how.id not in names:
        raise ConfigError(f"{path} has no column {how.id!r} for --id-column; it has: {_shown(names)}")


def _shown(names: Sequence[str]) -> str:
    """List names of columns; without a line of names those of a CSV are its first row, a message and its numbers."""
    return ", ".join("(not shown)" if len(name) > 20 or _MESSAGE.search(name) else name for name in names)


def _broken(path: Path, error: Exception) -> InputError:
    """Return the error for a file that can't be read to its end; Arrow's own message could quote the data."""
    if isinstance(error, UnicodeError):  # UTF-16 without a mark
        return InputError(f"{path} is not in the encoding named; name another with --encoding")
    return InputError(f"{path} is damaged or truncated ({type(error).__name__}); copy it again")


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold messages."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary())


def _united(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the columns of all files; one of several types gets a type that holds them all, or else text."""
    kinds: dict[str, pa.DataType] = {}
    for field in (field for schema in schemas for field in schema):
        earlier = kinds.setdefault(field.name, field.type)
        if earlier != field.type:
            both = [pa.schema([pa.field("", kind)]) for kind in (earlier, field.type)]
            try:
                kind = pa.unify_schemas(both, promote_options="permissive").field(0).type
            except pa.ArrowException:
                kind = pa.string()
            kinds[field.name] = kind if _holds(kind, earlier) and _holds(kind, field.type) else pa.string()
    return pa.schema(list(kinds.items()))


def _holds(kind: pa.DataType, other: pa.DataType) -> bool:
    """Whether a type holds every value of another; Arrow would unite 64-bit integers and floats, too, or times."""
    types = pa.types
    if kind == other or types.is_null(other):
        return True
    if types.is_struct(kind) and types.is_struct(other):
        return all(_holds(kind.field(field.name).type, field.type) for field in other)
    for is_kind in (types.is_list, types.is_large_list, types.is_dictionary):
        if is_kind(kind) and is_kind(other):
            return _holds(kind.value_type, other.value_type)
    if types.is_integer(kind) or types.is_floating(kind):
        numbers = types.is_integer(other) or types.is_floating(other)
        rounds = types.is_floating(kind) and types.is_integer(other) and other.bit_width == 64
        return numbers and not rounds and np.can_cast(other.to_pandas_dtype(), kind.to_pandas_dtype())
    return is_text(kind) and is_text(other) and not types.is_dictionary(kind)


def _fitted(source: InputFile, schema: pa.Schema, row: int) -> Iterator[Block]:
    """Yield the blocks of a file with the columns of all files."""
    for block in source.blocks(row):
        names, rows = block.batch.schema.names, block.batch.num_rows
        columns = [
            fit(block.batch.column(field.name), field.type) if field.name in names else pa.nulls(rows, field.type)
            for field in schema
        ]
        yield block._replace(batch=pa.record_batch(columns, schema))


# Parquet, page by page: a row group is never held in memory as a whole.

_PIECE = 128  # rows read at a time: how long they are is known only then, because a file holds equal texts once


def _open_parquet(path: Path, how: ReadOptions) -> InputFile:
    with pq.ParquetFile(path) as file:
        # Metadata added by writers (pandas, datasets) would not match the output.
        plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}  # views can't be filtered, nor be CSV
        kinds = plain, {**plain, pa.null(): pa.string()}  # of texts: pandas writes a column without any as null
        schema = pa.schema([(f.name, kinds[f.name == how.text].get(f.type, f.type)) for f in file.schema_arrow])
        rows, names = file.metadata.num_rows, schema.names
    if how.columns:
        schema = pa.schema([field for field in schema if field.name in how.columns])
    return InputFile(path, names, schema, rows, partial(_parquet_blocks, path, schema, how))


def _parquet_blocks(path: Path, schema: pa.Schema, how: ReadOptions, start: int) -> Iterator[Block]:
    row = 0
    with pq.ParquetFile(path, buffer_size=1 << 18, pre_buffer=False) as file:
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            if row + group.num_rows <= start:
                row += group.num_rows
                continue
            size = max(1, min(ROWS, BYTES * group.num_rows // max(1, group.total_byte_size)))
            coded = any(map(pa.types.is_dictionary, schema.types))  # then each piece comes with the whole dictionary
            piece = min(size, 8 * _PIECE if coded else _PIECE)
            pieces = file.iter_batches(piece, [number], columns=schema.names, use_threads=False)
            for batch in _joined(pieces, size):
                row += batch.num_rows
                batch = pa.record_batch([fit(batch.column(field.name), field.type) for field in schema], schema)
                if row > start:
                    numbers = np.arange(row - batch.num_rows + 1, row + 1)
                    yield _scorable(batch, numbers, how, row, row / file.metadata.num_rows)


def _joined(pieces: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield batches of about `rows` rows, or BYTES without dictionaries."""
    held: list[pa.RecordBatch] = []
    size = 0
    for part in (piece.slice(start, _PIECE) for piece in pieces for start in range(0, piece.num_rows, _PIECE)):
        held.append(part)
        plain = (each.dictionary_decode() if pa.types.is_dictionary(each.type) else each for each in part.columns)
        size += sum(each.nbytes for each in plain)
        if size >= BYTES or sum(each.num_rows for each in held) >= rows:
            yield from pa.Table.from_batches(held).combine_chunks().to_batches()
            held, size = [], 0
    if held:
        yield from pa.Table.from_batches(held).combine_chunks().to_batches()


def _scorable(batch: pa.RecordBatch, numbers: NDArray[np.int64], how: ReadOptions, row: int, share: float) -> Block:
    """Repair invalid UTF-8 (Parquet requires UTF-8 but doesn't check it), and reject rows without a text."""
    replaced = np.zeros(batch.num_rows, np.int32)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if name == how.text or (is_text(kind) and kind not in (pa.binary(), pa.large_binary())):
            repaired, counts = mended(column)
            if counts.any():
                batch = batch.set_column(batch.schema.names.index(name), batch.schema.field(name), repaired)
                replaced += counts
    texts = batch.column(how.text)
    if pa.types.is_dictionary(texts.type):
        texts = texts.dictionary_decode()
    if texts.type not in (pa.string(), pa.large_string()):
        texts = texts.cast(pa.large_string() if pa.types.is_large_binary(texts.type) else pa.string())
    missing = pc.indices_nonzero(texts.is_null()).to_pylist() if texts.null_count else []
    reasons = dict.fromkeys(missing, NULL_TEXT)
    if how.strict:
        reasons |= dict.fromkeys(np.flatnonzero(replaced).tolist(), "not UTF-8")
    if not reasons:
        return Block(batch, texts, numbers, replaced, [], row, share)
    rows = rows_of(batch) if how.keep else []
    ids = values_of(batch.column(how.id)) if how.id else None
    rejects = [
        Reject(int(numbers[i]), reasons[i], as_text(ids[i] if ids else None), as_json(rows[i]) if rows else "")
        for i in sorted(reasons)
    ]
    kept = np.array([i for i in range(batch.num_rows) if i not in reasons], np.int64)
    take = pa.array(kept)
    return Block(batch.take(take), texts.take(take), numbers[kept], replaced[kept], rejects, row, share)


def mended(column: pa.Array) -> tuple[pa.Array, NDArray[np.int32]]:
    """Return a column of texts with U+FFFD for bytes that aren't UTF-8, and their number in each row (n,)."""
    plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    counts = np.zeros(len(column), np.int32)
    values = plain.cast(pa.large_binary())
    try:
        values.cast(pa.large_string())
        return column, counts
    except pa.ArrowInvalid:
        texts: list[str | None] = []
        for i, value in enumerate(values.to_pylist()):
            texts.append(None if value is None else value.decode("utf-8", "replace"))
            counts[i] = 0 if value is None else texts[-1].count("\ufffd") - value.count("\ufffd".encode())  # type: ignore[union-attr]
        array = pa.array(texts, pa.string())
        return (array.dictionary_encode() if plain is not column else array).cast(column.type), counts
