"""Judges systems on disguised messages: recall of each evasion family, beside what it does to benign rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from jingyin.train.corpus.evade import FAMILIES, HELD_OUT, evade
from jingyin.train.evaluate.baselines import System
from jingyin.train.evaluate.figures import Bools
from jingyin.train.evaluate.messages import Messages
from jingyin.train.evaluate.slices import sample_evenly

STRENGTH = 0.5
ROWS = 300
"""Rows of either kind that are disturbed, at most; a recall of 0.9 on 300 is known to 4 points."""
_SEED = 7


@dataclass(frozen=True)
class Disturbed:
    """Rows of `index` (n,) that an evasion family changes, and what they become."""

    family: str
    held_out: bool
    index: NDArray[np.int64]
    texts: list[str]


def disturb(messages: Messages) -> list[Disturbed]:
    """Disturb up to ROWS flagged and ROWS benign rows by each family, the same rows by all.

    Benign rows are drawn evenly from their families, so that the hard ones are not lost among plain traffic.
    """
    kinds = (messages.flagged, messages.benign)
    chosen = [i for among in kinds for i in sample_evenly(messages, among, ROWS)]
    out = []
    for family in FAMILIES:
        hidden = {i: evade(messages.texts[i], family, STRENGTH, Random(f"{_SEED}|{family}|{i}")) for i in chosen}
        changed = [i for i in chosen if hidden[i] != messages.texts[i]]
        out.append(Disturbed(family, family in HELD_OUT, np.array(changed, np.int64), [hidden[i] for i in changed]))
    return out


def flags_before_and_after(
    system: System, disturbed: Sequence[Disturbed], flags: Bools
) -> Iterator[tuple[Disturbed, Bools, Bools]]:
    """Yield each family's rows with what `system` flags of them undisturbed, by `flags` (n,), and disturbed."""
    for each in disturbed:
        yield each, flags[each.index], system.judge(each.texts).risks >= system.threshold
