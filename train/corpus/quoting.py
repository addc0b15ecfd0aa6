"""Frames a message as it may come or be handed on: quoted, redacted, or among harmless phrases.

None of this changes what a message is, and all labels get the same. Without it a network learns that what is polite or
stands in quotation marks is harmless, since warnings quote and banks are polite: of 90 demands of an unseen writer 78
were found as they stood, 56 in quotation marks, 64 after a greeting.
"""

from random import Random

from jingyin.train.corpus.expand import SLOT, expand
from jingyin.train.corpus.tables import words

_QUOTES = ("“”", "「」", '""', "『』", "‘’", "''")
_REDACTIONS = ("XX", "xx", "某某", "某", "***", "××", "○○", "____", "")
_MOST_PHRASES = 6


def frame(template: str, rng: Random) -> str:
    """Return an authored message with its slots filled or redacted, quoted or padded; the same seed frames it alike."""
    kind = rng.choice(("quoted", "redacted", "padded") if SLOT.search(template) else ("quoted", "padded"))
    if kind == "redacted":
        mask = rng.choice(_REDACTIONS)
        return SLOT.sub(lambda slot: mask if rng.random() < 0.8 else expand(slot[0], rng), template)
    text = expand(template, rng)
    if kind == "quoted":
        marks = rng.choice(_QUOTES)
        return f"{marks[0]}{text}{marks[1]}"
    return _padded(text, rng)


def _padded(text: str, rng: Random) -> str:
    """Put harmless phrases before and after a text, more often few than many."""
    count = min(rng.randint(1, _MOST_PHRASES), rng.randint(1, _MOST_PHRASES))
    before = rng.randint(0, count)
    phrases = rng.choices(words("padding"), k=count)
    return "".join((*phrases[:before], text, *phrases[before:]))
