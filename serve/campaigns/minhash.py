"""MinHash signatures of clean texts, in numpy: datasketch takes a Python call for each text and band, and gigabytes.

A signature holds the smallest hash of a text's character pairs under each of HASHES hash functions, of which 16 bits
are kept (b-bit minwise hashing, Li & König 2010). Two texts agree in one with a chance of the Jaccard similarity of
their pairs (Broder 1997).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jingyin.model.prefilter import code_points

BANDS, ROWS = 32, 3
"""Two texts meet in a band with chance 1 - (1 - J^ROWS)^BANDS: 99% at a Jaccard similarity J of 0.5, 23% at 0.2."""
HASHES = BANDS * ROWS

_CHARACTERS = 1 << 15  # hashed at a time, so that they stay in the processor's cache
_MIX = np.uint64(0xFF51AFD7ED558CCD)  # murmur3's finalizer
_SHIFT = np.uint64(33)
_MULTIPLIERS = np.random.default_rng(21).integers(0, 1 << 63, HASHES, np.uint64) << np.uint64(1) | np.uint64(1)


def signatures(texts: Sequence[str]) -> NDArray[np.uint16]:
    """Return signatures (n, HASHES) of clean texts. Pairs begin before the first character and end after the last."""
    found = np.empty((len(texts), HASHES), np.uint16)
    start = size = 0
    for i, text in enumerate(texts):
        size += len(text) + 1
        if size >= _CHARACTERS or i + 1 == len(texts):
            found[start : i + 1] = _sign(texts[start : i + 1])
            start, size = i + 1, 0
    return found


def _sign(texts: Sequence[str]) -> NDArray[np.uint16]:
    codes = code_points(texts)
    points = codes.points.astype(np.uint64)
    pairs = _mixed(points[:-1] << np.uint64(32) | points[1:])
    smallest = [np.minimum.reduceat(pairs * multiplier, codes.starts) for multiplier in _MULTIPLIERS]
    # The high bits of the smallest are nearly zero and the low ones weak: mixed once more, any 16 do.
    return (_mixed(np.stack(smallest, axis=1)) >> np.uint64(48)).astype(np.uint16)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (values ^ values >> _SHIFT) * _MIX
    return np.asarray(mixed ^ mixed >> _SHIFT, np.uint64)


def band_keys(found: NDArray[np.uint16], band: int) -> NDArray[np.uint64]:
    """Return of each signature (n, HASHES) the key (n,) of a band: all ROWS values of it, one beside the other."""
    key = np.zeros(len(found), np.uint64)
    for column in range(band * ROWS, (band + 1) * ROWS):
        key = key << np.uint64(16) | found[:, column]
    return key


def similarity(found: NDArray[np.uint16], one: NDArray[np.int32], other: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the estimated Jaccard similarity (m,) of texts `one` and `other` (m,); standard error at most 0.05."""
    alike = np.empty(len(one))
    for start in range(0, len(one), 1 << 14):
        part = slice(start, start + (1 << 14))
        alike[part] = (found[one[part]] == found[other[part]]).mean(1)
    return alike
