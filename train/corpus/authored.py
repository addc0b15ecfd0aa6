"""Reads the authored messages: JSON lines in FOLDERS, one message a line.

    authored/     written from imagination
    adversarial/  written against the filter of their day, which it got wrong (train/LOG.md): no label error is found
                  among them by simple models
    cases/        written from real cases, described without their words; one file a family of cases
    reworded/     threats in an innocent's dress, in dialect, in half a sentence, and innocents in the same
    traffic/      ordinary messages of the kinds that a network is wrongly sure of

Fields: `text` (with slots), `label`, `family` (the subtype), `voice`; `pair`, an id that the two messages of a minimal
pair share; `case`, the real case behind a message; `writer`, who wrote it ("unknown" for rows from before it was
noted).
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.train.corpus.expand import SLOT
from jingyin.train.corpus.record import VOICES, Record
from jingyin.train.corpus.signs import signs_of
from jingyin.train.corpus.slots import SLOTS

LONGEST = 1_000
"""Most characters in a message; ten SMS parts hold 670."""

_LONGEST_LINE = 10_000  # bytes; a longer one is no message, and is never parsed
_OPTIONAL = ("pair", "case", "writer")
_NEEDED = ("text", "label", "family", "voice")
_FIELDS = frozenset((*_NEEDED, *_OPTIONAL))

FOLDERS = ("authored", "adversarial", "cases", "reworded", "traffic")
"""The folders of authored messages that come with the package."""
_SHOWN = 20


def default_folders() -> tuple[Path, ...]:
    """Return the folders of authored messages that come with the package."""
    return tuple(Path(str(files("jingyin.train.corpus").joinpath(name))) for name in FOLDERS)


def load(path: Path) -> list[Record]:
    """Return the messages of a JSON lines file, or of all such files below a folder, in order of name.

    Raises InputError that lists the errors, each with its file, line and what to do, those of signs.jsonl too.
    """
    records, errors = scan(path)
    if errors:
        more = f"\n... and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        raise InputError("authored messages can't be used:\n" + "\n".join(errors[:_SHOWN]) + more)
    return [replace(record, signs=signs_of(record.text, record.family)) for record in records]


def scan(path: Path) -> tuple[list[Record], list[str]]:
    """Return the sound messages below `path`, not yet with their signs, and a sentence for each error."""
    paths = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    errors: list[str] = []
    records: list[Record] = []
    for file in paths:
        for where, line in _lines(file, errors):
            row = _row_or_error(line)
            if isinstance(row, str):
                errors.append(f"{where}: {row}")
            elif (folder := file.parent.name) in LABELS and folder != row["label"]:
                errors.append(
                    f"{where}: label {row['label']!r} in the folder {folder}; move the row, or mend its label"
                )
            else:
                records.append(_record(row, where))
    if not records and not errors:
        errors.append(f"{path}: no authored messages here; give a folder with .jsonl files or one such file")
    return records, errors + _set_errors(records)


def _lines(path: Path, errors: list[str]) -> Iterator[tuple[str, bytes]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                where = f"{path}:{number}"
                if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                    errors.append(f"{where}: line over {_LONGEST_LINE:,} bytes; put one message a line")
                    while line and not line.endswith(b"\n"):
                        line = file.readline(_LONGEST_LINE)
                elif line.strip():
                    yield where, line
    except OSError as error:
        errors.append(f"{path}: can't be read ({error.strerror}); check the path")


def _row_or_error(line: bytes) -> dict[str, str] | str:
    """Return the row in a line, or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "not UTF-8; save the file as UTF-8"
    except (ValueError, RecursionError):
        return 'not JSON; write one object a line, such as {"text": ..., "label": ...}'
    if not isinstance(row, dict):
        return f"a JSON {type(row).__name__}, not an object; write one object a line"
    return _row_error(row) or row


def _row_error(row: dict[str, Any]) -> str | None:
    if unknown := sorted(row.keys() - _FIELDS):
        return f"unknown field {unknown[0]!r}; known: {', '.join(sorted(_FIELDS))}"
    if (field := next((each for each in _NEEDED if not _is_filled(row.get(each))), None)) is not None:
        return f"{field!r} is missing or empty; every row needs {', '.join(_NEEDED)}"
    if (field := next((each for each in _OPTIONAL if not isinstance(row.get(each, ""), str)), None)) is not None:
        return f"{field!r} is no string; write one, or leave it out"
    if row["label"] not in LABELS:
        return f"unknown label {row['label']!r}; known: {', '.join(LABELS)}"
    if row["voice"] not in VOICES:
        return f"unknown voice {row['voice']!r}; known: {', '.join(sorted(VOICES))}"
    if any("\ud800" <= character <= "\udfff" for character in row["text"]):
        return "half a surrogate pair in the text; write whole characters"
    if len(row["text"]) > LONGEST:
        return f"a text of {len(row['text']):,} characters; {LONGEST:,} at most, cut it"
    unknown_slots = [slot for slot in SLOT.findall(row["text"]) if slot not in SLOTS]
    if unknown_slots:
        return f"unknown slot {{{unknown_slots[0]}}}; known: {', '.join(sorted(SLOTS))}"
    if {"{", "}"} & set(SLOT.sub("", row["text"])):
        return "a brace that belongs to no slot; write {name}, or leave it out"
    return None


def _is_filled(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _record(row: dict[str, str], where: str) -> Record:
    return Record(
        text=row["text"],
        label=row["label"],
        family=row["family"],
        voice=row["voice"],
        source="authored",
        group=row.get("pair", ""),
        where=where,
        case=row.get("case", ""),
        writer=row.get("writer", "unknown"),
    )


def _set_errors(records: list[Record]) -> list[str]:
    """Find what single rows don't show: a text that comes twice, a pair that is none."""
    errors = []
    first: dict[str, str] = {}
    pairs: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.text in first:
            errors.append(f"{record.where}: the same text as {first[record.text]}; drop one")
        first.setdefault(record.text, record.where)
        if record.group:
            pairs[record.group].append(record)
    for name, rows in pairs.items():
        if len(rows) != 2:
            errors.append(f"{rows[0].where}: pair {name!r} has {len(rows)} rows; a pair id belongs to two")
        elif rows[0].label == rows[1].label:
            errors.append(f"{rows[0].where}: pair {name!r} has one label; the rows of a pair differ in label")
    return errors
