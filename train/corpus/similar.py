"""Finds messages that are nearly alike: all pairs whose character 4-grams have a Jaccard of a threshold or more."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import ceil

_ROUNDING = 1e-9  # 0.7 * 10 is a little above 7
_JUNK = re.compile(r"[\W_]+")


def shingles(text: str) -> frozenset[str]:
    """Return the character 4-grams of the letters in a text, or those letters where they are fewer."""
    letters = _JUNK.sub("", text)
    return frozenset(letters[i : i + 4] for i in range(max(1, len(letters) - 3)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of common elements, from 0 to 1."""
    return len(one & other) / (len(one | other) or 1)


def similar_pairs(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Yield (i, j, Jaccard) with i < j for texts at or above `threshold` (above 0, to 1), by ascending j and then i.

    Exact: prefix filtering (Bayardo, Ma & Srikant 2007). Two sets that are so alike share one of the rarest grams of
    each, so that only texts with a rare gram in common are compared.
    """
    sets = [shingles(text) for text in texts]
    counts = Counter(gram for grams in sets for gram in grams)
    index: dict[str, list[int]] = defaultdict(list)
    for j, grams in enumerate(sets):
        ordered = sorted(grams, key=lambda gram: (counts[gram], gram))
        rarest = ordered[: len(grams) - ceil(threshold * len(grams) - _ROUNDING) + 1]
        for i in sorted({i for gram in rarest for i in index[gram]}):
            if (alike := jaccard(sets[i], grams)) >= threshold:
                yield i, j, alike
        for gram in rarest:
            index[gram].append(j)


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
