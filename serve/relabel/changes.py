"""What changed against an older label: a confusion table, counts a family, and the rows that moved."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jingyin.model.errors import InputError

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
