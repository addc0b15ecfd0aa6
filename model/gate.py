"""The gate: a linear model over hashed pairs and triples of characters, so cheap that it can see every message.

It knows two answers, "surely ordinary" and "don't know". Its threshold is set on held-out rows so that what it
loses is bounded (train/gate.py). What it can't know, it lets through: many characters that the tokenizer does not
know, or a message that the normaliser had to undo disguises in. Of what it lets through its score is a second opinion
beside the network's (model/join.py).

Single characters beside them cost a tenth of recall at equal false positives on real chat (train/LOG.md): 钱 alone says
too little. Words and pairs of words were as good and no better (0.6% to 1% of flagged messages lost: 5.6% against 6.4% of ordinary
ones passed), and to have them the tokenizer must read every message, which takes longer than all else before the network.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

BUCKETS = 1 << 19
"""Length of the weight vector; the last entry is the bias."""

_MULTIPLIERS = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)  # Knuth's multiplicative hash, and two odd numbers of murmur's
_BREAK = ord("\n")
_DISGUISES = ("disguised", "invisible", "joined")
_UNKNOWN_SHARE = 0.1
_DISGUISE_HITS = 2
_STEP = 80  # characters; a window has two steps


Codes = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Code points of clean texts one after another, and the index at which each text starts; see `code_points`."""


def code_points(texts: Sequence[str]) -> Codes:
    """Return the code points of clean `texts`: a line feed, which no clean text holds, before each and after the last."""
    joined = "\n".join(["", *texts, ""])
    codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32).astype(np.int64)
    lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    return codes, lengths.cumsum() - lengths


def features(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the buckets of `codes` (n + 1,): n of pairs, then n of triples; all share the buckets.

    A triple ends with its text: after a line feed comes another, whatever the next text begins with.
    """
    second = codes[1:]
    third = np.where(second == _BREAK, _BREAK, np.append(codes[2:], _BREAK))
    pairs = codes[:-1] * _MULTIPLIERS[0] + second * _MULTIPLIERS[1]
    return (np.concatenate([pairs, pairs + third * _MULTIPLIERS[2]]) & 0xFFFFFFFF) % (BUCKETS - 1)


def gate_scores(weights: NDArray[np.float32], texts: Codes) -> NDArray[np.float32]:
    """Return the score of each text: higher is less surely ordinary.

    The sum of the weights over the square root of their number, so that length alone says little; of a long text that
    of its worst window, so that politeness by the yard drowns no threat. What comes before or after a text in `texts`
    has no part in it.
    """
    codes, starts = texts
    pairs, triples = weights[features(codes)].reshape(2, -1)
    # In float64 sums of half-precision weights are exact, so a difference of two is the sum between, whatever the order.
    sums = np.concatenate([[0.0], (pairs + triples).cumsum(dtype=np.float64)])
    first, last, windows = _windows(starts, len(pairs))
    scores = (sums[last] - sums[first]) / np.sqrt(2 * (last - first))
    return np.asarray(np.maximum.reduceat(scores, windows) + weights[-1], np.float32)


def _windows(starts: NDArray[np.int64], end: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return where each window starts and ends, and the index of each text's first window."""
    lengths = np.diff(starts, append=end)
    counts = np.maximum(1, -(-lengths // _STEP) - 1)
    windows = counts.cumsum() - counts
    first = np.repeat(starts, counts) + _STEP * (np.arange(counts.sum()) - np.repeat(windows, counts))
    return first, np.minimum(first + 2 * _STEP, np.repeat(starts + lengths, counts)), windows


def known_characters(vocabulary: Iterable[str]) -> NDArray[np.bool_]:
    """Return for each code point whether it is part of a word of `vocabulary`."""
    known = np.zeros(sys.maxunicode + 1, np.bool_)
    known[code_points(list(vocabulary))[0]] = True
    return known


def unknown_shares(known: NDArray[np.bool_], texts: Codes) -> NDArray[np.float64]:
    """Return the share of characters of each text that are not `known`, from 0 to 1."""
    codes, starts = texts
    unknown = np.add.reduceat(~known[codes[:-1]], starts, dtype=np.int64)
    return np.asarray(unknown / np.diff(starts, append=len(codes) - 1))


def is_disguised(hits: Mapping[str, int]) -> bool:
    """Whether the normaliser undid disguises in a message, going by its `hits`."""
    return bool(hits) and sum(hits.get(kind, 0) for kind in _DISGUISES) >= _DISGUISE_HITS


def is_opaque(unknown_share: float, hits: Mapping[str, int]) -> bool:
    """Whether the gate must not judge a message: it holds what the gate can't know."""
    return unknown_share > _UNKNOWN_SHARE or is_disguised(hits)
