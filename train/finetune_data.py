"""Reads one's own labelled messages: CSV, JSON lines, Parquet, a Label Studio export, a folder that datasets saved."""

import codecs
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import NamedTuple

import yaml

from jingyin.model.cascade import FLAGGED_INDEX
from jingyin.model.errors import ConfigError, InputError
from jingyin.model.labels import FLAGGED, LABELS
from jingyin.model.text import clean
from jingyin.serve.archive.blocks import NULL_TEXT, Reading
from jingyin.serve.archive.readers import blocks, find, open_sources
from jingyin.serve.archive.text_files import MALFORMED_CSV, TOO_LONG, WRONG_WIDTH
from jingyin.serve.label_studio import read_annotations
from jingyin.serve.scorer import Scorer
from jingyin.train.corpus import store
from jingyin.train.corpus.build import bare, build
from jingyin.train.corpus.perturb import TRAINING, dress, evade
from jingyin.train.corpus.rows import LONGEST
from jingyin.train.corpus.similar import SIMILAR, Groups, pairs_across, similar_pairs
from jingyin.train.corpus.stats import corpus_tables
from jingyin.train.corpus.store import SPLITS, Row

SIDES = ("flagged", "not_flagged")
"""Labels of rows of which only the risk is known."""

KNOWN = (*LABELS, *SIDES)
_SHOWN = 20
_REMEDIES = {
    TOO_LONG: "cut it to the message, or drop it",
    NULL_TEXT: "give it a text, or drop it",
    MALFORMED_CSV: "close its quotes; a cell holds at most 131,072 characters",
    WRONG_WIDTH: "put texts with commas or line breaks in quotes",
}


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
    sources = open_sources([path], Reading(columns.text, encoding=columns.encoding, strict=True))
    _refuse_missing(path, label, sources[0].schema.names)
    for _, block in blocks(sources):
        for row, reason, *_ in block.rejects:
            yield _Raw(f"{path}: row {row}", None, None, f"{reason}; {_remedy(reason)}")
        labels = block.batch.column(label).to_pylist() if label else [None] * len(block.numbers)
        for row, text, found in zip(block.numbers, block.texts.to_pylist(), labels, strict=True):
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


# Deduplicates one's own rows: refuses contradictions, and rows too few to learn from.


FEWEST = 20
"""Different messages below which nothing can be learnt and held out."""

_TEXTS_SHOWN = 20


def is_flagged(label: str) -> bool:
    """Whether a label is one that makes risk."""
    return label in FLAGGED or label == SIDES[0]


def deduplicate(rows: Sequence[Labelled]) -> list[Labelled]:
    """Return each message once, by its clean text: that is all that a network sees of it.

    Of a message that comes with a label and with no more than flagged or not, the label stays. Raises InputError for
    messages of one clean text whose labels differ, for fewer than FEWEST messages, and for one label alone.
    """
    kept: dict[str, Labelled] = {}
    errors = []
    for row in rows:
        text = clean(row.text).text
        first = kept.get(text)
        if first is None or (first.label in SIDES and row.label not in SIDES and _agree(first.label, row.label)):
            kept[text] = row
        elif not _agree(first.label, row.label):
            errors.append(f"{row.where}: {row.label}, but {first.where}, the same message, is {first.label}")
    if errors:
        more = f"\n... and {len(errors) - _SHOWN} more" if len(errors) > _TEXTS_SHOWN else ""
        raise InputError(
            f"{len(errors)} message(s) have two labels; decide which is right (what differs in numbers, links or "
            "disguise alone is one message to a network):\n" + "\n".join(errors[:_TEXTS_SHOWN]) + more
        )
    _refuse_poor(list(kept.values()))
    return list(kept.values())


def _agree(one: str, other: str) -> bool:
    return one == other or (is_flagged(one) == is_flagged(other) and (one in SIDES or other in SIDES))


def _refuse_poor(rows: Sequence[Labelled]) -> None:
    if len(rows) < FEWEST:
        raise InputError(
            f"{len(rows)} different message(s); wanted at least {FEWEST}, and some hundred to learn much: "
            "label more, say the tasks of `jingyin relabel --label-studio`"
        )
    if len(labels := {row.label for row in rows}) == 1:
        raise InputError(
            f"all {len(rows)} messages have the label {labels.pop()}; add messages of another label, "
            "those that look most like them: from one label alone nothing can be told apart"
        )


# The corpus of a fine-tuning: one's own messages, a replay of authored ones, and traffic of one's own.
#
# Authored messages keep the split that they have in the default corpus: what the shipped bundle was trained on is never
# tested on.


REPLAY = 4000
"""Authored training messages that are trained on again; four times as many as the own ones where that is more."""

HELD_OUT = {"validation": 500, "calibration": 2500, "test": 2000}
"""Authored messages of the other splits, at most."""

TRAFFIC = "jsonl"
"""Source of the messages of traffic: the corpus's name for messages of one's own that nobody picked."""

MOST_TRAFFIC = 20_000
SHARES = {"test": 0.2, "calibration": 0.1}
"""Of the own messages; the rest is trained on."""

_TRAFFIC_TEST = 0.4
_CARD = """# Corpus of a fine-tuning run

Sources: own (labelled messages of one's own), authored (invented for jingyin), jsonl (own messages without labels,
taken for ordinary ones).

{counts}
"""

Splits = dict[str, list[Row]]


def replayed(own: int) -> int:
    """Return how many authored messages are trained on again beside so many own ones."""
    return max(REPLAY, 4 * own)


def authored_corpus(folder: Path) -> Splits:
    """Return the authored messages in their splits of the default corpus, built into `folder` unless they are there."""
    if not store.is_built(folder):
        content = yaml.safe_load(files("jingyin").joinpath("configs/default/corpus.yaml").read_text(encoding="utf-8"))
        recipe = folder.with_suffix(".yaml")
        recipe.write_text(yaml.safe_dump({**content, "public": []}), encoding="utf-8")
        build(recipe, folder)
    return store.read(folder)


def write_corpus(
    own: Sequence[Labelled], traffic: Sequence[str], authored: Mapping[str, Sequence[Row]], incumbent: Scorer,
    folder: Path, seed: int,
) -> Splits:  # fmt: skip
    """Write the corpus folder; near-duplicates never lie in two splits. Returns its rows."""
    rng = Random(seed)
    splits = {split: _some(authored[split], HELD_OUT.get(split, replayed(len(own))), rng) for split in SPLITS}
    placed = _place(own, authored["train"], splits)
    labels = _full_labels(own, incumbent)
    for row, label, split in zip(own, labels, placed, strict=True):
        splits[split] += _own_rows(row, label, split == "train", rng)
    for text, split in _apart(traffic, [row.text for row in own], splits, rng):
        splits[split].append(_row(text, "ordinary", "traffic", TRAFFIC, text))
    store.write(splits, {"seed": seed}, _CARD.format(counts=corpus_tables(splits)), folder)
    return splits


def _some(rows: Sequence[Row], messages: int, rng: Random) -> list[Row]:
    """Return the rows of so many messages, drawn at random, in their order."""
    templates = list(dict.fromkeys(row.template for row in rows))
    chosen = set(rng.sample(templates, min(messages, len(templates))))
    return [row for row in rows if row.template in chosen]


def _place(own: Sequence[Labelled], seen: Sequence[Row], splits: Splits) -> list[str]:
    """Return the split of each own message; take authored held-out rows out of `splits` that are like one elsewhere.

    What is like an authored training message is trained on: the incumbent has seen its like.
    """
    texts = [clean(row.text).text for row in own]
    groups = Groups(len(own))
    for i, j, _ in similar_pairs(texts, SIMILAR):
        groups.union((i, j))
    templates = list(dict.fromkeys(row.template for row in seen))
    known = {groups.find(i) for i, _ in pairs_across(texts, [bare(each) for each in templates])}
    placed = _shares([groups.find(i) for i in range(len(own))], texts, known)
    for split in HELD_OUT:
        rows = splits[split]
        like = pairs_across(texts, [bare(row.template) for row in rows])
        dropped = {j for i, j in like if placed[i] != split}
        splits[split] = [row for j, row in enumerate(rows) if j not in dropped]
    return placed


def _shares(groups: Sequence[int], texts: Sequence[str], known: set[int]) -> list[str]:
    """Fill test and calibration with whole groups in an order drawn by their texts; `known` groups are for training."""
    sizes = Counter(groups)
    split = dict.fromkeys(sizes, "train")
    free = iter(sorted(sizes.keys() - known, key=lambda group: hashlib.sha256(texts[group].encode()).digest()))
    for name, share in SHARES.items():
        left = round(share * len(groups))
        while left > 0 and (group := next(free, None)) is not None:
            split[group] = name
            left -= sizes[group]
    return [split[group] for group in groups]


def _full_labels(own: Sequence[Labelled], incumbent: Scorer) -> list[str]:
    """Return a label of the five for each row.

    A row with a side alone gets the label of that side that the incumbent gives most.
    """
    half = [row for row in own if row.label in SIDES]
    decided = {
        row.where: each.decision for row, each in zip(half, incumbent.scored([r.text for r in half]), strict=True)
    }
    return [
        _likeliest(decided[row.where].probabilities, is_flagged(row.label)) if row.label in SIDES else row.label
        for row in own
    ]


def _likeliest(probabilities: Mapping[str, float], flagged: bool) -> str:
    side = [label for i, label in enumerate(LABELS) if (i in FLAGGED_INDEX) == flagged]
    return max(side, key=lambda label: probabilities[label])


def _own_rows(own: Labelled, label: str, training: bool, rng: Random) -> Iterator[Row]:
    """Yield a message, and for training a disguised and a dressed copy of it."""
    copies = [(own.text, "")]
    if training:
        families = rng.sample(TRAINING, len(TRAINING))
        hidden = ((evade(own.text, family, rng.uniform(0.2, 0.8), rng), family) for family in families)
        copies += [next((each for each in hidden if each[0] != own.text), (own.text, ""))]
        copies.append((dress(own.text, rng), "dressed"))
    for text, evasion in copies:
        yield _row(text, label, own.label, "own", own.text, evasion)


def _row(text: str, label: str, family: str, source: str, template: str, evasion: str = "") -> Row:
    group = hashlib.sha256(f"{source} {template}".encode()).hexdigest()[:16]
    return Row(text, label, family, "public", source, group, template, evasion, 1.0)


def _apart(traffic: Sequence[str], own: Sequence[str], splits: Splits, rng: Random) -> Iterator[tuple[str, str]]:
    """Yield messages of traffic with their split: each once, none like another one, an own or an authored one."""
    once = list({clean(text).text: text for text in traffic}.values())
    drawn = rng.sample(once, min(MOST_TRAFFIC, len(once)))
    texts = [clean(text).text for text in drawn]
    like = {j for _, j, _ in similar_pairs(texts, SIMILAR)}
    others = [clean(text).text for text in own] + [bare(row.template) for rows in splits.values() for row in rows]
    like |= {i for i, _ in pairs_across(texts, list(dict.fromkeys(others)))}
    kept = [text for i, text in enumerate(drawn) if i not in like]
    for number, text in enumerate(kept):
        yield text, "test" if number < _TRAFFIC_TEST * len(kept) else "calibration"
