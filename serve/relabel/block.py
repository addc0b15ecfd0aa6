"""A block: consecutive rows of an input file, what a worker scores at a time."""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

ROWS = 4096
BYTES = 4 << 20
"""A block ends at so many rows or about so many bytes of input."""

Position = tuple[int, ...]
"""Where a block begins in its file; each reader has its own three numbers."""

START: Position = (0, 0, 0)


class Reject(NamedTuple):
    """A row that can't be scored: its number in the file, from 1 (JSON: the line), and why."""

    row: int
    reason: str


class Block(NamedTuple):
    """Consecutive rows of a file.

    `numbers` are those of the rows of `batch`; `next` is the position after the block, and `share` how much of the
    file has been read by then, 0 to 1.
    """

    batch: pa.RecordBatch
    numbers: Sequence[int]
    rejects: list[Reject]
    next: Position
    share: float

    @property
    def records(self) -> int:
        """Rows read, rejects included."""
        return len(self.numbers) + len(self.rejects)


def share_read(sizes: Sequence[int], source: int, block: Block) -> float:
    """Return how much of all inputs is read with a block of input `source`, 0 to 1; `sizes` are theirs in bytes."""
    return (sum(sizes[:source]) + block.share * sizes[source]) / sum(sizes)
