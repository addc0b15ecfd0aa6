import math
import re
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.model.errors import BundleError
from jingyin.model.masks import PLACEHOLDERS
from jingyin.model.text import CleanString, clean
from jingyin.model.tokenizer import END, START, SmsTokenizer, default_lexicon, parse_lexicon

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # jieba 0.42.1 has invalid escapes and uses pkg_resources
    import jieba

LEXICON = default_lexicon()
FREQUENCIES = parse_lexicon(LEXICON)
WORDS = sorted(word for word in FREQUENCIES if re.fullmatch("[\u4e00-\u9fff]+", word))


@pytest.fixture(scope="module")
def tokenizer() -> SmsTokenizer:
    return SmsTokenizer.from_lexicon(LEXICON)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> jieba.Tokenizer:
    path = tmp_path_factory.mktemp("lexicon") / "lexicon.txt"
    path.write_text(LEXICON, encoding="utf-8")
    peer = jieba.Tokenizer(dictionary=str(path))
    peer.tmp_dir = str(path.parent)  # pyright: ignore[reportAttributeAccessIssue]  it has the type of its default, None
    peer.initialize()
    return peer


def log_probability(words: list[str]) -> float:
    return sum(math.log(FREQUENCIES.get(word) or 1) for word in words) - len(words) * math.log(
        sum(FREQUENCIES.values())
    )


# Runs made of lexicon words, so that segmentation has choices to make.
RUNS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map("".join)


@given(run=RUNS)
def test_segments_as_jieba_does_but_for_ties(run: str, tokenizer: SmsTokenizer, peer: jieba.Tokenizer) -> None:
    ours, theirs = tokenizer.segment(CleanString(run)), peer.lcut(run, HMM=False)
    assert "".join(ours) == "".join(theirs) == run
    if ours != theirs:
        assert log_probability(ours) == pytest.approx(log_probability(theirs), abs=1e-4)


def test_golden_segmentation(tokenizer: SmsTokenizer) -> None:
    text = clean("再不还钱就爆通讯录，今晚6点前转300块到13812345678").text
    assert tokenizer.segment(text) == [
        "再", "不", "还钱", "就", "爆通讯录", ",", "今晚", "6", "点", "前", "转",
        PLACEHOLDERS["amount_round_below_1k"], "到", PLACEHOLDERS["phone"],
    ]  # fmt: skip


def test_ids_have_start_and_end(tokenizer: SmsTokenizer) -> None:
    ids = tokenizer.encode([clean("你好").text, clean("").text])
    assert ids[0][0] == ids[1][0] == START
    assert ids[0][-1] == ids[1][-1] == END
    assert ids[1] == [START, END]


@pytest.mark.parametrize("typed", ["[CLS]", "[PAD]", "[UNK]", "[SEP]", "[cls]", "<s>", "\ue000", "‹phone›"])
def test_typed_special_tokens_stay_text(typed: str, tokenizer: SmsTokenizer) -> None:
    (ids,) = tokenizer.encode([clean(f"你{typed}好").text])
    special = {tokenizer.backend.token_to_id(c) for c in PLACEHOLDERS.values()} | {0, START, END}
    assert not special & set(ids[1:-1])


def test_every_character_of_a_word_is_in_the_lexicon() -> None:
    assert {c for word in WORDS for c in word} <= set(FREQUENCIES)


def test_survives_saving(tokenizer: SmsTokenizer, tmp_path: Path) -> None:
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    read = SmsTokenizer.from_file(tmp_path / "tokenizer.json")
    text = clean("妳的錢還沒還，今晚18:00前").text
    assert read.encode([text]) == tokenizer.encode([text])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("坏", "1 fields"),
        ("坏 1 n n", "4 fields"),
        ("坏 n 1", "a frequency that isn't a number"),
        ("坏 -1 n", "a frequency that isn't a number"),
        ("坏 ² n", "a frequency that isn't a number"),
    ],
)
def test_says_what_is_wrong(line: str, fault: str) -> None:
    wanted = rf"^line 2 of the lexicon has {fault}; wanted 'word frequency \[part-of-speech\]'$"
    with pytest.raises(BundleError, match=wanted):
        parse_lexicon(f"你好 3 l\n{line}\n")


def test_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BundleError, match=r"tokenizer\.json can't be read"):
        SmsTokenizer.from_file(tmp_path / "tokenizer.json")
