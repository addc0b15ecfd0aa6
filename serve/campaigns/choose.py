"""What a scoring process does: which rows are chosen, their clean texts and decisions. There is no Arrow in it."""

from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jingyin.model.labels import LABELS
from jingyin.model.prefilter import DISGUISES
from jingyin.serve.relabel.decisions import Packed, scorer_of


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
    for i, (clean, found, _, _) in enumerate(
        scorer.measured([data[start:end].decode() for start, end in pairwise(starts.tolist())])
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
