"""Finds messages that are nearly alike: MinHash over character 4-grams, every hit checked exactly."""

import re
from collections.abc import Iterable, Iterator, Sequence
from zlib import crc32

from datasketch import MinHash, MinHashLSH

# 42 bands of 3: two texts with Jaccard 0.5 meet in a band with a chance of 99.6%, with 0.6 of 99.998%.
_BANDS, _ROWS = 42, 3
_JUNK = re.compile(r"[\W_]+")


def shingles(text: str) -> frozenset[str]:
    """Return the character 4-grams of the letters in a text, or those letters where they are fewer."""
    letters = _JUNK.sub("", text)
    return frozenset(letters[i : i + 4] for i in range(max(1, len(letters) - 3)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of common elements, from 0 to 1."""
    return len(one & other) / (len(one | other) or 1)


def similar_pairs(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Yield (i, j, Jaccard) with i < j for texts at or above `threshold` (0.4 to 1), by ascending j.

    Exact in what it yields; below a threshold of 0.5 it may miss some.
    """
    sets = [shingles(text) for text in texts]
    index = MinHashLSH(num_perm=_BANDS * _ROWS, params=(_BANDS, _ROWS))
    hashes = MinHash.generator(
        ([gram.encode() for gram in sorted(grams)] for grams in sets), num_perm=_BANDS * _ROWS, hashfunc=crc32
    )
    for j, signature in enumerate(hashes):
        for i in sorted(index.query(signature)):
            if (alike := jaccard(sets[i], sets[j])) >= threshold:
                yield i, j, alike
        index.insert(j, signature, check_duplication=False)


class Groups:
    """Union-find over the numbers below `count`; the smallest member stands for a group."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, item: int) -> int:
        """Return the smallest member of the item's group."""
        while self._parent[item] != item:
            self._parent[item] = item = self._parent[self._parent[item]]
        return item

    def union(self, items: Iterable[int]) -> None:
        """Put all items into one group."""
        roots = sorted({self.find(item) for item in items})
        for root in roots[1:]:
            self._parent[root] = roots[0]
