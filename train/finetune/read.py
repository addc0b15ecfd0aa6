"""Reads one's own labelled messages: CSV, JSON lines, Parquet, a Label Studio export, a folder that datasets saved."""

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from jingyin.model.errors import ConfigError, InputError
from jingyin.model.labels import LABELS
from jingyin.serve.label_studio import read_annotations
from jingyin.serve.relabel.block import START
from jingyin.serve.relabel.inputs import find
from jingyin.serve.relabel.lines import TOO_LONG
from jingyin.serve.relabel.reading import blocks, open_source, texts
from jingyin.train.corpus.authored import LONGEST

SIDES = ("flagged", "not_flagged")
"""Labels of rows of which only the risk is known."""

KNOWN = (*LABELS, *SIDES)
_SHOWN = 20
_REMEDIES = {
    TOO_LONG: "cut it to the message, or drop it",
    "null text": "give it a text, or drop it",
    "malformed CSV": "close its quotes; a cell holds at most 131,072 characters",
    "wrong number of fields": "put texts with commas or line breaks in quotes",
}
_FILE_FIRST = (0, *START)


class Labelled(NamedTuple):
    """A message of one's own; `label` is one of KNOWN, `where` names its file and row."""

    text: str
    label: str
    where: str


@dataclass(frozen=True)
class Columns:
    """Which columns hold text and label, what labels of another scheme mean, and how CSV and JSON are coded."""

    text: str = "text"
    label: str = "label"
    meanings: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"


class _Raw(NamedTuple):
    where: str
    text: object
    label: object
    fault: str = ""


def parse_meanings(given: Sequence[str]) -> dict[str, str]:
    """Return old -> new of "old=new" words; raises ConfigError for a word without one of KNOWN behind the sign."""
    meanings = {}
    for each in given:
        old, sign, new = each.rpartition("=")
        if not sign or new not in KNOWN:
            raise ConfigError(f"--label-map {each!r} is not OLD=NEW with NEW one of {', '.join(KNOWN)}")
        meanings[old] = new
    return meanings


def read_labelled(data: Sequence[str], columns: Columns, out: Path) -> list[Labelled]:
    """Return the rows of files, folders and globs, none of which may have to do with the folder `out`.

    Raises InputError that lists the rows that can't be used, each with what to do; ConfigError for columns that are not
    there.
    """
    errors: list[str] = []
    rows = []
    for raw in _raws(data, columns, columns.label, out):
        label = columns.meanings.get(str(raw.label), str(raw.label))
        if fault := raw.fault or _text_fault(raw.text) or _label_fault(raw.label, label):
            errors.append(f"{raw.where}: {fault}")
        else:
            rows.append(Labelled(str(raw.text), label, raw.where))
    _refuse(errors)
    return rows


def read_unlabelled(data: Sequence[str], columns: Columns, out: Path) -> list[str]:
    """Return the texts of files of traffic, empty and overlong ones left out; raises as `read_labelled` does."""
    raws = list(_raws(data, columns, None, out))
    _refuse([f"{raw.where}: {raw.fault}" for raw in raws if raw.fault])
    return [str(raw.text) for raw in raws if not _text_fault(raw.text)]


def _refuse(errors: Sequence[str]) -> None:
    if errors:
        more = f"\n... and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        raise InputError(f"{len(errors)} row(s) can't be used:\n" + "\n".join(errors[:_SHOWN]) + more)


def _text_fault(text: object) -> str:
    if not isinstance(text, str):
        return "no text; give it one, or drop it"
    if not text.strip():
        return "an empty text; give it one, or drop it"
    if len(text) > LONGEST:
        return f"a text of {len(text):,} characters, {LONGEST:,} at most; cut it to the message, or drop it"
    return ""


def _label_fault(given: object, label: str) -> str:
    if given is None or given == "":
        return "no label; give it one, or drop it"
    if label not in KNOWN:
        return (
            f"unknown label {label[:40]!r}; known are {', '.join(KNOWN)}: say what it means with --label-map "
            f"{label[:40]}=LABEL"
        )
    return ""


def _raws(data: Sequence[str], columns: Columns, label: str | None, out: Path) -> Iterator[_Raw]:
    try:
        codecs.lookup(columns.encoding)
    except LookupError:
        raise ConfigError(f"encoding {columns.encoding!r} is unknown; name one such as utf-8 or gb18030") from None
    folders = [each for each in data if is_dataset(Path(each))]
    files = [each for each in data if each not in folders]
    for folder in folders:
        yield from _dataset_rows(Path(folder), columns.text, label)
    for path in find(files, out) if files else ():
        yield from _answers(path) if label and _is_export(path) else _file_rows(path, columns, label)


def _is_export(path: Path) -> bool:
    """Whether a file is one JSON array, as Label Studio exports it; otherwise .json holds one object a line."""
    if path.suffix != ".json":
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"[")


def _answers(path: Path) -> Iterator[_Raw]:
    """Yield the answers of an export; tasks without one, and those that got two, are left out."""
    for number, (text, label) in enumerate(read_annotations(path).labels.items(), 1):
        yield _Raw(f"{path}: answer {number}", text, label)


def _file_rows(path: Path, columns: Columns, label: str | None) -> Iterator[_Raw]:
    source = open_source(path, columns.text, columns.encoding, None)
    _refuse_missing(path, label, source.schema.names)
    for _, block in blocks([source], _FILE_FIRST, columns.text):
        for row, reason in block.rejects:
            yield _Raw(f"{path}: row {row}", None, None, f"{reason}; {_remedy(reason)}")
        labels = block.batch.column(label).to_pylist() if label else [None] * len(block.numbers)
        for row, text, found in zip(block.numbers, texts(block, columns.text).to_pylist(), labels, strict=True):
            yield _Raw(f"{path}: row {row}", text, found)


def _remedy(reason: str) -> str:
    if reason.startswith("not ") and reason[4:].isupper():  # "not UTF-8"
        return "name the file's coding with --encoding, say gb18030, or mend it"
    return _REMEDIES.get(reason, "mend it, or drop it")


def _refuse_missing(path: Path, label: str | None, names: Iterable[str]) -> None:
    if label is not None and label not in names:
        raise ConfigError(f"{path} has no column {label!r}; it has: {', '.join(names)}; name one with --label-column")


def is_dataset(path: Path) -> bool:
    """Whether `path` is a folder that datasets' save_to_disk wrote."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _dataset_rows(folder: Path, text: str, label: str | None) -> Iterator[_Raw]:
    """Yield the rows of all splits; labels that are numbers of names (ClassLabel) come as their names."""
    from datasets import Dataset, load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} can't be read by datasets ({type(error).__name__}); save it anew") from None
    for name, split in {"": loaded}.items() if isinstance(loaded, Dataset) else loaded.items():
        where = folder / name
        if text not in split.column_names:
            raise ConfigError(
                f"{where} has no column {text!r}; it has: {', '.join(split.column_names)}; name one with --text-column"
            )
        _refuse_missing(where, label, split.column_names)
        names = getattr(split.features[label], "names", None) if label else None
        for row, each in enumerate(split, 1):
            found = each[label] if label else None
            yield _Raw(f"{where}: row {row}", each[text], names[found] if names and found is not None else found)
