"""Input files: named, in folders, or by globs; and what tells that one was changed."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from jingyin.model.errors import ConfigError, InputError

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
