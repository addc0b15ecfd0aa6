"""Foreign messages: those without any Chinese to judge.

English, Korean, Uyghur and the like pass at the prefilter's cost, and their edits say so (`foreign`). Pinyin, initials
and any text with a Han character count as Chinese and are judged.
"""

import re
from importlib.resources import files

_CHINESE = re.compile("[\u3105-\u312f\u31a0-\u31bf\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U000323af]")  # bopomofo too
_WORD = re.compile("[a-z]+")
_FEWEST_LETTERS = 4
_MOST_PINYIN = 0.4  # share of the letters; ordinary English has .1 (you, he, can), Vietnamese .3
_COMMON_SHARE = 1 / 6


def _table(name: str) -> str:
    return files("jingyin.model").joinpath(f"tables/{name}.txt").read_text(encoding="utf-8")


_COMMON = frozenset(_table("foreign").split())  # frequent in messages of their language, and not pinyin syllables
_SYLLABLES = sorted({line.split(" ")[0] for line in _table("sounds").splitlines()}, key=len, reverse=True)
# Longest first, without backtracking: linear in the length of a word.
_PINYIN = re.compile(f"(?>{'|'.join(_SYLLABLES)})++|[^aeiouy]+")  # initials have no vowel


def is_foreign(text: str) -> bool:
    """Whether clean `text` is in a language other than Chinese, by its script or, if Latin, by common words."""
    if _CHINESE.search(text):
        return False
    letters = sum(character.isalpha() for character in text)
    words = _WORD.findall(text)
    latin = sum(map(len, words))
    if letters < _FEWEST_LETTERS or 2 * latin < letters:
        return letters >= _FEWEST_LETTERS
    if sum(word in _COMMON for word in words) < max(1, len(words) * _COMMON_SHARE):
        return False
    return sum(len(word) for word in words if _PINYIN.fullmatch(word)) < _MOST_PINYIN * latin
