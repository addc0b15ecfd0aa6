"""What a scoring process does. There is no Arrow in it, nor in the modules that it imports: 80 MB less for each process."""

from collections.abc import Iterable
from functools import cache
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jingyin.model.cascade import Decision
from jingyin.model.labels import LABELS
from jingyin.model.prefilter import DISGUISES
from jingyin.serve.pool import check_same
from jingyin.serve.scorer import Scorer

WORKER_CACHE_BYTES = 32 << 20
"""The cache of a worker, so that memory stays bounded with many; half the default loses no hit on templated traffic."""

Packed = tuple[bytes, NDArray[np.int64]]
"""Texts one after another in UTF-8, and where each starts, and the last ends: texts by themselves pickle slowly."""


class Decisions(NamedTuple):
    """Decisions on n texts: each different one once, and for each text (n,) the index of its decision and its measures.

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


def load(bundle: tuple[str, str]) -> None:
    """Load this process's scorer ahead of the first texts, which will meet the same errors."""
    scorer_of(*bundle)


def decide_packed(bundle: tuple[str, str], texts: Packed) -> Decisions:
    """Score and measure texts with this process's scorer for a folder and the id of the bundle in it."""
    data, starts = texts
    return measure(scorer_of(*bundle), [data[start:end].decode() for start, end in pairwise(starts.tolist())])


@cache
def scorer_of(bundle: str | None, wanted: str | None = None) -> Scorer:
    """Return this process's scorer for a bundle folder, loaded when first asked for.

    Raises BundleError when the folder no longer holds the bundle whose id is `wanted`.
    """
    scorer = Scorer.load(bundle, cache_bytes=WORKER_CACHE_BYTES)
    check_same(scorer.bundle.manifest.id, wanted)
    return scorer


# What a scoring process does: which rows are chosen, their clean texts and decisions. There is no Arrow in it.


class Chosen(NamedTuple):
    """n chosen rows of a block: their indices (n,), clean texts, and for each (n,) what is known of it.

    `keys` are 64-bit hashes of the clean texts, equal for equal ones; `labels` count LABELS; bit i of `disguises` says
    that the normaliser undid DISGUISES[i]; `reasons` are the signs of a verdict, surest first.
    """

    indices: NDArray[np.int32]
    cleaned: list[str]
    keys: NDArray[np.uint64]
    labels: NDArray[np.int8]
    risks: NDArray[np.float64]
    disguises: NDArray[np.uint8]
    reasons: list[list[str]]


def choose(bundle: tuple[str, str], texts: Packed, *, every: bool) -> Chosen:
    """Score texts and choose those that are flagged, not to pass, or with `every` all."""
    data, starts = texts
    scorer = scorer_of(*bundle)
    indices, cleaned, labels, risks, disguises, reasons = [], [], [], [], [], []
    for i, (clean, found, _, _, _) in enumerate(
        scorer.scored([data[start:end].decode() for start, end in pairwise(starts.tolist())])
    ):
        if every or found.action != "pass":
            indices.append(i)
            cleaned.append(str(clean.text))
            labels.append(LABELS.index(found.label))
            risks.append(found.risk)
            disguises.append(sum(1 << bit for bit, kind in enumerate(DISGUISES) if clean.edits.get(kind)))
            reasons.append([reason.sign for reason in found.reasons])
    return Chosen(
        np.array(indices, np.int32),
        cleaned,
        np.array([key_of(text) for text in cleaned], np.uint64),
        np.array(labels, np.int8),
        np.array(risks, np.float64),
        np.array(disguises, np.uint8),
        reasons,
    )


def key_of(cleaned: str) -> int:
    """Return a clean text's 64-bit key. Of ten million different texts two share one with a chance of 1 in 400,000."""
    return int.from_bytes(blake2b(cleaned.encode(), digest_size=8).digest(), "little")
