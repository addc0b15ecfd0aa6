import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from jingyin import Scorer
from jingyin.model.masks import PLACEHOLDERS
from jingyin.model.text import clean
from jingyin.model.tokenizer import END, START, UNKNOWN, PieceTokenizer, spell

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "你", "好", "你好", "网", "址", "网址"]


@pytest.fixture(scope="module")
def tokenizer() -> PieceTokenizer:
    scores = [-2.0 if len(piece) == 2 else -3.0 for piece in PIECES]
    return PieceTokenizer(Tokenizer(models.Unigram(list(zip(PIECES, scores, strict=True)), unk_id=UNKNOWN)))


def test_placeholders_are_spelled_in_words() -> None:
    assert spell(clean("见 https://a.cn 打13812345678").text) == "见 网址 打电话号码"
    assert spell(clean("转300块,欠1,783.52元").text) == "转几百元,欠几千零几元"
    spelled = [spell(character) for character in PLACEHOLDERS.values()]
    assert all(word.isalpha() and not set(word) & set(PLACEHOLDERS.values()) for word in spelled)
    assert len(set(spelled)) == len(spelled)


def test_start_and_end_stand_around_the_pieces(tokenizer: PieceTokenizer) -> None:
    assert tokenizer.encode([clean("你好你").text, clean("").text]) == [[START, 6, 4, END], [START, END]]
    assert tokenizer.size == len(PIECES)


def test_a_placeholder_is_read_as_its_words(tokenizer: PieceTokenizer) -> None:
    assert tokenizer.encode([clean("https://a.cn").text]) == [[START, 9, END]]


def test_tokens_have_places_in_the_clean_text(tokenizer: PieceTokenizer) -> None:
    ((ids, offsets),) = tokenizer.encode_with_offsets([clean("你好https://a.cn你").text])  # the link is one character
    assert ids == [START, 6, 9, 4, END]
    assert offsets == [(0, 0), (0, 2), (2, 3), (3, 4), (0, 0)]


@given(st.text(max_size=30))
def test_places_are_in_order_and_ids_those_without_places(scorer: Scorer, raw: str) -> None:
    text = clean(raw).text
    for network in scorer._networks:
        ((ids, offsets),) = network.tokenizer.encode_with_offsets([text])
        assert [ids] == network.tokenizer.encode([text])
        assert offsets[0] == offsets[-1] == (0, 0)
        starts, ends = zip(*offsets[1:-1], strict=True) if len(ids) > 2 else ((), ())
        assert all(0 <= start < end <= len(text) for start, end in offsets[1:-1])
        assert (list(starts), list(ends)) == (sorted(starts), sorted(ends))


@given(st.text(max_size=30))
def test_typed_special_tokens_stay_text(tokenizer: PieceTokenizer, raw: str) -> None:
    for text in (raw, f"[CLS]{raw}[PAD]"):
        (ids,) = tokenizer.encode([clean(text).text])
        assert not {0, START, END} & set(ids[1:-1])
