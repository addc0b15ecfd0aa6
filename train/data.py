"""From a corpus folder to token ids: the input of training, calibration and the prefilter."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from jingyin.model.cascade import FLAGGED_INDEX
from jingyin.model.errors import InputError
from jingyin.model.labels import BENIGN, LABELS
from jingyin.model.prefilter import windows
from jingyin.model.text import CleanText, clean
from jingyin.train.corpus.public import MINED, SOURCES, USERS
from jingyin.train.corpus.rows import UNKNOWN, is_annotated, sign_targets
from jingyin.train.corpus.store import SPLITS, read_table

Encode = Callable[[Sequence[CleanText]], list[list[int]]]
"""Clean texts -> token ids, start and end tokens included, bounded in length."""

Ranges = Sequence[tuple[int, int]]


class Part(NamedTuple):
    """A clean text, or the part of a long one that a network reads at once.

    `ids` are its tokens, `place` its range in the text; `windows` (n,) are the indices of the windows that it holds,
    `spans` (n, 2) their tokens.
    """

    ids: list[int]
    place: tuple[int, int]
    windows: NDArray[np.int64]
    spans: NDArray[np.int64]


PartsOf = Callable[[Sequence[CleanText], Sequence[Ranges]], list[list[Part]]]
"""Clean texts and the ranges of their windows -> the parts of each text."""

ORDINARY, LAWFUL = map(LABELS.index, BENIGN)


@dataclass(frozen=True)
class Rows:
    """Rows of one split: cleaned messages, label indices (n,), weights (n,) of mean 1, and where they come from.

    `messages` (n,) numbers the message that a row is a variant of: itself, a disguised or a framed copy; `signs` are as
    in corpus/rows.py, `evasions` say how a copy was made, "" for a message as it stands. `places` (n, 2) are the ranges
    of the messages themselves in the clean texts, `beside` (n,) the index of the label of the text next to them, -1
    where there is none: a text is a message throughout, or what stands around it is a frame. Rows with the same `pairs`
    id differ in little but their label; "" for none.
    """

    cleaned: list[CleanText]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    messages: NDArray[np.int64]
    places: NDArray[np.int64]
    beside: NDArray[np.int64]
    families: list[str]
    sources: list[str]
    cases: list[str]
    signs: list[str]
    evasions: list[str]
    pairs: list[str]

    def __len__(self) -> int:
        return len(self.cleaned)

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Which rows (n,) have a flagged label."""
        return np.isin(self.labels, FLAGGED_INDEX)

    @property
    def first(self) -> NDArray[np.bool_]:
        """Which rows (n,) are the first of their message: the message as it stands, before its copies."""
        first = np.zeros(len(self), np.bool_)
        first[np.unique(self.messages, return_index=True)[1]] = True
        return first

    @property
    def real(self) -> NDArray[np.bool_]:
        """Which rows (n,) are of real traffic, neither written nor picked by hand."""
        return np.array([source in SOURCES or source == MINED for source in self.sources], np.bool_)

    @property
    def own(self) -> NDArray[np.bool_]:
        """Which rows (n,) are the user's own labelled messages."""
        return np.array([source in USERS for source in self.sources], np.bool_)

    @property
    def annotated(self) -> NDArray[np.bool_]:
        """Which rows (n,) have signs that people annotated."""
        return np.array([is_annotated(signs) for signs in self.signs], np.bool_)

    def take(self, index: NDArray[np.int64]) -> "Rows":
        """Return the rows at `index`, in that order."""
        taken: dict[str, Any] = {}
        for name, column in vars(self).items():
            taken[name] = [column[i] for i in index.tolist()] if isinstance(column, list) else column[index]
        return Rows(**taken)

    def and_(self, others: "Rows") -> "Rows":
        """Return these rows followed by `others`, as messages of their own."""
        others = replace(others, messages=others.messages + self.messages.max(initial=-1) + 1)
        both: dict[str, Any] = {}
        for name, column in vars(self).items():
            more = vars(others)[name]
            both[name] = [*column, *more] if isinstance(column, list) else np.concatenate([column, more])
        return Rows(**both)

    def drawn(self, rows: int | None, seed: int) -> "Rows":
        """Return `rows` of the rows, drawn by seed and in their order; all of them for None."""
        if rows is None:
            return self
        # In their order: a message's first row is the message as it stands.
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:rows]))


def read_split(corpus: Path, split: str) -> Rows:
    """Read one of SPLITS of a corpus folder; raises InputError when it can't be read or has an unknown label.

    Rows are cached: all stages of a run share them. Callers must not change them in place.
    """
    path = split_file(corpus, split)
    return _read(path, path.stat().st_mtime_ns)


def split_file(corpus: Path, split: str) -> Path:
    """Return the file of one of SPLITS in a corpus folder; raises InputError when it is missing."""
    path = corpus / f"{split}.parquet"
    if not path.is_file():
        raise InputError(
            f"{corpus} has no {split}.parquet; make the folder with `jingyin corpus build RECIPE {corpus}`"
        )
    return path


@lru_cache(maxsize=len(SPLITS))
def _read(path: Path, _changed: int) -> Rows:
    table = read_table(path).to_pydict()
    unknown = sorted(set(table["label"]) - set(LABELS))
    if unknown:
        raise InputError(f"{path} holds labels {unknown}; known are {list(LABELS)}")
    numbers: dict[str, int] = {}
    cleaned = [clean(text) for text in table["text"]]
    return Rows(
        cleaned,
        np.array([LABELS.index(label) for label in table["label"]], np.int64),
        np.array(table["weight"], np.float32) / np.float32(np.mean(table["weight"] or [1])),  # mean 1 in every split
        np.array([numbers.setdefault(template, len(numbers)) for template in table["template"]], np.int64),
        _places(cleaned, table["start"], table["end"]),
        np.array([LABELS.index(label) if label else -1 for label in table["beside"]], np.int64),
        *(table[name] for name in ("family", "source", "case", "signs", "evasion", "pair")),
    )


def _places(cleaned: Sequence[CleanText], starts: Sequence[int], ends: Sequence[int]) -> NDArray[np.int64]:
    """Return the ranges (n, 2) in clean texts of messages that stand at [start, end) of the original texts."""
    places = np.array([(0, len(each.text)) for each in cleaned], np.int64).reshape(-1, 2)
    for i, (each, start, end) in enumerate(zip(cleaned, starts, ends, strict=True)):
        if start == 0 and end >= len(each.original):
            continue
        if inside := [j for j, (first, last) in enumerate(each.offsets) if last > start and first < end]:
            places[i] = inside[0], inside[-1] + 1
    return places


SIDES = ("flagged", "not_flagged")
"""Families of the user's own messages that are labelled only as flagged or not."""


def unlabelled(cleaned: list[CleanText]) -> Rows:
    """Return rows of weight 1 whose label, -1, means nothing."""
    count = len(cleaned)
    words = ([word] * count for word in ("", "unlabelled", "", UNKNOWN, "", ""))
    nothing = np.full(count, -1)
    wholes = _places(cleaned, [0] * count, [len(each.original) for each in cleaned])
    return Rows(cleaned, nothing, np.ones(count, np.float32), np.arange(count), wholes, nothing, *words)


def one_hot(labels: NDArray[np.int64], smoothing: float) -> NDArray[np.float32]:
    """Return target distributions (n, labels): 1 - smoothing on the label, the rest spread evenly."""
    rest = smoothing / len(LABELS)
    return (np.eye(len(LABELS), dtype=np.float32)[labels] * (1 - smoothing) + rest).astype(np.float32)


def signs_of_rows(rows: Rows) -> NDArray[np.float32]:
    """Return for each row and sign 1, 0, or NaN if unknown (n, signs)."""
    known = {each: sign_targets(each) for each in set(rows.signs)}
    return np.stack([known[each] for each in rows.signs])


def examples(rows: Rows, encode: Encode, target: NDArray[np.float32]) -> Dataset:
    """Return the input of the training loop: for each row `ids`, `target`, `weight`, `message`, `pair` and `plain`."""
    return Dataset.from_dict({
        "ids": encode(rows.cleaned), "target": list(target), "weight": rows.weights, "message": rows.messages,
        "pair": rows.pairs, "plain": _plain(rows),
    })  # fmt: skip


def examples_in_parts(rows: Rows, parts_of: PartsOf, target: NDArray[np.float32]) -> Dataset:
    """Return the training loop's input with each part of a long text as a row of its own, a copy of its message.

    Also `spans` of the part's windows, one after another, whether each is `inside`, a part of the message, and the
    label `beside` that the others have. A part that shows half of the message, or nothing else, has its target, one
    without a word of it the label `beside`, at most one of a text; what shows less of it is left out. So is a part of a
    framed message without a word of the frame, because nothing in it says what the frame makes of the message. A long
    message without company has its target in every part.
    """
    ranges = [windows(each.text) for each in rows.cleaned]
    taken, columns = list[int](), {name: list[Any]() for name in ("ids", "target", "pair", "spans", "inside")}
    places, beside, of_company = rows.places.tolist(), rows.beside.tolist(), np.eye(len(LABELS), dtype=np.float32)
    for i, parts in enumerate(parts_of(rows.cleaned, ranges)):
        (first, last), text, company_shown = places[i], rows.cleaned[i].text, False
        for ids, (start, end), held, spans in parts:
            common = min(end, last) - max(start, first)  # characters of the message; none if negative
            around = text[start : max(start, min(first, end))] + text[min(end, max(last, start)) : end]
            framed = beside[i] < 0 and last - first < len(text)
            if framed and not any(map(str.isalnum, around)):
                continue
            if beside[i] >= 0 and (company_shown if common <= 0 else 2 * common < min(last - first, end - start)):
                continue
            company_shown |= common <= 0
            taken.append(i)
            columns["ids"].append(ids)
            columns["target"].append(target[i] if common > 0 or beside[i] < 0 else of_company[beside[i]])
            columns["pair"].append(rows.pairs[i] if start <= first and last <= end else "")
            columns["spans"].append(spans.ravel())
            columns["inside"].append([a < last and b > first for a, b in (ranges[i][j] for j in held.tolist())])
    index = np.array(taken, np.int64)
    return Dataset.from_dict({
        **columns, "weight": rows.weights[index], "message": rows.messages[index], "beside": rows.beside[index],
        "plain": np.array(_plain(rows), np.bool_)[index],
    })  # fmt: skip


def _plain(rows: Rows) -> list[bool]:
    """Whether each row is shown as it stands: nobody's punctuation is the right one."""
    return [evasion in ("", "restyled") for evasion in rows.evasions]


_CLAUSE = re.compile(r"[^，。！？；,!?;\n]+[，。！？；,!?;\n]*")


def clauses(texts: Sequence[str], share: float, seed: int) -> list[str]:
    """Return pieces of about `share` of the texts: some clauses, not all, half followed by a piece of another text.

    A threat may come so. A piece is for a teacher to label, because its meaning by itself is unknown: a warning's
    quotation alone is a threat. Texts of one clause give none. The same seed gives the same pieces.
    """
    rng = Random(seed)
    several = [found for text in texts if len(found := _CLAUSE.findall(text)) > 1]
    pieces = [_piece(found, rng) for found in several if rng.random() < share]
    return [piece if rng.random() < 0.5 else piece + _piece(rng.choice(several), rng) for piece in pieces]


def _piece(found: Sequence[str], rng: Random) -> str:
    count = rng.randint(1, len(found) - 1)
    start = rng.randint(0, len(found) - count)
    return "".join(found[start : start + count])
