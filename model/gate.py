"""The gate: a linear model over hashed unigrams and bigrams of token ids, so cheap that it can see every message.

It knows two answers, "surely ordinary" and "don't know". Its threshold is set on held-out rows so that what it
loses is bounded (train/gate.py). What it can't know, it lets through: many unknown tokens, or a message that the
normaliser had to undo disguises in.
"""

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from jingyin.model.tokenizer import UNKNOWN

BUCKETS = 1 << 18
"""Length of the weight vector; the last entry is the bias."""

_MULTIPLIER = 0x9E3779B1  # Knuth's multiplicative hash
_DISGUISES = ("disguised", "invisible", "joined")
_UNKNOWN_SHARE = 0.1
_DISGUISE_HITS = 2


def features(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bucket of each bigram of `ids` (length n, any messages one after another): length n - 1."""
    return ((ids[:-1] * _MULTIPLIER + ids[1:] * 0x85EBCA6B) & 0xFFFFFFFF) % (BUCKETS - 1)


def unigram_features(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bucket of each id; unigrams and bigrams share the buckets."""
    return (ids * _MULTIPLIER & 0xFFFFFFFF) % (BUCKETS - 1)


def gate_scores(weights: NDArray[np.float32], messages: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Return the score of each message (token ids, START and END included): higher is less surely ordinary.

    The sum of the weights over the square root of their number, so that length alone says little.
    """
    lengths = np.fromiter(map(len, messages), np.int64, len(messages))
    ids = np.fromiter(chain.from_iterable(messages), np.int64, int(lengths.sum()))
    ends = lengths.cumsum()
    each = weights[unigram_features(ids)]
    pairs = weights[features(ids)]
    pairs[ends[:-1] - 1] = 0  # no bigram across two messages
    each[:-1] += pairs
    sums = np.add.reduceat(each, ends - lengths)
    return np.asarray(sums / np.sqrt(2 * lengths) + weights[-1], np.float32)


def is_disguised(hits: Mapping[str, int]) -> bool:
    """Whether the normaliser undid disguises in a message, going by its `hits`."""
    return bool(hits) and sum(hits.get(kind, 0) for kind in _DISGUISES) >= _DISGUISE_HITS


def is_opaque(ids: Sequence[int], hits: Mapping[str, int]) -> bool:
    """Whether the gate must not judge a message: it holds what the gate can't know."""
    return is_disguised(hits) or ids.count(UNKNOWN) > _UNKNOWN_SHARE * len(ids)
