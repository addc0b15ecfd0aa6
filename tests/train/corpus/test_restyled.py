from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.model.text import clean
from jingyin.train.corpus.perturb import anonymous, restyled

TEXT = "你的事我都知道。不然就发给你单位，今晚转8000元到6222020200112345！"


def styles(text: str, seeds: int = 400) -> list[str]:
    return [restyled(text, Random(seed)) for seed in range(seeds)]


def test_marks_vary_within_and_at_the_end_and_the_words_stay() -> None:
    texts = styles("把钱转来。我知道你住哪，别装没看见")
    assert {text[-1] for text in texts} == {"见", "。", "！", "!", "…", ".", "~"}
    assert {text[4] for text in texts} == {*"。！， …\n", "我"}  # none at all where commas go
    assert {"".join(filter(str.isalpha, text)) for text in texts} == {"把钱转来我知道你住哪别装没看见"}


def test_a_third_of_the_messages_end_without_a_mark_and_a_third_with_an_exclamation() -> None:
    ends = Counter(text[-1] for text in styles("把钱转来，我知道你住哪"))
    assert 0.2 < ends["哪"] / 400 < 0.4
    assert 0.2 < (ends["！"] + ends["!"]) / 400 < 0.4


def test_a_question_stays_one() -> None:
    assert {text[-1] for text in styles("钱呢？什么时候还？")} == {"？"}


def test_conjunctions_and_units_are_exchanged_for_synonyms() -> None:
    texts = styles(TEXT)
    for word in ("否则", "不然", "要不", "8000元", "8000块"):
        assert 10 < sum(word in text for text in texts) < 390, word
    assert all("还不然" in text for text in styles("他还不然", 50))  # part of other words


def test_long_numbers_are_redacted_in_three_of_ten_and_sums_never() -> None:
    texts = styles(TEXT)
    redacted = [text for text in texts if "6222020200112345" not in text]
    assert 0.2 < len(redacted) / len(texts) < 0.4
    assert {text[text.index("622") :][:9] for text in redacted} == {"622****45", "622XXXX45", "622××××45"}
    assert all("8000" in text for text in texts)


def test_names_are_redacted_alike_within_a_message() -> None:
    found = [anonymous("{name}欠{amount}，找{name}", Random(seed)) for seed in range(300)]
    redacted = [text for text in found if "{name}" not in text]
    assert 60 < len(redacted) < 120
    assert all("{amount}" in text and text.split("欠")[0] == text.split("找")[1] for text in redacted)
    assert anonymous("没有名字", Random(1)) == "没有名字"


@pytest.mark.parametrize("text", ["", "。", "！！", "\n", " ", "……"])
def test_a_message_of_marks_is_no_error(text: str) -> None:
    assert all(len(each) <= 3 for each in styles(text, 50))


@given(st.text(max_size=60), st.integers(0, 2**32))
def test_every_text_can_be_restyled_and_the_same_seed_gives_the_same(text: str, seed: int) -> None:
    found = restyled(text, Random(seed))
    assert found == restyled(text, Random(seed))
    clean(found)
