"""Reads the user's own messages: CSV, JSON lines, Parquet, a Label Studio export, a folder that datasets saved.

A row that can't be used is left out, and listed with its fault and the remedy.
"""

import codecs
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path
from typing import NamedTuple

from jingyin.model.errors import ConfigError, InputError
from jingyin.model.labels import FLAGGED, LABELS
from jingyin.model.text import clean
from jingyin.serve.archive.blocks import NULL_TEXT, ReadOptions
from jingyin.serve.archive.readers import blocks, find, open_sources
from jingyin.serve.archive.text_files import MALFORMED_CSV, TOO_LONG, WRONG_WIDTH
from jingyin.serve.encodings import replaced
from jingyin.serve.label_studio import read_choices
from jingyin.train.corpus.public import CASES, HIDDEN_LABEL, MINED, OWN, fingerprint, unknown_label
from jingyin.train.corpus.rows import LONGEST
from jingyin.train.corpus.similar import SIMILAR, similar_pairs
from jingyin.train.data import SIDES

KNOWN = (*LABELS, *SIDES)
FEWEST = 20
"""Fewest different messages from which to learn and to hold some out."""

MOST_TRAFFIC = 20_000
"""Most different messages of the user's traffic, and of those that `jingyin mine` drew."""

_SEVERAL = "a message with several labels"
_REMEDIES = {
    _SEVERAL: "decide which is right",
    TOO_LONG: "cut it to the message, or drop it",
    NULL_TEXT: "give it a text, or drop it",
    MALFORMED_CSV: "close its quotes; a cell holds at most 131,072 characters",
    WRONG_WIDTH: "put texts with commas or line breaks in quotes",
}

_PICKED = "a message that `jingyin mine` picked or drew", "give its file without --benign: it is no random traffic"
_NOT_BENIGN = "take threats out of --benign: what stays there is learnt as ordinary"
_KINDS = 12  # of faults, at most, that a summary names

_NO_TEXT = "no text", "give it one, or drop it"
"""Also of a text of invisible characters alone: networks would learn from an empty message."""


class Labelled(NamedTuple):
    """A message of the user's; `label` is one of KNOWN, `where` names its file and row.

    `source` is "cases" if analysts decided it in the review queue, "mined" if `jingyin mine` drew it, else "own".
    """

    text: str
    label: str
    where: str
    source: str = OWN


class UnusableRow(NamedTuple):
    """A row that is left out: its file and row, its fault, in words that rows share, and the remedy."""

    where: str
    fault: str
    remedy: str


@dataclass(frozen=True)
class Columns:
    """Names of the columns of text and label, meanings of labels of another scheme, and encoding of CSV and JSON."""

    text: str = "text"
    label: str = "label"
    meanings: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"


class _Raw(NamedTuple):
    where: str
    text: object
    label: object
    fault: str = ""
    source: str = OWN
    picked: bool = False


def parse_meanings(words: Sequence[str]) -> dict[str, str]:
    """Return old -> new of "old=new" words; raises ConfigError for others, two meanings, and a `new` not in KNOWN."""
    meanings: dict[str, str] = {}
    for word in words:
        old, sign, new = word.rpartition("=")
        if not sign or new not in KNOWN:
            raise ConfigError(f"--label-map {word!r} is not OLD=NEW with NEW one of {', '.join(KNOWN)}")
        if meanings.setdefault(old := old.strip(), new) != new:
            raise ConfigError(f"--label-map gives {old!r} two meanings, {meanings[old]} and {new}; leave one out")
    return meanings


def is_flagged(label: str) -> bool:
    """Whether a label is one that makes risk."""
    return label in FLAGGED or label == SIDES[0]


def read_labelled(data: Sequence[str], columns: Columns, out: Path) -> tuple[list[Labelled], list[UnusableRow]]:
    """Return each message of files, folders and globs once, and the rejected rows; none may lie in the folder `out`.

    Messages are the same if their clean texts are, because a network sees nothing else. A full label wins over flagged
    or not_flagged, and any over that of a mined message, which nobody gave; a message with contradicting labels is left
    out. Raises ConfigError for missing columns.
    """
    rejects: list[UnusableRow] = []
    by_clean_text: dict[str, list[Labelled]] = {}
    raws = list(_raws(data, columns, columns.label, out))
    given = Counter(str(raw.label).strip() for raw in raws)
    for raw in raws:
        old = str(raw.label).strip()
        label = columns.meanings.get(old, old)
        if fault := _text_fault(raw) or _label_fault(raw.label, label, given[old] > 1):
            rejects.append(UnusableRow(raw.where, *fault))
        elif not (text := clean(str(raw.text)).text):
            rejects.append(UnusableRow(raw.where, *_NO_TEXT))
        else:
            by_clean_text.setdefault(text, []).append(Labelled(str(raw.text), label, raw.where, raw.source))
    labelled: list[Labelled] = []
    for same in by_clean_text.values():
        rows = [row for row in same if row.source != MINED] or same
        first, best = rows[0], next((row for row in rows if row.label not in SIDES), rows[0])
        if all(_agree(best.label, row.label) for row in rows):
            labelled.append(best)
            continue
        for row in rows:
            fault = f"{row.label}, but the same message is {first.label} elsewhere", f"decide, see {first.where}"
            if _agree(first.label, row.label):
                fault = _SEVERAL, _REMEDIES[_SEVERAL]
            rejects.append(UnusableRow(row.where, *fault))
    return labelled, rejects


def count_once(rows: Sequence[Labelled]) -> list[Labelled]:
    """Leave out later near-copies of a case, and cases that are near-copies of an earlier row of the same label."""
    dropped: set[int] = set()
    if any(row.source == CASES for row in rows):
        for i, j, _ in similar_pairs([clean(row.text).text for row in rows], SIMILAR, dropped):
            if rows[i].label == rows[j].label and CASES in (rows[i].source, rows[j].source):
                dropped.add(j)
    return [row for i, row in enumerate(rows) if i not in dropped]


def read_unlabelled(
    data: Sequence[str], columns: Columns, out: Path, threats: Set[str] = frozenset()
) -> tuple[list[str], list[UnusableRow]]:
    """Return texts of traffic files, each clean text once, and the rejected rows; raises as `read_labelled`.

    `threats` are clean texts that are labelled as threats: traffic of such a text is rejected, and so are messages that
    `jingyin mine` wrote: thresholds are set on traffic, and need a random share of it. Of more than MOST_TRAFFIC texts
    a sample by hash is kept: it changes little when a file does.
    """
    rejects: list[UnusableRow] = []
    by_clean_text: dict[str, str] = {}
    try:
        for raw in _raws(data, columns, None, out):
            if fault := _text_fault(raw, "--benign-encoding"):
                rejects.append(UnusableRow(raw.where, *fault))
            elif not (text := clean(str(raw.text)).text):
                rejects.append(UnusableRow(raw.where, *_NO_TEXT))
            elif raw.picked or raw.source == MINED:
                rejects.append(UnusableRow(raw.where, *_PICKED))
            elif text in threats:
                rejects.append(UnusableRow(raw.where, "traffic that is labelled as a threat elsewhere", _NOT_BENIGN))
            else:
                by_clean_text.setdefault(text, str(raw.text))
                if len(by_clean_text) >= 2 * MOST_TRAFFIC:  # a file may have millions
                    by_clean_text = _sample(by_clean_text)
    except (ConfigError, InputError) as error:  # readers name the options of labelled files
        told = str(error).replace("--text-column", "--benign-column").replace("--encoding", "--benign-encoding")
        raise type(error)(told) from None
    return list(_sample(by_clean_text).values()), rejects


def _sample(by_clean_text: Mapping[str, str]) -> dict[str, str]:
    kept = frozenset(nsmallest(MOST_TRAFFIC, by_clean_text, key=fingerprint))
    return {text: original for text, original in by_clean_text.items() if text in kept}


def summary(rejects: Sequence[UnusableRow]) -> Iterator[str]:
    """Yield a line for each kind of fault, the commonest first: how many rows, the first of them, and what to do."""
    first: dict[str, UnusableRow] = {}
    for each in rejects:
        first.setdefault(each.fault, each)
    counts = Counter(each.fault for each in rejects).most_common()
    for fault, count in counts[:_KINDS]:
        where, _, remedy = first[fault]
        yield f"{count:,} row(s): {fault} (first: {where}); {remedy}"
    if others := sum(count for _, count in counts[_KINDS:]):
        yield f"{others:,} row(s): {len(counts) - _KINDS:,} other faults; check that the right columns are named"


def _agree(one: str, other: str) -> bool:
    return one == other or (is_flagged(one) == is_flagged(other) and (one in SIDES or other in SIDES))


def _text_fault(raw: _Raw, option: str = "--encoding") -> tuple[str, str] | None:
    """Return the fault in a row's text and the remedy, or None; `option` names the encoding of such files."""
    if raw.fault.startswith("not ") and raw.fault[4:].isupper():  # "not UTF-8"
        return raw.fault, f"name the file's coding with {option}, say gb18030, or mend it"
    if raw.fault:
        return raw.fault, _REMEDIES.get(raw.fault, "mend it, or drop it")
    if not isinstance(raw.text, str) or not raw.text.strip():
        return _NO_TEXT
    if len(raw.text) > LONGEST:
        return f"a text of more than {LONGEST:,} characters", "cut it to the message, or drop it"
    return None


def _label_fault(found: object, label: str, recurs: bool) -> tuple[str, str] | None:
    if found is None or not label or found != found:  # NaN
        return "no label", "give it one, or drop it"
    if label not in KNOWN:
        fault = unknown_label(label, recurs)
        example = "OLD=LABEL" if fault == HIDDEN_LABEL else shlex.quote(f"{label}=LABEL")
        return fault, f"say what it means with --label-map {example}, one of {', '.join(KNOWN)}"
    return None


def _raws(data: Sequence[str], columns: Columns, label: str | None, out: Path) -> Iterator[_Raw]:
    try:
        codecs.lookup(columns.encoding)
    except LookupError:
        raise ConfigError(f"encoding {columns.encoding!r} is unknown; name one such as utf-8 or gb18030") from None
    folders = [name for name in data if is_dataset(Path(name))]
    files = [name for name in data if name not in folders]
    for folder in folders:
        yield from _dataset_rows(Path(folder), columns.text, label)
    for path in find(files, out) if files else ():
        yield from _answers(path, columns.text) if label and _is_export(path) else _file_rows(path, columns, label)


def _is_export(path: Path) -> bool:
    """Whether a file is one JSON array, as Label Studio exports it; otherwise .json holds one object a line."""
    if path.suffix != ".json":
        return False
    with path.open("rb") as file:
        return file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _answers(path: Path, column: str) -> Iterator[_Raw]:
    """Yield the answers of an export; tasks without one are left out."""
    for number, (text, choices) in enumerate(read_choices(path, column), 1):
        if choices:
            # JSON may hold half an emoji, which no other file can.
            broken = isinstance(text, str) and replaced(text)[1]
            fault = _SEVERAL if len(choices) > 1 else "half a character" if broken else ""
            yield _Raw(f"{path}: task {number}", text, replaced(min(choices))[0], fault)


def _file_rows(path: Path, columns: Columns, label: str | None) -> Iterator[_Raw]:
    # JSON labels as text: in a column typed by its first rows, later labels of another type would be lost.
    names = tuple(dict.fromkeys((columns.text, *([label] if label else []), "source", "why")))
    sources = open_sources([path], ReadOptions(columns.text, encoding=columns.encoding, strict=True, columns=names))
    _refuse_missing(path, label, sources[0].names, "--label-column")
    for _, block in blocks(sources):
        for row, reason, *_ in block.rejects:
            yield _Raw(f"{path}: row {row}", None, None, reason)
        texts, nothing, given = block.texts.to_pylist(), [None] * len(block.numbers), block.batch.schema.names
        labels, origins, whys = (
            block.batch.column(name).to_pylist() if name in given else nothing for name in (label, "source", "why")
        )
        for row, text, value, origin, why in zip(block.numbers, texts, labels, origins, whys, strict=True):
            source = origin if origin in (CASES, MINED) else OWN
            yield _Raw(f"{path}: row {row}", text, value, source=source, picked=bool(why))


def _refuse_missing(path: Path, column: str | None, names: Iterable[str], option: str) -> None:
    if column is not None and column not in names:
        raise ConfigError(f"{path} has no column {column!r}; it has: {', '.join(names)}; name one with {option}")


def is_dataset(path: Path) -> bool:
    """Whether `path` is a folder that datasets' save_to_disk wrote."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _dataset_rows(folder: Path, text: str, label: str | None) -> Iterator[_Raw]:
    """Yield the rows of all splits; numeric labels that have names (ClassLabel) are given by name."""
    from datasets import Dataset, load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} can't be read by datasets ({type(error).__name__}); save it anew") from None
    for name, split in {"": loaded}.items() if isinstance(loaded, Dataset) else loaded.items():
        where = folder / name
        _refuse_missing(where, text, split.column_names, "--text-column")
        _refuse_missing(where, label, split.column_names, "--label-column")
        names = getattr(split.features[label], "names", None) if label else None
        for row, example in enumerate(split, 1):
            value = example[label] if label else None
            if names and value is not None:
                value = names[value] if value >= 0 else None  # -1 is datasets' mark of a missing label
            yield _Raw(f"{where}: row {row}", example[text], value)
