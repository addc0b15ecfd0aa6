"""What changed against an older label: a confusion table, counts a family, and the rows that moved."""

import heapq
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jingyin.model.errors import ConfigError, InputError
from jingyin.serve.archive.writers import as_json, aside
from jingyin.serve.label_studio import task, with_signs

NONE = "(none)"
"""Stands for a missing older label; such a row has not moved."""

FAMILY = "family"
MAX_LABELS = 100
MAX_FAMILIES = 1000
REST = "(other families)"


@dataclass
class Changes:
    """Counts of rows: `table` by older and new label, `families` as [rows, moved] by family."""

    table: dict[str, dict[str, int]] = field(default_factory=dict)
    families: dict[str, list[int]] = field(default_factory=dict)

    def add(self, before: pa.Array, now: pa.Array, family: pa.Array | None) -> None:
        """Count a block; raises InputError for over MAX_LABELS distinct values in `before`, or no names in `family`."""
        names = families(family) if family is not None else pa.nulls(len(now), pa.string())
        groups = pa.table({"before": before, "now": now, "family": names}).group_by(["before", "now", "family"])
        for group in sorted(groups.aggregate([([], "count_all")]).to_pylist(), key=str):
            row = self.table.setdefault(group["before"], {})
            row[group["now"]] = row.get(group["now"], 0) + group["count_all"]
            if family is not None:
                self._count_family(group["family"], group["count_all"], moved=_moved(group["before"], group["now"]))
        if len(self.table) > MAX_LABELS:
            raise InputError(f"the column to compare has over {MAX_LABELS} different values: it holds no labels; name "
                             "another with --compare")  # fmt: skip

    def _count_family(self, name: str, rows: int, *, moved: bool) -> None:
        if name not in self.families and len(self.families) >= MAX_FAMILIES:
            name = REST
        counts = self.families.setdefault(name, [0, 0])
        counts[0] += rows
        counts[1] += rows * moved

    @property
    def moved(self) -> int:
        """Rows whose label is another now."""
        return sum(rows for before, row in self.table.items() for now, rows in row.items() if _moved(before, now))

    def lines(self) -> Iterator[str]:
        """Yield the lines of the tables for a terminal: a row for each older label, a column for each new one."""
        columns = sorted({now for row in self.table.values() for now in row})
        body = [[before, *(f"{self.table[before].get(now, 0):,}" for now in columns)] for before in sorted(self.table)]
        yield from aligned([["before \\ now", *columns], *body])
        if self.families:
            yield ""
            top = sorted(self.families.items(), key=lambda item: (-item[1][1], item[0]))
            yield from aligned([["family", "rows", "moved"], *([n, f"{r:,}", f"{m:,}"] for n, (r, m) in top)])

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Changes":
        """Return what `as_dict` gave, or nothing counted yet for an empty mapping."""
        return cls(deepcopy(content.get("table", {})), deepcopy(content.get("families", {})))

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types, in an order that does not depend on when a label was first met."""
        table = {before: dict(sorted(self.table[before].items())) for before in sorted(self.table)}
        return {
            "moved": self.moved,
            "table": table,
            "families": {n: list(self.families[n]) for n in sorted(self.families)},
        }


def _moved(before: str, now: str) -> bool:
    return before not in (NONE, now)


def older_labels(column: pa.Array) -> pa.Array:
    """Return the column to compare as strings, with NONE for nulls; raises InputError for lists and objects."""
    return _names(column, "the column to compare", "labels; name another with --compare")


def families(column: pa.Array) -> pa.Array:
    """Return the column of families as strings, with NONE for nulls; raises InputError for lists and objects."""
    return _names(column, f"the column {FAMILY!r}", "names to count changes by; rename it, or run without --compare")


def _names(column: pa.Array, given: str, wanted: str) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return pc.fill_null(column.cast(pa.string()), NONE)
    except pa.ArrowException:
        raise InputError(f"{given} is {column.type}, wanted {wanted}") from None


def moved_rows(before: pa.Array, now: pa.Array) -> list[int]:
    """Return the indices of rows whose label is another now."""
    mask = pc.and_(pc.not_equal(before, now), pc.not_equal(before, NONE))
    return list(pc.indices_nonzero(mask).to_pylist())


def aligned(rows: list[list[str]]) -> Iterator[str]:
    """Yield a table's lines: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        yield "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))])


# Rows worth a person's look, ordered by risk, in bounded memory.
#
# An external merge sort: sorted runs go to one file as the shards go by, and are merged at the end.


RUN_BYTES = 16 << 20
_READ = 1 << 14


class Ranked:
    """Gathers the rows of a shard; `order` counts them through the run and settles ties of risk."""

    def __init__(self) -> None:
        self.held: list[bytes] = []
        self._bytes = 0

    def add(self, order: int, row: Mapping[str, Any]) -> None:
        """Add a row; its "risk", 0 to 1, says where it belongs."""
        # Bytes of positive doubles sort as they do; a risk, a sum of probabilities, may round to just above 1.
        safety = struct.pack(">d", max(0.0, 1 - row["risk"])).hex()
        line = f"{safety}{order:016d}{as_json(row)}\n".encode()
        self.held.append(line)
        self._bytes += len(line)

    @property
    def full(self) -> bool:
        """Whether a run is due."""
        return self._bytes >= RUN_BYTES

    def run(self) -> bytes:
        """Return the rows held as a sorted run, and forget them."""
        held, self.held, self._bytes = self.held, [], 0
        return b"".join(sorted(held))


def merge(path: Path, ends: Sequence[int]) -> Iterator[bytes]:
    """Yield the rows of all runs, each as a line of JSON, highest risk first."""
    with path.open("rb") as file:
        runs = [_lines(file.fileno(), start, end) for start, end in pairwise([0, *ends])]
        for line in heapq.merge(*runs):
            yield line[32:]


def _lines(handle: int, start: int, end: int) -> Iterator[bytes]:
    rest = b""
    while start < end:
        piece = os.pread(handle, min(_READ, end - start), start)
        start += len(piece)
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


# Label Studio tasks from rows worth a look; `jingyin audit` reads the export.


DEFAULT_SAMPLE = 1000


def check_place(path: Path, out: Path) -> None:
    """Raise ConfigError when tasks can't be written to `path`, or it lies in the output folder `out`."""
    if not path.resolve().parent.is_dir() or out.resolve() in path.resolve().parents:
        raise ConfigError(f"the file for Label Studio, {path}, must lie in a folder that exists, and not in the output")


def write_tasks(path: Path, tasks: Iterable[Mapping[str, Any]]) -> int:
    """Write a JSON array of tasks; return how many."""
    count = 0
    with aside(path) as file:
        for count, each in enumerate(tasks, 1):
            file.write((b",\n" if count > 1 else b"[\n") + as_json(each).encode())
        file.write(b"\n]\n" if count else b"[]\n")
    return count


def sampled(rows: Iterable[bytes], sample: int, bundle: str) -> Iterator[dict[str, Any]]:
    """Yield tasks for `sample` of `rows` (lines of JSON), in their order."""
    for row in _pick(rows, sample):
        yield _task(json.loads(row), bundle)


def _pick(rows: Iterable[bytes], sample: int) -> Iterator[bytes]:
    """Yield the `sample` rows with the smallest hash: at random, but the same ones each time (bottom-k sampling)."""
    hashed = ((blake2b(row, digest_size=8).digest(), order, row) for order, row in enumerate(rows))
    for _, _, row in sorted(heapq.nsmallest(sample, hashed), key=lambda each: each[1]):
        yield row


def _task(row: dict[str, Any], bundle: str) -> dict[str, Any]:
    reason = f"was {row['before']}, is {row['label']}" if "before" in row else "near a threshold"
    shown = {"row": f"{row['input']}:{row['row']}", "reason": with_signs(reason, row["reasons"])}
    data = {**row, **shown, "label": row.get("before")}
    return task(data, row["label"], row["sure"], f"jingyin {bundle}")
