"""Masks on what nobody writes by accident; test_text.py has what they make of messages."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.model.masks import amount_value, bucket, mask, readable
from jingyin.model.text import clean

PIECES = ("一", "百", "万", "亿", "元", "1", ",", ".", "-", " ", "a", "@", "x", "*", "#", "+", "(", "¥", "/", ":",
          "com", "www.", "86")  # fmt: skip
"""What the patterns are made of, a character of each class."""


def seen(text: str) -> str:
    return readable(clean(text).text)


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("亿" * 39 + "元", "亿" * 9 + "‹amount_round_more›"),
        ("9" * 309 + "元", "‹number›元"),
        ("￥" + "9" * 309, "¥‹number›"),
        ("￥" + "9" * 31, "‹amount_round_more›"),
        ("￥1." + "9" * 40, "‹amount_exact_below_1k›.‹number›"),
        ("1," * 400 + "元", "1," * 384 + "1,‹amount_exact_more›"),
    ],
)
def test_amounts_beyond_every_float_have_a_bucket(raw: str, wanted: str) -> None:
    assert seen(raw) == wanted


@pytest.mark.parametrize("written", ["亿" * 39 + "元", "9" * 309 + "元", "9" * 300 + "亿亿"])
def test_infinite_amounts_are_round_and_more(written: str) -> None:
    assert bucket(amount_value(written)) == bucket(math.inf) == "round_more"


@given(st.lists(st.sampled_from(PIECES), max_size=80).map("".join))
def test_total_over_what_the_patterns_are_made_of(raw: str) -> None:
    clean(raw)


@pytest.mark.parametrize(("raw", "wanted"), [
    ("phone13812345678", "phone‹phone›"), ("wechat13812345678", "wechat‹phone›"), ("@13812345678", "@‹phone›"),
    ("phone138****5678", "phone‹phone›"), ("wechat54321", "wechat‹number›"),
    ("card6222021234567890123", "card‹bank_card›"), ("idcard110101199001011234", "idcard‹id_card›"),
    ("a@13812345678.", "a@‹phone›."), ("mate300", "mate300"), ("iphone15", "iphone15"), ("galaxy2024", "galaxy2024"),
    ("c919", "c919"), ("v1.2", "v1.2"), ("room1201", "room1201"),
])  # fmt: skip
def test_behind_letters_only_what_may_belong_to_somebody_is_masked(raw: str, wanted: str) -> None:
    assert seen(raw) == wanted


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("取货码 ：您的 ：482913", "取货码 :您的 :‹code›"),  # eleven characters from its name to the code
        ("比例1:10000", "比例1:‹number›"),  # half of it is no time of day
        ("985大学招生", "985大学招生"),
        ("证件110105491231002", "证件‹id_card›"),  # of fifteen digits, as they were until 1999
    ],
)
def test_codes_times_and_numbers_with_a_meaning(raw: str, wanted: str) -> None:
    assert seen(raw) == wanted


def seconds(text: str) -> float:
    """Return the least of three times that masking takes, in seconds of one core."""
    times = []
    for _ in range(3):
        began = time.process_time()
        list(mask(text, {}))
        times.append(time.process_time() - began)
    return min(times)


@pytest.mark.exhaustive  # ten seconds of the processor together
@pytest.mark.parametrize(
    "kind",
    ["一", "1,", "a.", "a-", "一百", "1", "1.", "1-", "1 ", "a", "a1", "a@", "a.-", "a.com.", "x", "x*", "*", "www.",
     "¥", "(0", "86 ", "+86", "1:", "1月", "几", "20", "20-", "_x", "wx1", "@1", "1x", "1*"],
)  # fmt: skip
@pytest.mark.parametrize("end", ["", "走"])
def test_four_times_the_length_takes_about_four_times_as_long(kind: str, end: str) -> None:
    """Where a pattern is quadratic it takes sixteen times as long, on a machine of any speed."""
    short, long = (seconds(kind * (length // len(kind)) + end) for length in (5_000, 20_000))
    assert long < 8 * short
