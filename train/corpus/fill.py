"""Fills the masks of public corpora with synthetic values, so that their messages look like traffic."""

import re
from collections.abc import Callable
from random import Random

from jingyin.train.corpus.slots import SLOTS

_Draw = Callable[[Random], str]


# Largest values by the unit behind a number: "在 <#> 点" filled with 760 is like no traffic, and networks flag it.
_LARGEST = {
    "秒": 59, "分": 59, "点": 23, "时": 23, "日": 31, "号": 31, "月": 12, "折": 9, "楼": 20, "万": 30, "岁": 80, "来": 60,
}  # fmt: skip


def _number(rng: Random, unit: str) -> str:
    return str(rng.randint(1, _LARGEST.get(unit) or 10 ** rng.choice((1, 2, 2, 3, 4)) - 1))


def _numbered(text: str, mask: str, rng: Random) -> str:
    """Fill each `mask` with a number that may stand before the unit behind it."""
    return re.sub(rf"{mask}(?=\s*([{''.join(_LARGEST)}]?))", lambda match: _number(rng, match[1]), text)


def _service(rng: Random) -> str:
    return f"{rng.choice(('400', '95', '10'))}{rng.randint(100, 9_999)}"


_TAGS: dict[str, _Draw] = {
    "DECIMAL": lambda rng: f"{rng.randint(0, 999)}.{rng.randint(1, 9)}",
    "TIME": SLOTS["time"],
    "DATE": SLOTS["date"],
    "EMAIL": lambda rng: f"{SLOTS['wechat'](rng)}@mail.cn",
    "URL": SLOTS["link"],
    "IP": lambda rng: ".".join(str(rng.randint(1, 254)) for _ in range(4)),
}
_WORDS: dict[str, _Draw] = {
    "CELLPHONE": SLOTS["phone"],
    "HOTLINE": _service,
    "WECHAT": SLOTS["wechat"],
    "PHONE": _service,
    "PLACE": SLOTS["city"],
    "NAME": SLOTS["name"],
    "BANK": SLOTS["bank"],
    "URL": SLOTS["link"],
    "QQ": SLOTS["qq"],
}
_TAG = re.compile(f"<({'|'.join(_TAGS)})>")
_WORD = re.compile("|".join(sorted(_WORDS, key=len, reverse=True)))
# A lone x after a Latin letter may be the end of a word; runs of x are digits wherever they stand.
_RUN = re.compile(r"(?<![A-Za-z])[xX](?![A-Za-z])|[xX]{2,}")


def fill_tags(text: str, rng: Random) -> str:
    """Fill the masks of the NUS SMS Corpus: <#>, <DECIMAL>, <TIME> and so on."""
    return _TAG.sub(lambda match: _TAGS[match[1]](rng), _numbered(text, "<#>", rng))


def fill_words(text: str, rng: Random) -> str:
    """Fill the masks of FBS: NAME, PLACE, DIGIT, URL, CELLPHONE and so on, upper case amid Chinese."""
    return _WORD.sub(lambda match: _WORDS[match[0]](rng), _numbered(text, "DIGIT", rng))


def fill_digits(text: str, rng: Random) -> str:
    """Fill the masks of the 800k set: each x of a run is a digit; eleven are a mobile number."""

    def digits(match: re.Match[str]) -> str:
        count = len(match[0])
        first = "1" + rng.choice("35789") if count == 11 else rng.choice("123456789")
        return first + "".join(rng.choice("0123456789") for _ in range(count - len(first)))

    return _RUN.sub(digits, text)
