"""Rows that can't be scored: counted by reason, and listed in _rejects.csv."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from jingyin.serve.relabel.journal import Journal


class Rejects:
    """The rejects of a shard; `counts`, by reason, begin from those of the shards before."""

    def __init__(self, journal: Journal) -> None:
        self.counts = dict(journal.last.rejects)
        self._journal = journal
        self._listed = io.StringIO()
        if not journal.states:
            self._list(("input", "row", "reason"))

    def add(self, file: Path, row: int, reason: str) -> None:
        """Count a row of an input file."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self._list((file, row, reason))

    def write(self) -> int:
        """Add the shard's list to _rejects.csv, on disk, and return the length of that in bytes."""
        return self._journal.append("_rejects.csv", self._listed.getvalue().encode("utf-8", "surrogateescape"))

    def _list(self, fields: Iterable[object]) -> None:
        csv.writer(self._listed, lineterminator="\n").writerow(fields)
