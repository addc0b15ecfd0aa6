"""Nonsense that gateways see daily: test lines, keyboard mash, cut-off bytes, random characters. None may be flagged.

A network is sure of some nonsense unless it has seen such; the lines are made by a seed, so that training and tests
have others.
"""

from collections.abc import Callable, Iterator
from itertools import cycle, islice
from random import Random

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
