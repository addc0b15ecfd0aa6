"""The messages that benchmarks run on.

distinct    messages of files that the user names (.txt, one a line, or .jsonl or .parquet with "text"; .gz too), else
            authored benign rows with their slots filled; no two have one clean text, 1% are authored threats
templated   200 authored company notices, the r-th most frequent with a share like 1/r (Zipf); sender slots are
            filled once a template, recipient slots (name, amount, date, code, ...) anew each time; 1% are authored
            threats
"""

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random

import pyarrow.parquet as pq

from jingyin.model.labels import FLAGGED
from jingyin.model.text import clean
from jingyin.train.corpus.rows import Record, default_folders, load
from jingyin.train.corpus.slots import SLOT, SLOTS, fill_slots

THREATS = 0.01
TEMPLATES = 200
NOTICES = frozenset((
    "code_notice", "service_notice", "ad", "device_and_account", "bank_reminder", "carrier_arrears", "utility_bill",
))  # fmt: skip
RECIPIENT = frozenset((
    "name", "surname", "amount", "price", "phone", "date", "time", "link", "card", "code", "days", "deadline", "idtail",
))  # fmt: skip


def distinct(files: Sequence[Path], count: int, seed: int) -> list[str]:
    """Return at most `count` messages whose clean texts differ."""
    rng = Random(seed)
    benign = [text for file in files for text in texts(file)] or list(_filled(_rows(threats=False), 30, rng))
    rng.shuffle(benign)
    found: dict[str, str] = {}
    for text in _mixed(iter(benign), rng):
        found.setdefault(clean(text).text, text)
        if len(found) == count:
            break
    return list(found.values())


def templated(count: int, seed: int) -> list[str]:
    rng = Random(seed)
    notices = [row.text for row in _authored() if row.family in NOTICES and SLOT.search(row.text)]
    rows = [SLOT.sub(partial(_sender, rng), row) for row in rng.sample(notices, TEMPLATES)]
    drawn = rng.choices(rows, [1 / rank for rank in range(1, TEMPLATES + 1)], k=count)
    mixed = _mixed((fill_slots(row, rng) for row in drawn), rng)
    return [next(mixed) for _ in range(count)]


def _sender(rng: Random, slot: re.Match[str]) -> str:
    return slot[0] if slot[1] in RECIPIENT else SLOTS[slot[1]](rng)


def _mixed(benign: Iterator[str], rng: Random) -> Iterator[str]:
    threats = cycle(list(_filled(_rows(threats=True), 3, rng)))
    for text in benign:
        yield next(threats) if rng.random() < THREATS else text


def _authored() -> list[Record]:
    return [row for folder in default_folders() for row in load(folder)]


def _rows(*, threats: bool) -> list[str]:
    return [row.text for row in _authored() if (row.label in FLAGGED) == threats]


def _filled(rows: list[str], times: int, rng: Random) -> Iterator[str]:
    rng.shuffle(rows)
    return (fill_slots(row, rng) for _ in range(times) for row in rows)


def texts(file: Path) -> Iterator[str]:
    if file.suffix == ".parquet":
        yield from pq.read_table(file, columns=["text"])["text"].to_pylist()
        return
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"] if ".jsonl" in file.suffixes else line.rstrip("\n")
            if text.strip():
                yield text
