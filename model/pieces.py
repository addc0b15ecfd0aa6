"""The other vocabulary: pieces of a pretrained encoder (SentencePiece's Unigram), as a tokenizer of clean text.

Networks that read words and networks that read pieces err on different messages, which is what a second reader is for.
The pretrained vocabulary has no placeholders: they are spelled out in words that it knows.
"""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from jingyin.model.errors import BundleError
from jingyin.model.masks import PLACEHOLDERS
from jingyin.model.text import CleanString
from jingyin.model.tokenizer import END, START

# What a placeholder stands for, in words that the pretrained vocabulary knows.
_MEANING = {
    "link": "网址", "email": "邮箱", "phone": "电话号码", "id_card": "身份证号", "bank_card": "银行卡号", "code": "验证码",
    "datetime": "日期时间", "number": "号码", "number_round": "整数", "number_exact": "数字", "redacted": "某某",
}  # fmt: skip
_SCALES = {"below_1k": "百", "below_10k": "千", "below_100k": "万", "more": "十万"}


def _meaning(name: str) -> str:
    if name in _MEANING:
        return _MEANING[name]
    _, kind, size = name.split("_", 2)
    return f"几{_SCALES[size]}元" if kind == "round" else f"几{_SCALES[size]}零几元"


_SPELLED = str.maketrans({character: _meaning(name) for name, character in PLACEHOLDERS.items()})


def spell(text: str) -> str:
    """Write the placeholders of clean `text` in words."""
    return text.translate(_SPELLED)


class PieceTokenizer:
    """Clean text -> ids of pieces; START and END stand around them, as they do around words."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.backend = tokenizer
        self.size: int = tokenizer.get_vocab_size()

    @classmethod
    def from_file(cls, path: Path) -> "PieceTokenizer":
        """Read a tokenizer's JSON; raises BundleError if it can't be read."""
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{path.name} can't be read as a tokenizer ({error}); export the bundle again") from None

    def encode(self, texts: Sequence[CleanString]) -> list[list[int]]:
        """Return the ids of each clean text, START first and END last, of any length."""
        found = self.backend.encode_batch_fast([spell(text) for text in texts], add_special_tokens=False)
        return [[START, *encoding.ids, END] for encoding in found]
