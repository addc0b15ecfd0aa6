"""The two vocabularies that a stage can train with: the lexicon, or the pretrained encoder's own pieces."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from transformers import BertModel

from jingyin.model.text import CleanText
from jingyin.model.tokenizer import SmsTokenizer, default_lexicon
from jingyin.train.data import Encode
from jingyin.train.encoder import Pretrained, keep_layers, load_pretrained, spell, with_lexicon
from jingyin.train.recipe import Align, Classify


@dataclass(frozen=True)
class Start:
    """What a stage starts from: an encoder, how it reads text, and its lexicon ("" for pieces)."""

    encoder: BertModel
    encode: Encode
    lexicon: str


def start_from(recipe: Align | Classify, encoder: str) -> Start:
    """Load `encoder` and give it the recipe's layers and vocabulary.

    A folder that an earlier stage left has the lexicon already; it lies beside the weights as lexicon.txt.
    """
    left = Path(encoder) / "lexicon.txt"
    if left.is_file():
        lexicon = left.read_text(encoding="utf-8")
        tokenizer = SmsTokenizer.from_lexicon(lexicon)
        kept = BertModel.from_pretrained(encoder, add_pooling_layer=False)
        return Start(keep_layers(kept, recipe.layers), lexicon_encode(tokenizer, recipe.max_tokens), lexicon)
    pretrained = load_pretrained(encoder)
    keep_layers(pretrained.model, recipe.layers)
    if recipe.vocabulary == "pieces":
        return Start(pretrained.model, pieces_encode(pretrained, recipe.max_tokens), "")
    lexicon = default_lexicon()
    tokenizer = SmsTokenizer.from_lexicon(lexicon)
    model = with_lexicon(pretrained, tokenizer, recipe.max_tokens)
    return Start(model, lexicon_encode(tokenizer, recipe.max_tokens), lexicon)


def lexicon_encode(tokenizer: SmsTokenizer, max_tokens: int) -> Encode:
    """Return a function that encodes by the lexicon, cut to `max_tokens` with the end token kept."""

    def encode(cleaned: Sequence[CleanText]) -> list[list[int]]:
        return [_cut(ids, max_tokens) for ids in tokenizer.encode([each.text for each in cleaned])]

    return encode


def pieces_encode(pretrained: Pretrained, max_tokens: int) -> Encode:
    """Return a function that encodes by the pretrained vocabulary, placeholders spelled out in words."""

    def encode(cleaned: Sequence[CleanText]) -> list[list[int]]:
        backend: Tokenizer = pretrained.tokenizer
        pieces = backend.encode_batch_fast([spell(each.text) for each in cleaned], add_special_tokens=False)
        return [_cut([pretrained.bos, *piece.ids, pretrained.eos], max_tokens) for piece in pieces]

    return encode


def _cut(ids: list[int], size: int) -> list[int]:
    return ids if len(ids) <= size else [*ids[: size - 1], ids[-1]]
