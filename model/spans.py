"""Spans: where the units of a message lie among its tokens.

A network reads a message once, and pools the states of each unit's tokens, which have read their context ("late
chunking", Günther et al. 2024). Training and serving find the tokens of a unit with the same function.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


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
