"""The prefilter: a linear model over hashed pairs and triples of characters and sounds, cheap enough for every message.

It gives one of three answers for the whole message and for each of its windows: "surely ordinary" by its first score,
which separates ordinary messages from all others; else "surely lawful" by its second, which separates lawful collection
from threats; else "don't know". Thresholds are set so that a given share of ordinary traffic is passed on to the
networks and next to no threat is stopped as lawful; the share of threats that the first steps miss is measured, with a
bound (train/pack/calibrate.py). The prefilter lets through messages that it can't judge: those with many characters
that the tokenizer does not know, or with disguises that the normaliser had to undo. For messages let through, its
scores are a second opinion besides the networks' (model/cascade.py).

A sound is a toneless syllable: writing a word with characters that sound alike (同迅路 for 通讯录) changes all of its
pairs of characters and none of its pairs of sounds. Adding single characters cost a tenth of recall at equal false
positives on real chat (train/LOG.md): 钱 alone says too little. Words and pairs of words were about as good (at 0.6% to
1% of flagged messages lost, 5.6% against 6.4% of ordinary ones passed), but need the tokenizer on every message, which
takes longer than everything else before the networks.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jingyin.model.near_copies import ALIKE

BUCKETS = 1 << 19
"""Length of the weight vector; the last entry is the bias."""

DISGUISES = ("disguised", "invisible", "gaps", "reassembled", "spelled", "reversed")
"""Kinds of the normaliser's edits that count as disguise. Traditional characters are ordinary writing and don't count,
nor do masks, which most messages have."""

_MULTIPLIERS = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)  # Knuth's multiplicative hash, and two odd constants of MurmurHash
_FEATURES = 4  # for each character: the pair and the triple that it begins, of characters and of sounds
_BREAK = ord("\n")
_UNKNOWN_SHARE = 0.1
_DISGUISE_EDITS = 2
_SHORTEST = 4  # characters of a window
LONG = 100
"""Characters from which networks read a message in several passes, about (spans.PASS_TOKENS)."""
# A sentence of at most 40 characters; else up to the last comma or space of the first 40, or these 40.
_SENTENCE = re.compile(r"[^。!?;]{0,40}[。!?;]+|[^。!?;]{1,40}$|[^。!?;]{0,39}[, ]|[^。!?;]{40}")
# For each code point the number of its syllable, above all code points, or itself if it has none.
_SOUNDS = np.arange(sys.maxunicode + 1)
_SOUNDS[list(map(ord, "".join(ALIKE)))] = [i for i, all_of in enumerate(ALIKE, sys.maxunicode + 1) for _ in all_of]


class Codes(NamedTuple):
    """Code points of clean texts one after another, where each text starts, and how many it has; see `code_points`."""

    points: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def code_points(texts: Sequence[str]) -> Codes:
    """Return the code points of clean `texts`, with a line feed, which none contains, before each and after the last.

    A text's length counts the line feed before it.
    """
    lines = "\n".join(["", *texts, ""])
    points = np.frombuffer(lines.encode("utf-32-le"), np.uint32).astype(np.int64)
    lengths = np.array([len(text) + 1 for text in texts], np.int64)
    return Codes(points, lengths.cumsum() - lengths, lengths)


def features(points: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the buckets of `points` (n + 1,): n of pairs, n of pairs of sounds, then as many of triples.

    All share the buckets. A triple ends with its text: a line feed is followed by another, not by the next text.
    """
    # In place: for a single message the number of calls matters most.
    codes_and_sounds = np.empty((2, len(points)), np.int64)
    codes_and_sounds[0], codes_and_sounds[1] = points, _SOUNDS[points]
    second = codes_and_sounds[:, 1:]
    third = np.full_like(second, _BREAK)
    third[:, :-1] = codes_and_sounds[:, 2:]
    np.putmask(third, second == _BREAK, _BREAK)
    hashes = np.empty((2, *second.shape), np.int64)
    np.multiply(codes_and_sounds[:, :-1], _MULTIPLIERS[0], out=hashes[0])
    hashes[0] += second * _MULTIPLIERS[1]
    np.multiply(third, _MULTIPLIERS[2], out=hashes[1])
    hashes[1] += hashes[0]
    hashes &= 0xFFFFFFFF
    hashes %= BUCKETS - 1
    return hashes.ravel()


def divisor(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return what sums of `counts` (n,) weights are divided by: the square root of the count, as for chance sums.

    From 120 characters on it grows as the count itself: a harmless sentence repeated fifty times would be flagged.
    """
    return np.asarray(counts / np.sqrt(np.minimum(counts, 120 * _FEATURES)))


class Units(NamedTuple):
    """n messages as u units: for each message the whole, then its windows.

    `starts` (n,) are the units that are wholes, `owners` (u,) the message of each unit, `ranges` (u,) where a unit lies
    in its clean text; `scores` (2, u) are the prefilter's: higher is less surely ordinary, less surely lawful.
    """

    starts: NDArray[np.int64]
    owners: NDArray[np.int64]
    ranges: list[tuple[int, int]]
    scores: NDArray[np.float32]

    @property
    def diluted(self) -> NDArray[np.bool_]:
        """Which units (u,) say less than a short whole: windows, and wholes of more than LONG characters."""
        diluted = np.ones(len(self.owners), np.bool_)
        diluted[self.starts] = [self.ranges[start][1] > LONG for start in self.starts.tolist()]
        return diluted

    def end(self, message: int) -> int:
        """Return the index after a message's last unit."""
        return int(self.starts[message + 1]) if message + 1 < len(self.starts) else len(self.owners)


def windows(text: str) -> list[tuple[int, int]]:
    """Return the ranges of the windows of a clean text: its sentences, then each two adjacent ones.

    A sentence ends with its mark; if that takes more than 40 characters, at a comma or a space, or else after 40.
    Windows as long as the text, or shorter than four characters, are left out.
    """
    ends = [match.end() for match in _SENTENCE.finditer(text)]
    if len(ends) < 2:
        return []
    starts = [0, *ends[:-1]]
    both = zip(starts, ends[1:], strict=False) if len(ends) > 2 else ()
    return [(start, end) for start, end in (*zip(starts, ends, strict=True), *both) if end - start >= _SHORTEST]


def units_of(weights: NDArray[np.float32], texts: Sequence[str], codes: Codes) -> Units:
    """Return clean `texts` (n,), of code points `codes`, as units with their scores by `weights` (2, BUCKETS).

    Windows cost next to nothing: weights are looked up once for each character, and cumulative sums make the rest.
    """
    ranges: list[tuple[int, int]] = []
    counts = []
    for text in texts:
        units_of_text = [(0, len(text)), *windows(text)]
        ranges += units_of_text
        counts.append(len(units_of_text))
    sizes = np.array(counts, np.int64)
    owners, starts = np.repeat(np.arange(len(sizes)), sizes), sizes.cumsum() - sizes
    # A unit's first pair begins one character earlier, at the text's start with the line feed; the line feed after the
    # text counts in units that end there.
    bounds = np.array(ranges, np.int64).reshape(-1, 2).T + codes.starts[owners]
    bounds[1] += bounds[1] == (codes.starts + codes.lengths - 1)[owners]
    return Units(starts, owners, ranges, prefilter_scores(weights, codes, bounds))


def prefilter_scores(
    weights: NDArray[np.float32], codes: Codes, bounds: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Return both scores (2, u) by `weights` (2, BUCKETS) of the ranges `bounds` (2, u) in `codes`, or of the texts.

    A score is the sum of the weights over their `divisor`, so that length alone says little.
    """
    first, last = np.stack([codes.starts, codes.starts + codes.lengths]) if bounds is None else bounds
    hashes = features(codes.points)
    divisors = divisor(_FEATURES * (last - first))
    scores = np.empty((len(weights), len(first)), np.float32)
    for row, each in enumerate(weights):
        # In float64 sums of half-precision weights are exact, whatever their order, and so is a difference of two.
        sums = np.zeros(len(codes.points), np.float64)
        np.cumsum(each[hashes].reshape(_FEATURES, -1).sum(0, dtype=np.float64), out=sums[1:])
        scores[row] = (sums[last] - sums[first]) / divisors + each[-1]
    return scores


def known_characters(vocabulary: Iterable[str]) -> NDArray[np.bool_]:
    """Return for each code point whether it is part of a word of `vocabulary`."""
    known = np.zeros(sys.maxunicode + 1, np.bool_)
    known[code_points(list(vocabulary))[0]] = True
    return known


def unknown_shares(known: NDArray[np.bool_], texts: Codes) -> NDArray[np.float64]:
    """Return the share of characters of each text that are not `known`, from 0 to 1."""
    return np.asarray(np.add.reduceat(~known[texts.points[:-1]], texts.starts, dtype=np.int64) / texts.lengths)


def is_disguised(edits: Mapping[str, int]) -> bool:
    """Whether the normaliser undid disguises in a message, going by its `edits`."""
    return bool(edits) and sum(edits.get(kind, 0) for kind in DISGUISES) >= _DISGUISE_EDITS


def prefilter_abstains(unknown_share: float, edits: Mapping[str, int]) -> bool:
    """Whether the prefilter must not judge a message: too many unknown characters, or disguises."""
    return unknown_share > _UNKNOWN_SHARE or is_disguised(edits)
