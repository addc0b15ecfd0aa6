"""Everyday innocents made from frames: sums, times, links, refusals, conditions without a harm (CheckList).

A false alarm seldom comes from a single word: a sum before 不带车位, a 不 before 就取消. Such pieces are listed by
behaviour and filled anew (Ribeiro et al. 2020, Beyond Accuracy: Behavioral Testing of NLP Models with CheckList, ACL).
The frames used in training and those of the test list are disjoint.
"""

from itertools import cycle
from random import Random

from jingyin.train.corpus.perturb import entries
from jingyin.train.corpus.slots import choose, fill_slots

_MOST_TRIES = 100


def everyday(count: int, seed: int, *, held_out: bool) -> list[str]:
    """Return `count` different innocents, the frames in turn; the same seed gives the same ones.

    `held_out` ones come from frames that no training row is made from. There are fewer if frames run out of fillings.
    """
    rng = Random(f"everyday {seed} {held_out}")
    frames = cycle(entries("everyday_held_out" if held_out else "everyday"))
    found: dict[str, None] = {}
    for _ in range(count * _MOST_TRIES):
        if len(found) == count:
            break
        found[fill_slots(choose(next(frames), rng, "/"), rng)] = None
    return list(found)
