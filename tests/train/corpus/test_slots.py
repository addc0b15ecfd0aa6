import re
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from jingyin.model.errors import InputError
from jingyin.model.labels import FLAGGED
from jingyin.train.corpus.rows import default_folders, load
from jingyin.train.corpus.slots import SLOT, SLOTS, fill_digits, fill_slots, fill_tags, fill_words, slot_values

SEEDS = range(50)


def test_same_seed_same_text():
    text = "{name}欠{lender}{amount}，{deadline}前打{phone}"
    assert (
        fill_slots(text, Random(5))
        == fill_slots(text, Random(5))
        == "江树生欠嘟嘟闪借10,871.97元，明日15:30前打1xxxxxxxxxx"
    )
    assert len({fill_slots(text, Random(seed)) for seed in range(50)}) == 50


@pytest.mark.parametrize("slot", SLOTS)
def test_every_slot_has_many_values_and_leaves_no_brace(slot):
    values = {SLOTS[slot](Random(seed)) for seed in range(400)}
    assert len(values) >= (7 if slot == "carrier" else 20)
    assert all(value.strip() == value and value and "{" not in value for value in values)


def test_one_person_named_twice_is_one_and_two_times_are_two():
    values = [value for _, value in slot_values("{name}{name}{time}{time}{time}", Random(1))]
    assert values[0] == values[1]
    assert len(set(values[2:])) > 1


def test_what_value_and_text_both_say_is_said_once():
    for seed in range(200):
        text = fill_slots("请于{deadline}前还{price}块钱，{date}日{amount}元", Random(seed))
        for doubled in ("前前", "内前", "块块", "元元", "元块", "日日", "号日", "块元"):
            assert doubled not in text


def test_unknown_slot():
    with pytest.raises(InputError, match=r"unknown slot \{phne\}; known: amount"):
        fill_slots("{phne}", Random(0))


@given(st.text().filter(lambda text: not SLOT.search(text)))
def test_text_without_slots_stays(text):
    assert fill_slots(text, Random(0)) == text


@pytest.mark.exhaustive
def test_a_model_that_sees_only_the_slots_is_at_chance():
    """Of each slot, as many values from flagged messages as from others: nothing in them tells which."""
    rng = Random(7)
    values: dict[str, dict[bool, list[str]]] = {slot: {True: [], False: []} for slot in SLOTS}
    for record in (each for folder in default_folders() for each in load(folder)):
        for slot, value in slot_values(record.text, rng):
            values[slot][record.label in FLAGGED].append(value)
    texts, flagged = [], []
    for slot, found in values.items():
        for side in (True, False):
            kept = found[side][: min(map(len, found.values()))]
            texts += [f"{slot} {value}" for value in kept]
            flagged += [side] * len(kept)
    assert len(texts) > 4_000
    order = np.random.default_rng(0).permutation(len(texts))
    features = HashingVectorizer(analyzer="char", ngram_range=(1, 3), n_features=2**14).transform(texts)
    accuracy = cross_val_score(LogisticRegression(C=0.1), features[order], np.array(flagged)[order], cv=5).mean()
    assert abs(accuracy - 0.5) < 0.03


@pytest.mark.parametrize(("unit", "largest"), [("点", 23), ("分钟", 59), ("月", 12), ("号", 31), ("来分钟", 60)])
def test_a_number_suits_the_unit_behind_it(unit: str, largest: int) -> None:
    for fill, mask in ((fill_tags, "<#> "), (fill_words, "DIGIT")):
        drawn = [fill(f"{mask}{unit}", Random(seed)) for seed in SEEDS]
        numbers = [int(text.removesuffix(unit)) for text in drawn]
        assert 1 <= min(numbers) <= max(numbers) <= largest


def test_a_number_without_a_unit_has_up_to_four_digits() -> None:
    drawn = [fill_tags("还有<#>块", Random(seed)) for seed in SEEDS]
    assert {len(text) - len("还有块") for text in drawn} == {1, 2, 3, 4}


def test_no_mask_is_left() -> None:
    tags = "<#> <DECIMAL> <TIME> <DATE> <EMAIL> <URL> <IP>"
    assert "<" not in fill_tags(tags, Random(1))
    assert not re.search("[A-Z]{4}", fill_words("NAME在PLACE，DIGIT元，HOTLINE，CELLPHONE", Random(1)))


def test_a_run_of_eleven_x_is_a_mobile_number() -> None:
    assert re.fullmatch(r"电话1[35789]\d{9}", fill_digits("电话xxxxxxxxxxx", Random(1)))
