"""Groups of texts that are alike: locality-sensitive hashing, one band at a time, and connected components.

One band at a time takes a sort and no index, so memory stays at the signatures and a few arrays. Texts that share a
bucket are compared with its first one and with their neighbour; those that are alike are connected. The commonest text
of a component stands for it. What is not akin to that text is grouped once more without the rest, so that a chain of
likenesses does not tie unlike messages together. Nothing depends on an order of bands or pairs: Spark, which takes them
as they come, finds the same groups (spark.py).
"""

import numpy as np
from numpy.typing import NDArray

from jingyin.serve.campaigns.minhash import BANDS, band_keys, similarity

ALIKE = 0.4
"""Estimated Jaccard similarity of character pairs from which two texts are alike. Filled slots and disguises leave most
copies of one template between 0.4 and 0.8."""
AKIN = 0.25
"""The same for a text and the one that stands for its group; messages of different templates share less than 0.2."""


def groups(found: NDArray[np.uint16], rows: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return for signatures (n, HASHES) the number of the text that stands for each text's group (n,).

    `rows` (n,) counts the messages that have a text: the text of most stands for a group, of equals the first.
    """
    stands = np.empty(len(found), np.int32)
    left, here = np.arange(len(found), dtype=np.int32), found
    while len(left):
        chosen = _commonest(_components(here), rows[left])
        stands[left] = left[chosen]
        left = left[similarity(here, np.arange(len(left), dtype=np.int32), chosen) < AKIN]
        here = found[left]
    return stands


def _components(found: NDArray[np.uint16]) -> NDArray[np.int32]:
    """Return the smallest number of each text's component (n,)."""
    parent = np.arange(len(found), dtype=np.int32)
    for band in range(BANDS):
        for one, other in _candidates(band_keys(found, band)):
            apart = np.flatnonzero(_roots(parent, one) != _roots(parent, other))
            near = apart[similarity(found, one[apart], other[apart]) >= ALIKE]
            _union(parent, one[near], other[near])
    return _roots(parent, np.arange(len(found), dtype=np.int32))


def _candidates(keys: NDArray[np.uint64]) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Return pairs of texts with one key: each with the first of its bucket, and with the one before it."""
    order = np.argsort(keys, kind="stable").astype(np.int32)
    same = keys[order[1:]] == keys[order[:-1]]
    later = np.flatnonzero(same) + 1
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    first = starts[np.searchsorted(starts, later, side="right") - 1]
    return [(order[later], order[first]), (order[later], order[later - 1])]


def _commonest(components: NDArray[np.int32], rows: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return of each text's component (n,) the text that has most rows, of equals the first."""
    order = np.lexsort((-rows, components)).astype(np.int32)
    return order[np.searchsorted(components[order], components)]


def _roots(parent: NDArray[np.int32], items: NDArray[np.int32]) -> NDArray[np.int32]:
    found = parent[items]
    while ((higher := parent[found]) != found).any():
        found = higher
    return found


def _union(parent: NDArray[np.int32], one: NDArray[np.int32], other: NDArray[np.int32]) -> None:
    """Put each pair into one group, which its smallest number names: hooking and jumping (Shiloach & Vishkin 1982)."""
    while len(one):
        one, other = _roots(parent, one), _roots(parent, other)
        apart = one != other
        one, other = one[apart], other[apart]
        np.minimum.at(parent, np.maximum(one, other), np.minimum(one, other))
