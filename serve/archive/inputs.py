"""Input files: named, in folders, or by globs; and what tells that one was changed."""

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from jingyin.model.errors import ConfigError, InputError
from jingyin.serve.archive.readers import (
    START,
    Block,
    Position,
    Reject,
    csv_blocks,
    csv_schema,
    json_blocks,
    json_schema,
    parquet_blocks,
    parquet_schema,
)

FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json"}
"""Suffix -> format; JSON means one object a line."""

CODECS = {".gz": "gzip", ".zst": "zstd"}
"""Second suffix of compressed text -> codec; Parquet compresses by itself."""

_SUFFIXES = "*.parquet, *.csv, *.jsonl (or .ndjson, .json: one object a line), the text ones also with .gz or .zst"


class Kind(NamedTuple):
    """How a file is read or written: "parquet" | "csv" | "json", and None | "gzip" | "zstd"."""

    format: str
    codec: str | None


def kind_of(path: Path) -> Kind:
    """Return the kind of a file by its suffix; raises ConfigError for an unknown one."""
    codec = CODECS.get(path.suffix.lower())
    name = path.with_suffix("") if codec else path
    found = FORMATS.get(name.suffix.lower())
    if found is None or (codec and found == "parquet"):
        raise ConfigError(f"the format of {path.name!r} is unknown; known are {_SUFFIXES}")
    return Kind(found, codec)


def suffix_of(path: Path) -> str:
    """Return the suffix that names the kind of a file, with that of compression."""
    return "".join(path.suffixes[-2 if path.suffix.lower() in CODECS else -1 :]).lower()


def find(inputs: Iterable[str | Path], output: Path) -> list[Path]:
    """Return the input files: those named, those of folders and globs sorted by path.

    Raises InputError when one is missing, empty or unreadable, ConfigError when it has something to do with `output`.
    """
    files = []
    for path in (match for each in inputs for match in _matches(str(each))):
        _keep_apart(path, output)
        files += _of_folder(path) if path.is_dir() else [path]
    for file in files:
        kind_of(file)
        _check(file)
    if len(set(files)) < len(files):
        raise ConfigError("an input file is named twice; its rows would come twice")
    return files


def _matches(name: str) -> list[Path]:
    """Return the file or folder of this name, or else those that it matches as a pattern, sorted by path."""
    if Path(name).exists():
        return [Path(name)]
    matched = sorted(Path(each) for each in glob.glob(name, recursive=True))
    if not matched:
        raise InputError(f"input {name} does not exist, and as a pattern it matches nothing")
    return matched


def _of_folder(folder: Path) -> list[Path]:
    found = sorted(_data_files(folder))
    if not found:
        raise InputError(f"folder {folder} holds no file to read; wanted {_SUFFIXES}")
    return found


def _data_files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that have a known suffix; names that start with _ or . are bookkeeping."""
    for file in folder.rglob("*"):
        parts = file.relative_to(folder).parts
        if file.is_file() and not any(part.startswith(("_", ".")) for part in parts):
            try:
                kind_of(file)
            except ConfigError:
                continue
            yield file


def _keep_apart(given: Path, output: Path) -> None:
    there, here = given.resolve(), output.resolve()
    if there == here:
        raise ConfigError(f"input and output are both {given}; the input is never changed, name another output, or a "
                          "pattern that leaves it out")  # fmt: skip
    if there in here.parents and there.is_dir():
        raise ConfigError(f"output {output} lies in the input folder {given}; a second run would read it as input")
    if here in there.parents:
        raise ConfigError(f"input {given} lies in the output folder {output}; name another output")


def _check(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            empty = not stream.read(1)
    except OSError as error:
        raise InputError(f"{file} can't be read: {error.strerror}") from None
    if empty:
        raise InputError(f"{file} is empty (0 bytes); leave it out or copy it again")


def fingerprint(files: Iterable[Path]) -> list[list[str | int]]:
    """Return [path, size in bytes, modification time in ns] of each file."""
    states = ((file, file.stat()) for file in files)
    return [[str(file.resolve()), state.st_size, state.st_mtime_ns] for file, state in states]


# Blocks of rows, from a position on, over all input files.
#
# What comes after a position depends on the position alone, never on where reading began: that is what makes a resumed
# run's output byte for byte that of an uninterrupted one.


class Source(NamedTuple):
    """An input file: the schema of its rows, and its blocks from a position on."""

    path: Path
    schema: pa.Schema
    blocks: Callable[[Position], Iterator[Block]]


def open_source(path: Path, text_column: str, encoding: str, schema: pa.Schema | None) -> Source:
    """Open a file; `schema` is that of the files before, which fixes the types of JSON.

    Raises InputError when the file is damaged or holds other columns than those before, ConfigError when there is no
    text column.
    """
    try:
        match kind_of(path):
            case "parquet", _:
                source = Source(path, parquet_schema(path), partial(parquet_blocks, path))
            case "csv", codec:
                source = Source(path, csv_schema(path, codec, encoding), partial(csv_blocks, path, codec, encoding))
            case _, codec:
                schema = schema or json_schema(path, codec, encoding, text_column)
                source = Source(path, schema, partial(json_blocks, path, codec, encoding, schema))
    except (OSError, pa.ArrowException) as error:
        raise broken(path, error) from None
    _check_text(source, text_column)
    if schema is not None and not source.schema.equals(schema):
        raise InputError(f"{path} holds {_describe(source.schema)}, the files before it {_describe(schema)}; "
                         "relabel them to outputs of their own")  # fmt: skip
    return source


def open_sources(files: Sequence[Path], text_column: str, encoding: str) -> list[Source]:
    """Open files of the same columns; raises what open_source raises."""
    sources: list[Source] = []
    for file in files:
        sources.append(open_source(file, text_column, encoding, sources[0].schema if sources else None))
    return sources


def check_encoding(encoding: str) -> None:
    """Raise ConfigError for an encoding that is unknown or not built on ASCII, whose bytes the readers look for."""
    try:
        known = '\n,"{'.encode(encoding) == b'\n,"{'
    except LookupError:
        known = False
    if not known:
        raise ConfigError(
            f"encoding {encoding!r} is unknown or not built on ASCII; wanted is one like utf-8 or gb18030"
        )


def broken(path: Path, error: Exception) -> InputError:
    """Return the error of a file that can't be read to its end; Arrow's own words could quote the data."""
    return InputError(f"{path} is damaged or truncated ({type(error).__name__}); copy it again")


def _check_text(source: Source, text_column: str) -> None:
    names = source.schema.names
    if len(set(names)) < len(names):
        raise InputError(f"{source.path} has columns of the same name: {', '.join(names)}; rename them")
    if text_column not in names:
        raise ConfigError(f"{source.path} has no column {text_column!r}; it has: {', '.join(names)}; name one of them "
                          "with --text-column")  # fmt: skip
    found = source.schema.field(text_column).type
    if not is_text(found):
        raise ConfigError(f"column {text_column!r} of {source.path} is {found}, wanted strings; name another")


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold messages."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary())


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def blocks(sources: Sequence[Source], at: Position, text_column: str) -> Iterator[tuple[int, Block]]:
    """Yield (number of the source, block) from `at` on: the number of a source, then a position in it."""
    first, *inner = at
    for number in range(first, len(sources)):
        source = sources[number]
        try:
            for block in source.blocks(tuple(inner) if number == first else START):
                yield number, without_rejects(block, text_column)
        except (OSError, pa.ArrowException) as error:
            raise broken(source.path, error) from None


def without_rejects(block: Block, text_column: str) -> Block:
    """Turn rows without a text, or with bytes that are not UTF-8 in any column of strings, into rejects."""
    batch = block.batch
    rejected = dict.fromkeys(_nulls(batch.column(text_column)), "null text")
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_dictionary(column.type) and is_text(column.type):
            column = column.dictionary_decode()
        if name == text_column or pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            rejected |= dict.fromkeys(_undecodable(column), "not UTF-8")
    if not rejected:
        return block
    kept = [row for row in range(batch.num_rows) if row not in rejected]
    rejects = [Reject(block.numbers[row], reason) for row, reason in rejected.items()]
    return block._replace(
        batch=batch.take(pa.array(kept, pa.int64())),
        numbers=[block.numbers[row] for row in kept],
        rejects=sorted([*block.rejects, *rejects]),
    )


def _nulls(column: pa.Array) -> list[int]:
    return pc.indices_nonzero(column.is_null()).to_pylist() if column.null_count else []


def _undecodable(column: pa.Array) -> Iterator[int]:
    """Yield the rows whose bytes are not UTF-8. Parquet promises it and does not check."""
    if column.type not in (pa.string(), pa.binary()):
        column = column.cast(pa.large_binary())
        wide = pa.large_string()
    else:
        column = column.cast(pa.binary())
        wide = pa.string()
    try:
        column.cast(wide)
    except pa.ArrowInvalid:
        for row, value in enumerate(column.to_pylist()):
            try:
                (value or b"").decode()
            except UnicodeDecodeError:
                yield row


def texts(block: Block, text_column: str) -> pa.Array:
    """Return the messages of a block without rejects as an array of strings."""
    column = block.batch.column(text_column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type == pa.string_view():
        return column.cast(pa.string())
    return column.cast(pa.large_string() if pa.types.is_large_binary(column.type) else pa.string())
