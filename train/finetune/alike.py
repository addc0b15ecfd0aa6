"""Finds the texts that are like one of a few others: exact, by an index of their character 4-grams."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from jingyin.train.corpus.similar import jaccard, shingles

SIMILAR = 0.5
"""Jaccard of character 4-grams from which two messages are near-duplicates, as in configs/default/corpus.yaml."""


def pairs_across(few: Sequence[str], many: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield (i, j) for each text i of `few` and j of `many`, clean texts, that are near-duplicates, by ascending j."""
    sets = [shingles(text) for text in few]
    holders: dict[str, list[int]] = defaultdict(list)
    for i, grams in enumerate(sets):
        for gram in grams:
            holders[gram].append(i)
    for j, text in enumerate(many):
        grams = shingles(text)
        shared = Counter(i for gram in grams for i in holders.get(gram, ()))
        for i, count in sorted(shared.items()):
            if count >= SIMILAR * max(len(grams), len(sets[i])) and jaccard(sets[i], grams) >= SIMILAR:
                yield i, j
