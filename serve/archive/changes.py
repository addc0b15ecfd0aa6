"""Reviews a finished output: changes against older labels, and rows for people to judge."""

import heapq
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jingyin.model.errors import InputError
from jingyin.model.files import atomic_file
from jingyin.serve.archive.blocks import ReadOptions, fit
from jingyin.serve.archive.readers import blocks, open_sources
from jingyin.serve.archive.writers import as_json, rows_of
from jingyin.serve.label_studio import task, with_signs

NONE = "(empty)"
"""Stands for a missing or empty older label; such a row never counts as moved."""

FAMILY, REST = "family", "(other families)"
MAX_LABELS, MAX_FAMILIES = 100, 1000
DEFAULT_SAMPLE = 1000
VERDICT = ("jingyin_label", "jingyin_risk", "jingyin_action", "jingyin_probabilities", "jingyin_reasons")
_OURS = (*VERDICT, "file", "row", "risk", "label", "sure", "action", "reasons", "reason", "before", "text")
"""Keys of a listed row; a column of ids with such a name is listed as "id"."""


@dataclass
class Changes:
    """Counts of rows: `table` by older and new label, `families` as [rows, moved] by family."""

    table: dict[str, dict[str, int]] = field(default_factory=dict)
    families: dict[str, list[int]] = field(default_factory=dict)

    def add(self, before: pa.Array, now: pa.Array, families: list[str] | None) -> None:
        """Count a block; raises InputError for over MAX_LABELS distinct values in `before`."""
        counts = Counter(zip(before.to_pylist(), now.to_pylist(), families or repeat(None), strict=False))
        for (old, new, family), rows in sorted(counts.items(), key=str):
            row = self.table.setdefault(old, {})
            row[new] = row.get(new, 0) + rows
            if family is not None:
                separate = family in self.families or len(self.families) < MAX_FAMILIES
                entry = self.families.setdefault(family if separate else REST, [0, 0])
                entry[0] += rows
                entry[1] += rows * _moved(old, new)
        if len(self.table) > MAX_LABELS:
            raise InputError(f"the column to compare has over {MAX_LABELS} different values: it holds no labels; name "
                             "another with --compare")  # fmt: skip

    @property
    def moved(self) -> int:
        """Number of rows whose label has changed."""
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


def _moved(before: str, now: str) -> bool:
    return before not in (NONE, now)


def aligned(rows: list[list[str]]) -> Iterator[str]:
    """Yield a table's lines: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        yield "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))])


def review(
    out: Path,
    how: ReadOptions,
    compare: str | None,
    meanings: Mapping[str, str],
    tasks: Path | None,
    sample: int | None,
    bundle: str,
) -> tuple[dict[str, Any], int]:
    """Compare a finished output with its column of older labels, and write tasks; return changes and number of tasks.

    `meanings` maps older labels to ours. Raises InputError for a column of other values.
    """
    if compare is None and tasks is None:
        return {}, 0
    against = "jingyin_action" if compare is not None and compare.endswith("jingyin_action") else "jingyin_label"
    parts = sorted(out.glob("part-*"))
    largest = max(parts, key=lambda part: part.stat().st_size)  # JSON lines without a row have no columns
    names = open_sources([largest], ReadOptions(how.text)).pop().schema.names
    extra_columns = [name for name in dict.fromkeys((how.id, FAMILY)) if name and name in names]
    columns = (how.text, *extra_columns, *VERDICT, *([compare] if compare else []))
    changes = Changes()
    with closing(Ranked(out)) as ranked:
        for number, block in blocks(open_sources(parts, ReadOptions(how.text, columns=columns))):
            if block.rejects:  # one too long for a text file
                lost = block.rejects[0]
                where = f"row {lost.row} of {parts[number]}"
                raise InputError(f"{where} can't be read again: {lost.reason}; name an output .parquet")
            batch, current = block.batch, block.batch.column(against)
            listing = {"file": [parts[number].name] * len(current), "row": block.numbers}
            listing |= {name: batch.column(name) for name in VERDICT}
            rows = pc.equal(batch.column("jingyin_action"), "review")
            if compare is not None:
                older = pa.array([meanings.get(label, label) for label in _names(batch, compare)], pa.string())
                changes.add(older, current, _names(batch, FAMILY) if FAMILY in extra_columns else None)
                rows = pc.and_(pc.not_equal(older, current), pc.not_equal(older, NONE))
                listing["before"] = older
            listing |= {"id" if name in _OURS else name: batch.column(name) for name in extra_columns}
            for row in rows_of(pa.table({**listing, "text": block.texts}).filter(rows)):
                ranked.add(_row(row))
        if compare is not None:
            with atomic_file(out / "_moved.jsonl") as file:
                file.writelines(ranked)
        written = write_tasks(tasks, _sampled(ranked, sample or DEFAULT_SAMPLE, bundle)) if tasks else 0
    ordered = {label: dict(sorted(changes.table[label].items())) for label in sorted(changes.table)}
    families = dict(sorted(changes.families.items()))
    return ({"moved": changes.moved, "table": ordered, "families": families} if compare is not None else {}), written


def _names(batch: pa.RecordBatch, name: str) -> list[str]:
    """Return a column as strings, with NONE for null and empty ones; raises InputError for lists and objects."""
    column = batch.column(name)
    if pa.types.is_nested(column.type):
        raise InputError(f"the column {name!r} is {column.type}, wanted labels or names; name another, or rename it")
    return [value or NONE for value in fit(column, pa.string()).to_pylist()]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as it is listed; from CSV and JSON its numbers and lists come as text, which is parsed."""
    label, risk, action, probabilities, reasons = (row.pop(name) for name in VERDICT)
    if isinstance(reasons, str):
        risk, probabilities, reasons = float(risk), json.loads(probabilities), json.loads(reasons)
    verdict = {"risk": risk, "label": label, "sure": probabilities[label], "action": action, "reasons": reasons}
    return {"file": row.pop("file"), "row": row.pop("row"), **verdict, **row}


class Ranked:
    """Rows as JSON lines in an unnamed temporary file, read back by descending risk; 16 bytes of memory per row."""

    def __init__(self, folder: Path) -> None:
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115  closed by close
        self._risks, self._ends = array("d"), array("q", [0])

    def close(self) -> None:
        """Discard the rows."""
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row; its "risk", 0 to 1, determines its rank."""
        self._ends.append(self._ends[-1] + self._file.write(as_json(row).encode() + b"\n"))
        self._risks.append(row["risk"])

    def __iter__(self) -> Iterator[bytes]:
        self._file.flush()
        for i in np.argsort(-np.array(self._risks), kind="stable").tolist():
            yield os.pread(self._file.fileno(), self._ends[i + 1] - self._ends[i], self._ends[i])


def _sampled(rows: Iterable[bytes], sample: int, bundle: str) -> Iterator[dict[str, Any]]:
    """Yield tasks for the `sample` rows with the smallest hash, in their order: random, but the same on every run."""
    hashed = ((blake2b(row, digest_size=8).digest(), order, row) for order, row in enumerate(rows))
    for _, _, line in sorted(heapq.nsmallest(sample, hashed), key=lambda each: each[1]):
        row = json.loads(line)
        reason = f"was {row['before']}, is {row['label']}" if "before" in row else "near a threshold"
        shown = {"row": f"{row['file']}:{row['row']}", "reason": with_signs(reason, row["reasons"])}
        yield task({**row, **shown, "label": row.get("before")}, row["label"], row["sure"], f"jingyin {bundle}")


def write_tasks(path: Path, tasks: Iterable[Mapping[str, Any]]) -> int:
    """Write a JSON array of tasks for Label Studio; return their number."""
    count = 0
    with atomic_file(path) as file:
        for count, each in enumerate(tasks, 1):
            file.write((b",\n" if count > 1 else b"[\n") + as_json(each).encode())
        file.write(b"\n]\n" if count else b"[]\n")
    return count
