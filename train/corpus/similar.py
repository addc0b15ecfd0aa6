"""Finds near-duplicates: all pairs whose character 4-grams have a Jaccard similarity of at least a threshold."""

import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from math import ceil

from jingyin.train.corpus.slots import SLOT, alternatives, words

SIMILAR = 0.5
"""Jaccard of character 4-grams from which two messages are near-duplicates, as in configs/default/corpus.yaml."""

_ROUNDING = 1e-9  # 0.7 * 10 is a little above 7
_JUNK = re.compile(r"[\W_]+")


def shingles(text: str) -> frozenset[str]:
    """Return the character 4-grams of the letters in a text, or those letters where they are fewer."""
    letters = _JUNK.sub("", text)
    return frozenset(letters[i : i + 4] for i in range(max(1, len(letters) - 3)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of common elements, from 0 to 1."""
    return len(one & other) / (len(one | other) or 1)


def similar_pairs(
    texts: Sequence[str], threshold: float, dropped: Container[int] = (), groups: "Groups | None" = None
) -> Iterator[tuple[int, int, float]]:
    """Yield (i, j, Jaccard) with i < j for texts at or above `threshold` (above 0, to 1), by ascending j.

    No text is compared with one that the caller has `dropped` by then, nor with one that the caller has put into its
    group in `groups`: of fifty thousand copies of one notice, each is compared with few.

    Exact: prefix filtering (Bayardo, Ma & Srikant 2007). Two sets that are so similar share one of the rarest grams of
    each, so that only texts with a rare gram in common are compared.
    """
    sets = [shingles(text) for text in texts]
    counts = Counter(gram for grams in sets for gram in grams)
    joined = groups or Groups(len(texts))
    index: dict[str, list[int]] = defaultdict(list)
    more: dict[int, dict[str, list[int]]] = {}  # a text in `index` -> a gram -> others of its group with that gram
    for j, grams in enumerate(sets):
        ordered = sorted(grams, key=lambda gram: (counts[gram], gram))
        rarest = ordered[: len(grams) - ceil(threshold * len(grams) - _ROUNDING) + 1]
        compared = set()
        for first in sorted({i for gram in rarest for i in index[gram]}):
            others = [more[first].get(gram, []) for gram in rarest] if first in more else []
            for i in chain([first], *others):
                if j in dropped or joined.find(first) == joined.find(j):
                    break
                if i in dropped or i in compared:
                    continue
                compared.add(i)
                if (alike := jaccard(sets[i], grams)) >= threshold:
                    yield i, j, alike
        if j not in dropped:
            group = joined.find(j)
            for gram in rarest:
                first = next((i for i in index[gram] if joined.find(i) == group), j) if group < j else j
                of_gram = index if first == j else more.setdefault(first, {})
                of_gram.setdefault(gram, []).append(j)


def pairs_across(few: Sequence[str], many: Sequence[str], threshold: float = SIMILAR) -> Iterator[tuple[int, int]]:
    """Yield (i, j) for similar texts i of `few` and j of `many`, by ascending j."""
    sets = [shingles(text) for text in few]
    holders: dict[str, list[int]] = defaultdict(list)
    for i, grams in enumerate(sets):
        for gram in grams:
            holders[gram].append(i)
    for j, text in enumerate(many):
        grams = shingles(text)
        shared = Counter(i for gram in grams for i in holders.get(gram, ()))
        for i, count in sorted(shared.items()):
            if count >= threshold * max(len(grams), len(sets[i])) and jaccard(sets[i], grams) >= threshold:
                yield i, j


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


# Finds series: messages that are one message with other names, numbers or places, and so teach one thing.

SHORTEST_SERIES = 3
"""Two people may hit on 一百块不给就差评 and 五十块不给就差评; three don't."""

_BLANK = "0"
_DIGITS = r"\d零〇一二两三四五六七八九十百千万亿几半"
_NUMBER = re.compile(f"[{_DIGITS}][{_DIGITS}.:：点]*(?:块钱?|元|号|日|天)?")
_BESIDE = re.compile(r"[\W_]+")
_BLANKS = re.compile("0+")


def skeleton(text: str) -> str:
    """Return the letters of a message with slots, names, numbers and places blanked, equal within a series."""
    for pattern in (SLOT, _place(), _name(), _NUMBER):
        text = pattern.sub(_BLANK, text)
    return _BLANKS.sub(_BLANK, _BESIDE.sub("", text))


def series(texts: Sequence[str]) -> list[list[int]]:
    """Return the row numbers of each series of SHORTEST_SERIES messages or more, in order of its first."""
    found: dict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        found[skeleton(text)].append(i)
    return [rows for rows in found.values() if len(rows) >= SHORTEST_SERIES]


@cache
def _name() -> re.Pattern[str]:
    """Return a pattern of a family name with a given name, or as people are addressed: 老王, 王总, 王姐."""
    family, given = alternatives(words("surnames")), alternatives(words("given"))
    titles = "先生|女士|总|哥|姐|叔|姨|老板|经理|老师|主任|队|家|某"
    return re.compile(f"[老小阿](?:{family})|(?:{family})(?:{given}|{titles})")


@cache
def _place() -> re.Pattern[str]:
    """Return a pattern of the places in the tables, and of two characters followed by a kind of place."""
    kinds = "省|市|区|县|镇|乡|村|路|街|小区|小学|中学|大学|幼儿园"
    places = alternatives([*words("cities"), *words("districts"), *words("villages")])
    return re.compile(f"(?:{places})[市区县镇乡村]?|[\u4e00-\u9fff]{{2}}(?:{kinds})")
