"""Finds series: messages that are one message with other names, numbers or places, and so teach one thing."""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache

from jingyin.train.corpus.expand import SLOT
from jingyin.train.corpus.tables import words

SHORTEST_SERIES = 3
"""Two people may hit on 一百块不给就差评 and 五十块不给就差评; three don't."""

_BLANK = "0"
_DIGITS = r"\d零〇一二两三四五六七八九十百千万亿几半"
_NUMBER = re.compile(f"[{_DIGITS}][{_DIGITS}.:：点]*(?:块钱?|元|号|日|天)?")
_BESIDE = re.compile(r"[\W_]+")
_BLANKS = re.compile("0+")


def skeleton(text: str) -> str:
    """Return the letters of a message with slots, names, numbers and places blanked: one and the same for a series."""
    for pattern in (SLOT, _place(), _name(), _NUMBER):
        text = pattern.sub(_BLANK, text)
    return _BLANKS.sub(_BLANK, _BESIDE.sub("", text))


def series(texts: Sequence[str]) -> list[list[int]]:
    """Return the row numbers of each series of SHORTEST_SERIES messages or more, in order of its first."""
    found: dict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        found[skeleton(text)].append(i)
    return [rows for rows in found.values() if len(rows) >= SHORTEST_SERIES]


@cache
def _name() -> re.Pattern[str]:
    """Return a pattern of a family name with a given name, or as people are addressed: 老王, 王总, 王姐."""
    family, given = _any_of("surnames"), _any_of("given")
    titles = "先生|女士|总|哥|姐|叔|姨|老板|经理|老师|主任|队|家|某"
    return re.compile(f"[老小阿](?:{family})|(?:{family})(?:{given}|{titles})")


@cache
def _place() -> re.Pattern[str]:
    """Return a pattern of the places in the tables, and of two characters with a kind of place behind them."""
    kinds = "省|市|区|县|镇|乡|村|路|街|小区|小学|中学|大学|幼儿园"
    return re.compile(
        f"(?:{_any_of('cities', 'districts', 'villages')})[市区县镇乡村]?|[\u4e00-\u9fff]{{2}}(?:{kinds})"
    )


def _any_of(*names: str) -> str:
    """Return a pattern of all entries of some tables, longer ones first."""
    return "|".join(sorted({word for name in names for word in words(name)}, key=lambda word: (-len(word), word)))
