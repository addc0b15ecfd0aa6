"""Dresses a message in a head or tail, as a lazy sender does: thanks, small talk, signature, opt-out line, a neighbour.

Ordinary messages get the same as threats, from the same tables in the same shares, so that a dress says nothing about
what it covers. Entries of the held-out tables are on no training message: tests/bench/attack.py measures a new dress by
them.
"""

from functools import cache
from importlib.resources import files
from random import Random

_BOTH = 0.2  # of the dressed messages have a head and a tail


@cache
def entries(name: str) -> tuple[str, ...]:
    """Return the lines of tables/<name>.txt; "|" stands for a line break."""
    text = files("jingyin.train.corpus").joinpath(f"tables/{name}.txt").read_text(encoding="utf-8")
    return tuple(line.replace("|", "\n") for line in text.splitlines() if line and not line.startswith("#"))


def dress(text: str, rng: Random) -> str:
    """Return `text` with a training head, a training tail or both; the same seed dresses alike."""
    head, tail = rng.choice(entries("heads")), rng.choice(entries("tails"))
    if rng.random() < _BOTH:
        return head + text + tail
    return head + text if rng.random() < 0.5 else text + tail


_BETWEEN = ("\n", "\n", "。", "，", "，", "！", " ", "？", "")


def beside(text: str, neighbour: str, rng: Random) -> str:
    """Return `text` before or behind a `neighbour`, a short everyday message that changes nothing of what it says."""
    first, second = (text, neighbour) if rng.random() < 0.6 else (neighbour, text)
    return f"{first.rstrip('。，,.')}{rng.choice(_BETWEEN)}{second}"
