"""Spans: where the units of a message lie among its tokens.

A network reads a message once, and pools the states of each unit's tokens, which have read their context ("late
chunking", Günther et al. 2024). Training and serving find the tokens of a unit with the same function.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PASS_TOKENS = {"lexicon": 64, "pieces": 96}
"""Most tokens that a network reads at once, by its vocabulary; a longer message is read in overlapping passes.

Training cuts long messages in the same way. Networks that had been trained on up to 192 tokens found 55, 72, 80 and 84
of 100 threats with 300 characters of chat behind them in passes of 192, 96, 64 and 40, 91, 91, 91 and 89 alone; of 150
innocents with two lawful sentences they flagged 11, 11, 13 and 21% (train/LOG.md).
"""


def spans_of(ranges: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Return the spans (units, 2) of `ranges` in a clean text: the first token of each, and one past its last.

    `offsets` are the tokens' ranges in the same text, in order, with (0, 0) for START and END. A unit has the tokens
    that overlap it. One that overlaps all of them, or none, is the whole: all tokens, START and END included.
    """
    bounds = np.asarray(ranges, np.int64).reshape(-1, 2)
    starts, ends = np.asarray(offsets[1:-1], np.int64).reshape(-1, 2).T
    first = np.searchsorted(ends, bounds[:, 0], side="right")
    last = np.searchsorted(starts, bounds[:, 1], side="left")
    # Pieces may begin with an empty token, which overlaps nothing.
    whole = (first >= last) | ((first <= np.searchsorted(ends, 0, side="right")) & (last >= len(starts)))
    return np.where(whole[:, None], (0, len(offsets)), np.stack([first + 1, last + 1], 1))


class Pass(NamedTuple):
    """A part of a long message that a network reads at once: its tokens from `start` to `end`, and the units in it.

    `units` (n,) are indices, `spans` (n, 2) lie within the pass, to which START is added before and END after it.
    """

    start: int
    end: int
    units: NDArray[np.int64]
    spans: NDArray[np.int64]


def passes_of(spans: NDArray[np.int64], tokens: int, most: int) -> list[Pass]:
    """Return overlapping passes of `most` tokens over a message of more `tokens`, both with START and END.

    A unit of `spans` (units, 2) is in the pass whose middle is closest to its own, and the whole in none.
    """
    size = most - 2
    overlap = size // 3
    count = -(-(tokens - 2 - overlap) // (size - overlap))
    starts = np.linspace(1, tokens - 1 - size, count).astype(np.int64)
    nearest = np.abs(spans.mean(1)[:, None] - (starts + size / 2)).argmin(1)
    nearest[spans[:, 0] == 0] = -1
    owned = [np.flatnonzero(nearest == i) for i in range(count)]
    return [
        Pass(start, start + size, own, np.clip(spans[own] - start, 0, size) + 1)
        for start, own in zip(starts.tolist(), owned, strict=True)
    ]
