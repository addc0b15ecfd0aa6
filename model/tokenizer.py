"""The tokenizer: jieba's lexicon, compiled.

jieba without its HMM takes the most probable path through its dictionary. That is the Viterbi path of a unigram
language model, which tokenizers' Unigram computes in Rust; the two differ only in ties between equal products.

Placeholders of model/masks.py are tokens of their own. Names of special tokens can't be typed: clean text is lower
case, and they contain capitals.
"""

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, Self

from tokenizers import Tokenizer, models

from jingyin.model.errors import BundleError
from jingyin.model.masks import PLACEHOLDERS
from jingyin.model.text import CleanString

PAD, UNKNOWN, START, END = 0, 1, 2, 3
"""Ids of the special tokens; START and END enclose every message."""

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_NEVER = -100.0  # a log probability that loses against every path of real words


def default_lexicon() -> str:
    """Return the lexicon in the package, in jieba's userdict format."""
    return files("jingyin.model").joinpath("tables/lexicon.txt").read_text(encoding="utf-8")


def parse_lexicon(lexicon: str) -> dict[str, int]:
    """Return word -> frequency of a lexicon in jieba's userdict format (word, frequency, part of speech).

    Raises a BundleError that names the first line in another format.
    """
    entries: dict[str, int] = {}
    for number, line in enumerate(lexicon.splitlines(), 1):
        fields = line.split(" ")
        counted = len(fields) in (2, 3)
        if not counted or not fields[1].isdecimal():
            fault = "a frequency that isn't a number" if counted else f"{len(fields)} fields"
            raise BundleError(f"line {number} of the lexicon has {fault}; wanted 'word frequency [part-of-speech]'")
        entries[fields[0]] = int(fields[1])
    return entries


def compile_lexicon(lexicon: str) -> Tokenizer:
    """Compile a lexicon into a Unigram tokenizer whose segmentation is jieba's, HMM off."""
    entries = parse_lexicon(lexicon)
    total = math.log(sum(entries.values()))
    pieces = [(name, _NEVER) for name in _SPECIAL]
    pieces += [(character, 0.0) for character in PLACEHOLDERS.values()]
    pieces += [(" ", 0.0)]  # jieba splits at spaces before it looks words up
    pieces += [(word, math.log(frequency or 1) - total) for word, frequency in entries.items()]
    return Tokenizer(models.Unigram(pieces, unk_id=UNKNOWN, byte_fallback=False))


class Encoded(NamedTuple):
    """The tokens of a clean text, START first and END last: ids, and their ranges in the text; (0, 0) of those two."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class _Wrapper:
    """A tokenizers.Tokenizer, to which the two below add START and END."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.backend = tokenizer
        self.size: int = tokenizer.get_vocab_size()

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a tokenizer's JSON; raises BundleError if it can't be read."""
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{path.name} can't be read as a tokenizer ({error}); export the bundle again") from None


class SmsTokenizer(_Wrapper):
    """Clean text -> ids of words, in the lexicon's order: a bundle's encoder and tokenizer.json belong together."""

    @classmethod
    def from_lexicon(cls, lexicon: str) -> Self:
        """Compile `lexicon`, the text of a file in jieba's userdict format."""
        return cls(compile_lexicon(lexicon))

    def encode(self, texts: Sequence[CleanString]) -> list[list[int]]:
        """Return the ids of each clean text, START first and END last, of any length."""
        return [[START, *encoding.ids, END] for encoding in self.backend.encode_batch_fast(texts)]

    def encode_with_offsets(self, texts: Sequence[CleanString]) -> list[Encoded]:
        """Return the tokens of each clean text with their places."""
        return [
            Encoded([START, *each.ids, END], [(0, 0), *each.offsets, (0, 0)])
            for each in self.backend.encode_batch(texts)
        ]

    def segment(self, text: CleanString) -> list[str]:
        """Return the words of a clean text, as jieba.lcut would."""
        return [text[start:end] for start, end in self.backend.encode(text).offsets]


# The other vocabulary: pieces of a pretrained encoder (SentencePiece's Unigram), as a tokenizer of clean text.
#
# Networks that read words and networks that read pieces err on different messages, which is the point of a second
# network. The pretrained vocabulary has no placeholders: they are spelled out in words that it knows.


# The meaning of each placeholder, in words that the pretrained vocabulary knows.
_MEANING = {
    "link": "网址", "email": "邮箱", "phone": "电话号码", "id_card": "身份证号", "bank_card": "银行卡号",
    "code": "验证码", "datetime": "日期时间", "number": "号码", "number_round": "整数", "number_exact": "数字",
    "redacted": "某某",
}  # fmt: skip
_SCALES = {"below_1k": "百", "below_10k": "千", "below_100k": "万", "more": "十万"}


def _meaning(name: str) -> str:
    if name in _MEANING:
        return _MEANING[name]
    _, kind, size = name.split("_", 2)
    return f"几{_SCALES[size]}元" if kind == "round" else f"几{_SCALES[size]}零几元"


MEANINGS = {character: _meaning(name) for name, character in PLACEHOLDERS.items()}
"""Placeholder -> words that a pretrained vocabulary knows."""

_SPELLED = str.maketrans(MEANINGS)


def spell(text: str) -> str:
    """Write the placeholders of clean `text` in words."""
    return text.translate(_SPELLED)


class PieceTokenizer(_Wrapper):
    """Clean text -> ids of pieces, enclosed in START and END as words are."""

    def encode(self, texts: Sequence[CleanString]) -> list[list[int]]:
        """Return the ids of each clean text, START first and END last, of any length."""
        found = self.backend.encode_batch_fast([spell(text) for text in texts], add_special_tokens=False)
        return [[START, *encoding.ids, END] for encoding in found]

    def encode_with_offsets(self, texts: Sequence[CleanString]) -> list[Encoded]:
        """Return the tokens of each clean text with their places; all of a placeholder's have its place."""
        found = self.backend.encode_batch([spell(text) for text in texts], add_special_tokens=False)
        encoded = []
        for text, each in zip(texts, found, strict=True):
            places = [i for i, character in enumerate(text) for _ in MEANINGS.get(character, character)]
            offsets = [(places[start], places[end - 1] + 1) for start, end in each.offsets]  # no token is empty
            encoded.append(Encoded([START, *each.ids, END], [(0, 0), *offsets, (0, 0)]))
        return encoded
