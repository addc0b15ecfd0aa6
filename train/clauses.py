"""Pieces of messages, which nobody has labelled, for a teacher to label.

A threat may come as one clause, or behind another message's clauses. What a piece of a message says by itself no script
can tell (a warning's quotation alone is a threat), so a piece has the teacher's probabilities and no label of its own.
"""

import re
from collections.abc import Sequence
from random import Random

_CLAUSE = re.compile(r"[^，。！？；,!?;\n]+[，。！？；,!?;\n]*")


def clauses(texts: Sequence[str], share: float, seed: int) -> list[str]:
    """Return pieces of about `share` of the texts: some, not all clauses, half of them before a piece of another text.

    Texts of one clause give none. The same seed cuts alike.
    """
    rng = Random(seed)
    several = [found for text in texts if len(found := _CLAUSE.findall(text)) > 1]
    pieces = [_piece(found, rng) for found in several if rng.random() < share]
    return [piece if rng.random() < 0.5 else piece + _piece(rng.choice(several), rng) for piece in pieces]


def _piece(found: Sequence[str], rng: Random) -> str:
    count = rng.randint(1, len(found) - 1)
    start = rng.randint(0, len(found) - count)
    return "".join(found[start : start + count])
