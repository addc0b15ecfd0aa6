"""Reads the authored messages: JSON lines in the FOLDERS of train/rows/, one message per line.

    authored/     written from imagination
    adversarial/  written to evade the model of their time, which got them wrong (train/LOG.md): simple models can't
                  find label errors among them
    builds/       with the build of a quoted real threat (lever, order, register), other people, sums and words
    cases/        written from real cases, described without their words; one file per family of cases
    field/        as people write: short and rough, or in complete sentences
    hints/        pairs of a threat that only hints at demand or harm and an innocent of the same build
    reworded/     threats disguised as innocent messages, in dialect, in half a sentence, and innocents in the same form
    traffic/      ordinary messages of kinds that a network confidently misjudged

LABELS.md lists the rounds and writers of each folder.

Fields: `text` (with slots), `label`, `family` (the subtype), `voice`; `pair`, an id that the two messages of a minimal
pair share; `case`, the real or invented case behind a message; `writer`, its author
("unknown" in older rows).
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.model.signs import SIGN_IDS
from jingyin.train.corpus.slots import SLOT, SLOTS

# The record that every part of the corpus passes on, and the values that its fields may take.
VOICES = frozenset((
    "gang_seller", "pseudo_lawyer", "collector_early", "collector_late", "polite_menace", "thug", "student",
    "northeastern", "cantonese", "taiwan", "hongkong", "no_punctuation", "voice_to_text", "template",
    "wechat_fragment", "plain", "official", "family_elder", "middle_aged", "shopkeeper", "worker", "gamer",
    "it_staff",
))  # fmt: skip
"""How an authored message sounds; public corpora have the voice "public"."""


@dataclass(frozen=True, slots=True)
class Record:
    """One message of the corpus.

    `text` may contain slots if `source` is "authored", see slots.py. Records of one `group` go to the same split of the
    corpus; "" stands for a group of one. `where` is the file and line of the record, for errors. `case` is the real
    case that an authored message was written from, "" for none: messages of one case go to the same split too.
    `writer` is its author. `signs` are its demands and threats, as described below.
    """

    text: str
    label: str
    family: str
    voice: str
    source: str
    group: str = ""
    where: str = ""
    case: str = ""
    writer: str = ""
    signs: str = "?"


LONGEST = 1_000
"""Most characters in a message; ten SMS parts hold 670."""


def _one_of(names: Collection[str]) -> AfterValidator:
    def known(name: str) -> str:
        if name not in names:
            raise ValueError(f"{name[:40]!r} is unknown; known: {', '.join(names)}")
        return name

    return AfterValidator(known)


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def _known_slots(text: str) -> str:
    if unknown := [slot for slot in SLOT.findall(text) if slot not in SLOTS]:
        raise ValueError(f"unknown slot {{{unknown[0]}}}; known: {', '.join(sorted(SLOTS))}")
    if {"{", "}"} & set(SLOT.sub("", text)):
        raise ValueError("a brace that belongs to no slot; write {name}, or leave it out")
    return text


_Filled = Annotated[str, AfterValidator(_filled)]


class _Authored(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: Annotated[_Filled, Field(max_length=LONGEST), AfterValidator(_known_slots)]
    label: Annotated[str, _one_of(LABELS)]
    family: _Filled
    voice: Annotated[str, _one_of(sorted(VOICES))]
    pair: str = ""
    case: str = ""
    writer: str = "unknown"


class _Signs(BaseModel):
    model_config = ConfigDict(extra="forbid")

    row: str
    signs: list[Annotated[str, _one_of(SIGN_IDS)]]


RowModel = TypeVar("RowModel", bound=BaseModel)


def valid_rows(path: Path, model: type[RowModel], errors: list[str]) -> Iterator[tuple[str, RowModel]]:
    """Yield place and row of each valid line; append a sentence for each other line to `errors`."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        errors.append(f"{path}: can't be read ({error.strerror}); check the path")
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield f"{path}:{number}", model.model_validate_json(line)
            except ValidationError as wrong:
                first = wrong.errors(include_url=False, include_input=False)[0]
                field = ".".join(map(str, first["loc"]))
                errors.append(
                    f"{path}:{number}: {field}{': ' if field else ''}" + first["msg"].removeprefix("Value error, ")
                )


# Which signs (model/signs.py) a message shows: an authored one by signs.jsonl, read by people; others by their family.
#
# A row's signs are one string, ids separated by commas. "?" at the end means that it may have other signs too, "!id"
# that it doesn't have this one.

UNKNOWN = "?"
ANNOTATED = files("jingyin.train").joinpath("rows/signs.jsonl")
"""One JSON object per line: `row`, the id of a message, and `signs`, a list of ids."""

OF_FAMILIES = files("jingyin.train.corpus").joinpath("tables/family_signs.txt")


def row_id(text: str) -> str:
    """Return the id of an authored message: 16 hex digits of the sha256 of its text, slots unfilled."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def signs_of(text: str, family: str) -> str:
    """Return the signs of an authored message: as annotated, else those of nearly all annotated ones of its family."""
    return _annotated().get(row_id(text)) or _of_families().get(family, UNKNOWN)


def is_annotated(signs: str) -> bool:
    """Whether people annotated the signs of a message."""
    return UNKNOWN not in signs.split(",")


def shown(signs: str) -> list[str]:
    """Return the ids of the signs that a message is known to show."""
    return [each for each in signs.split(",") if each not in ("", "-", UNKNOWN) and not each.startswith("!")]


def at_least(signs: str) -> str:
    """Return the signs of a message in company: those that it shows by itself, and perhaps others."""
    return ",".join([*shown(signs), UNKNOWN])


def unknown_ids(signs: str) -> list[str]:
    """Return the unknown ids among a row's signs, sorted."""
    return sorted({each.removeprefix("!") for each in signs.split(",")} - {"", "-", UNKNOWN, *SIGN_IDS})


def sign_targets(signs: str) -> NDArray[np.float32]:
    """Return for each of SIGN_IDS 1 if the message shows it, 0 if not, NaN if that is unknown."""
    target = np.full(len(SIGN_IDS), 0.0 if is_annotated(signs) else np.nan, np.float32)
    for each in signs.split(","):
        if each.startswith("!"):
            target[SIGN_IDS.index(each[1:])] = 0.0
    target[[SIGN_IDS.index(each) for each in shown(signs)]] = 1.0
    return target


def find_errors(ids: frozenset[str] | None = None) -> list[str]:
    """Return a sentence per error of signs.jsonl; rows of unknown messages are errors if `ids`, all ids, is given."""
    wrong: list[str] = []
    seen: set[str] = set()
    for where, row in valid_rows(Path(str(ANNOTATED)), _Signs, wrong):
        if row.row in seen:
            wrong.append(f"{where}: the id {row.row} comes twice; keep one line")
        seen.add(row.row)
        if ids is not None and row.row not in ids:
            wrong.append(f"{where}: no message has the id {row.row}; remove the line")
    return wrong


@cache
def _annotated() -> dict[str, str]:
    """Return the annotated signs by message id; "-" stands for none. Raises an InputError that lists all errors."""
    if wrong := find_errors():
        raise InputError("the signs of authored messages can't be used:\n" + "\n".join(wrong))
    return {row.row: ",".join(row.signs) or "-" for _, row in valid_rows(Path(str(ANNOTATED)), _Signs, [])}


@cache
def _of_families() -> dict[str, str]:
    rows = (line.split(" ") for line in OF_FAMILIES.read_text(encoding="utf-8").splitlines() if line[0] != "#")
    return {family: ",".join([*signs, UNKNOWN]) for family, *signs in rows}


FOLDERS = ("authored", "adversarial", "builds", "cases", "field", "hints", "reworded", "traffic")
"""The folders of authored messages that come with the package."""
_SHOWN = 20


def default_folders() -> tuple[Path, ...]:
    """Return the folders of authored messages that come with the package."""
    return tuple(Path(str(files("jingyin.train").joinpath("rows", name))) for name in FOLDERS)


def load(path: Path) -> list[Record]:
    """Return the messages of a JSON lines file, or of all such files below a folder, in order of name.

    Raises InputError that lists the errors, each with file, line and remedy, those of signs.jsonl too.
    """
    records, errors = scan(path)
    if errors:
        more = f"\n... and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        raise InputError("authored messages can't be used:\n" + "\n".join(errors[:_SHOWN]) + more)
    return [replace(record, signs=signs_of(record.text, record.family)) for record in records]


def scan(path: Path) -> tuple[list[Record], list[str]]:
    """Return the valid messages below `path`, without their signs, and a sentence for each error."""
    errors: list[str] = []
    records: list[Record] = []
    for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
        for where, row in valid_rows(file, _Authored, errors):
            if (folder := file.parent.name) in LABELS and folder != row.label:
                errors.append(f"{where}: label {row.label!r} in the folder {folder}; move the row, or mend its label")
            else:
                records.append(Record(
                    row.text, row.label, row.family, row.voice, "authored", row.pair, where, row.case, row.writer
                ))  # fmt: skip
    if not records and not errors:
        errors.append(f"{path}: no authored messages here; give a folder with .jsonl files or one such file")
    return records, errors + _set_errors(records)


def _set_errors(records: list[Record]) -> list[str]:
    """Find faults that single rows don't show: duplicate texts, and pairs that aren't pairs."""
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
