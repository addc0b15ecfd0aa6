import re
from random import Random

import pytest

from jingyin.train.corpus.slots import fill_digits, fill_tags, fill_words

SEEDS = range(50)


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
