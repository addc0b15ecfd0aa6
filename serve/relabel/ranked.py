"""Rows worth a person's look, ordered by risk, in bounded memory.

An external merge sort: sorted runs go to one file as the shards go by, and are merged at the end.
"""

import heapq
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jingyin.serve.relabel.writing import as_json

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
