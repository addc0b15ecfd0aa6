"""Finds faults in a corpus: authored messages, or a built one."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.train.corpus import store
from jingyin.train.corpus.build import comparable_text
from jingyin.train.corpus.rows import Record, default_folders, find_errors, row_id, scan, unknown_ids
from jingyin.train.corpus.similar import SIMILAR, Groups, series, similar_pairs
from jingyin.train.corpus.slots import SLOT
from jingyin.train.corpus.store import Row

# Seven digits or more, or three blocks of them: phone numbers, ids, cards. Authored messages have slots instead.
_PERSONAL = re.compile(r"\d{7}|\d{3,4}(?:[ -]\d{3,4}){2}")


def check(paths: Sequence[Path] = ()) -> list[str]:
    """Return a sentence for each error, naming file and line, in authored messages or built corpora.

    Checks schema, labels, duplicates, near-duplicates within a label, series, two labels for one text, real phone
    numbers, and groups, cases or near-duplicates in two splits. Without paths the package's messages are checked,
    and with them signs.jsonl: unknown messages, duplicate ids, unknown signs.
    """
    built = [path for path in paths if store.is_built(path)]
    scanned = [scan(path) for path in paths or default_folders() if path not in built]
    records = [record for found, _ in scanned for record in found]
    errors = [error for _, wrong in scanned for error in wrong]
    errors += [
        f"{record.where}: a number as long as a phone's or an id's; put a slot such as {{phone}} there"
        for record in records
        if _PERSONAL.search(SLOT.sub("", record.text))
    ]
    errors += _alike(records) + _series(records)
    if not paths:
        errors += find_errors(frozenset(row_id(record.text) for record in records))
    return errors + [error for path in built for error in _built(path)]


def _alike(records: Sequence[Record]) -> list[str]:
    texts = [comparable_text(record.text) for record in records]
    errors, groups = [], Groups(len(texts))
    for i, j, alike in similar_pairs(texts, SIMILAR, groups=groups):
        one, other = records[i], records[j]
        if one.label == other.label:
            groups.union((i, j))
            errors.append(f"{other.where}: {alike:.2f} like {one.where}; rewrite or drop one")
        elif texts[i] == texts[j]:
            errors.append(f"{other.where}: the text of {one.where} with another label; settle which is right")
    return errors


def _series(records: Sequence[Record]) -> list[str]:
    """Find series within a label; minimal pairs don't count."""
    by_label: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_label[record.label].append(record)
    return [
        f"{rows[found[0]].where}: {len(found)} messages differ in names, numbers or places alone, the last is "
        f"{rows[found[-1]].where}; keep one"
        for rows in by_label.values()
        for found in series([record.text for record in rows])
    ]


def _built(folder: Path) -> list[str]:
    try:
        splits = store.read(folder)
    except InputError as error:
        return [str(error)]
    errors = []
    for split, rows in splits.items():
        where = folder / f"{split}.parquet"
        errors += [f"{where}: row {i}: {error}" for i, row in enumerate(rows) for error in _row_errors(row)]
    return errors + _leaks(folder, splits)


def _row_errors(row: Row) -> Iterable[str]:
    if row.label not in LABELS:
        yield f"unknown label {row.label!r}; known: {', '.join(LABELS)}"
    if unknown := unknown_ids(row.signs):
        yield f"unknown signs {', '.join(unknown)}; build the corpus again"
    if not row.text.strip():
        yield "no text; build the corpus again"
    if not row.weight > 0:
        yield f"weight {row.weight}; weights are above 0"
    if row.source == "authored" and _PERSONAL.search(SLOT.sub("", row.template)):
        yield "a number as long as a phone's or an id's in its template; put a slot there"


def _leaks(folder: Path, splits: dict[str, list[Row]]) -> list[str]:
    """Find groups, cases, and similar templates on two sides of a split."""
    splits_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    home: dict[str, str] = {}
    errors = []
    for split, rows in splits.items():
        for row in rows:
            splits_of["group", row.group].add(split)
            splits_of["case", row.case].add(split)
            if home.setdefault(row.template, split) != split:
                errors.append(f"{folder}: one template in {home[row.template]} and {split}; build it again")
    splits_of.pop(("case", ""), None)
    errors += [
        f"{folder}: {what} {name} in {', '.join(sorted(splits_found))}; build it again"
        for (what, name), splits_found in splits_of.items()
        if len(splits_found) > 1
    ]
    names, groups = list(home.values()), Groups(len(home))
    for i, j, alike in similar_pairs([comparable_text(template) for template in home], SIMILAR, groups=groups):
        if names[i] == names[j]:
            groups.union((i, j))
        else:
            errors.append(f"{folder}: templates {alike:.2f} alike in {names[i]} and {names[j]}; build it again")
    return errors
