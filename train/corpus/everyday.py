"""Everyday innocents made from frames: sums, times, links, refusals, conditions without a harm (CheckList).

A false alarm seldom comes from a single word: a sum before 不带车位, a 不 before 就取消. Such pieces are listed by
behaviour and filled anew (Ribeiro et al. 2020, Beyond Accuracy: Behavioral Testing of NLP Models with CheckList, ACL).
The frames used in training and those of the test list are disjoint.
"""

from collections.abc import Callable, Iterator
from itertools import cycle, islice
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


# Nonsense that gateways see daily: test lines, keyboard mash, cut-off bytes, random characters. None may be flagged.
#
# A network that never saw nonsense confidently flags some of it. The lines depend on a seed, so that training and tests
# have different ones.

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_COMMON = tuple(bytes((high, low)).decode("gb2312") for high in range(0xB0, 0xD7) for low in range(0xA1, 0xFF))


def _digits(rng: Random) -> str:
    if rng.random() < 0.3:
        return rng.choice("0123456789") * rng.randint(3, 30)
    return "".join(rng.choices("0123456789", k=rng.randint(1, 30)))


def _letters(rng: Random) -> str:
    alphabet = rng.choice(("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", "abcXYZ0189_-. "))
    return "".join(rng.choices(alphabet, k=rng.randint(1, 40)))


def _mash(rng: Random) -> str:
    row = rng.choice(_ROWS)
    start = rng.randrange(len(row) - 2)
    return "".join(row[start : start + rng.randint(2, 5)] for _ in range(rng.randint(1, 8)))


def _characters(rng: Random) -> str:
    return "".join(rng.choices(_COMMON, k=rng.randint(1, 40)))


def _repeated(rng: Random) -> str:
    piece = "".join(rng.choices(_COMMON, k=rng.randint(1, 4)))
    return rng.choice(("", " ", "，", "!")).join([piece] * rng.randint(2, 15))


_KINDS: tuple[Callable[[Random], str], ...] = (_digits, _letters, _mash, _characters, _repeated)


def nonsense(count: int, seed: int) -> Iterator[str]:
    """Yield `count` lines of nonsense, the kinds in turn; the same seed gives the same lines."""
    rng = Random(f"nonsense {seed}")
    for kind in islice(cycle(_KINDS), count):
        yield kind(rng)
