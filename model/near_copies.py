"""Near-copies: the hashed triples of clean texts, of which copies of one wording share most.

Known wordings, senders, bursts and cases compare texts by these hashes, each with a policy of its own. A number, also a
short one or a Chinese numeral, is one character: it may be a price in one copy and a debt in another. The hashes are
salted, so the texts can't be guessed from them.
"""

import re
from collections.abc import Collection
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from jingyin.model.masks import PLACEHOLDERS

CHARACTERS = 500
"""Characters of a text that count: seven parts of an SMS."""
_TABLE = files("jingyin.model").joinpath("tables/sounds.txt").read_text(encoding="utf-8")
ALIKE = [line.split(" ")[1] for line in _TABLE.splitlines()]
"""The characters of each toneless syllable."""

# Four units of UTF-16. The salt's low zeros drop the fourth.
_TRIPLE = np.dtype("<u8")
# A lone numeral counts only before a unit: 逐一 is a word.
_NUMERALS = "零〇一二两三四五六七八九十百千万亿壹贰叁肆伍陆柒捌玖拾佰仟"
_DIGITS = r"\d" + "".join(c for kind, c in PLACEHOLDERS.items() if kind not in ("link", "email"))
_NUMBER = re.compile(f"[{_DIGITS}{_NUMERALS}]{{2,}}|[{_DIGITS}]|[{_NUMERALS}](?=[年月日号天周点时分小元块个人次遍])")
# For each unit of UTF-16 the first one that sounds like it, itself if none does.
_SOUNDS = np.arange(1 << 16, dtype="<u2")
_SOUNDS[list(map(ord, "".join(ALIKE)))] = [ord(characters[0]) for characters in ALIKE for _ in characters]


def units(text: str) -> NDArray[np.uint16]:
    """Return the units of UTF-16 of clean `text`, each number as one."""
    numbered = _NUMBER.sub(PLACEHOLDERS["number"], text[:CHARACTERS])
    return np.frombuffer(numbered.encode("utf-16-le", "surrogatepass"), "<u2")


def hashes(text: str, salt: np.uint64, *, sounds: bool = False) -> list[int]:
    """Return the hashes (32 bits) of the triples of clean `text` in order: one for each character but the last two.

    A number is one character. With `sounds`, characters of one toneless syllable are equal.
    """
    data = (_SOUNDS[units(text)] if sounds else units(text)).tobytes()
    if len(data) < 6:
        return []
    triples = np.ndarray((len(data) >> 1) - 2, _TRIPLE, data + b"\0\0", 0, (2,)) * salt
    found: list[int] = (triples >> np.uint64(32)).tolist()
    return found


def sketch(text: str, salt: np.uint64, size: int) -> list[int]:
    """Return the `size` smallest hashes of clean `text`: near-copies have most of them in common (Broder 1997)."""
    return sorted(set(hashes(text, salt)))[:size]


def share(wording: Collection[int], text: frozenset[int]) -> float:
    """Return the share of a wording's hashes, 0 to 1, that a text has; 0 if it has none."""
    return len(text.intersection(wording)) / max(1, len(wording))


def place(text: str, first: int, last: int) -> str:
    """Return the part of clean `text` from its unit `first` to `last`, as `units` counts them."""
    data = text[:CHARACTERS].encode("utf-16-le", "surrogatepass")
    plain = np.frombuffer(data, "<u2")
    at, starts = 0, list[int]()
    for match in _NUMBER.finditer("".join(map(chr, plain))):
        starts += range(at, match.start() + 1)
        at = match.end()
    starts += range(at, len(plain) + 1)
    return data[2 * starts[first] : 2 * starts[last + 1]].decode("utf-16-le", "ignore")
