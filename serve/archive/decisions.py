"""Runs in the processes that score. Must not import pyarrow, nor modules that do: 80 MB for each process."""

from collections.abc import Iterable
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jingyin.model.cascade import Decision
from jingyin.model.prefilter import DISGUISES
from jingyin.model.text import CleanText, clean
from jingyin.serve.scorer import Scorer, ScorerArguments, scorer_of

Packed = tuple[bytes, NDArray[np.int64]]
"""Concatenated texts in UTF-8, and the offsets where each starts and the last ends; a list of str pickles slowly."""


class Decisions(NamedTuple):
    """Decisions on n texts: each distinct one once, and for each text (n,) the index of its decision and its measures.

    Most texts of a block share a decision.
    """

    different: list[Decision]
    indices: NDArray[np.int32]
    lengths: NDArray[np.int32]
    edits: NDArray[np.int32]
    unknown: NDArray[np.float64]


def measure(scorer: Scorer, texts: Iterable[str]) -> Decisions:
    """Score and measure texts: characters of the clean text, DISGUISES undone, share of unknown characters."""
    different: dict[int, tuple[int, Decision]] = {}
    indices: list[int] = []
    measures: list[tuple[int, int, float]] = []
    for cleaned, found, unknown, _, _ in scorer.scored(texts):
        indices.append(different.setdefault(id(found), (len(different), found))[0])
        measures.append((len(cleaned.text), sum([cleaned.edits.get(kind, 0) for kind in DISGUISES]), unknown))
    table = np.array(measures, np.float64).reshape(-1, 3)
    return Decisions(
        [found for _, found in different.values()],
        np.array(indices, np.int32),
        table[:, 0].astype(np.int32),
        table[:, 1].astype(np.int32),
        table[:, 2].copy(),
    )


def decide_packed(arguments: ScorerArguments, texts: Packed) -> Decisions:
    """Score and measure texts with this process's scorer."""
    return measure(scorer_of(arguments), _unpack(texts))


def _unpack(texts: Packed) -> list[str]:
    data, starts = texts
    return [data[start:end].decode() for start, end in pairwise(starts.tolist())]


class Cleaned(NamedTuple):
    """n clean texts, their 64-bit keys (n,), equal for equal texts, and the kinds of disguise undone in each."""

    texts: list[str]
    keys: NDArray[np.uint64]
    disguises: list[list[str]]


class Chosen(NamedTuple):
    """The chosen ones of n texts: their indices, decisions and clean texts."""

    indices: NDArray[np.int32]
    decisions: list[Decision]
    cleaned: Cleaned


def choose(arguments: ScorerArguments, texts: Packed, *, every: bool) -> Chosen:
    """Score texts and choose those whose action isn't pass, or with `every` all."""
    found = enumerate(scorer_of(arguments).scored(_unpack(texts)))
    chosen = [(i, each.clean, each.decision) for i, each in found if every or each.decision.action != "pass"]
    return Chosen(
        np.array([i for i, _, _ in chosen], np.int32),
        [decision for _, _, decision in chosen],
        _cleaned([clean for _, clean, _ in chosen]),
    )


def sift(arguments: ScorerArguments, texts: Packed, *, share: float) -> Chosen:
    """Score texts and choose those that networks read, and of the others a `share` drawn by hash, each clean text once.

    A message is drawn if its key is below `share` of 2^64, so that the same messages are drawn from any input.
    """
    found = list(scorer_of(arguments).scored(_unpack(texts)))
    cleaned = _cleaned([each.clean for each in found])
    first = np.unique(cleaned.keys, return_index=True)[1]
    read = np.array([each.decision.stage == "network" for each in found], np.bool_)
    kept = np.sort(first[read[first] | is_drawn(cleaned.keys[first], share)])
    indices = kept.tolist()
    part = Cleaned([cleaned.texts[i] for i in indices], cleaned.keys[kept], [cleaned.disguises[i] for i in indices])
    return Chosen(kept.astype(np.int32), [found[i].decision for i in indices], part)


def is_drawn(keys: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Mark the keys (n,) of a random share, 0 to 1, of all texts."""
    return np.asarray(keys <= min(share * 2.0**64, 2.0**64 - 2048), np.bool_)


def clean_packed(arguments: ScorerArguments, texts: Packed) -> Cleaned:
    """Clean texts whose verdicts are known."""
    return _cleaned([clean(text) for text in _unpack(texts)])


def _cleaned(cleaned: list[CleanText]) -> Cleaned:
    # The chance that any two of ten million distinct texts share a key is 1 in 400,000.
    hashes = [blake2b(each.text.encode(), digest_size=8).digest() for each in cleaned]
    return Cleaned(
        [str(each.text) for each in cleaned],
        np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64),
        [[kind for kind in DISGUISES if each.edits.get(kind)] for each in cleaned],
    )
