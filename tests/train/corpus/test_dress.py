from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.train.corpus.perturb import beside, dress, entries

TEXTS = st.text("给钱就停。，,.！？ ", min_size=1, max_size=20)


@given(TEXTS, TEXTS, st.integers(0, 1000))
def test_a_neighbour_stands_before_or_behind_and_both_stay_but_for_a_mark_at_the_seam(text, neighbour, seed):
    found = beside(text, neighbour, Random(seed))
    assert found == beside(text, neighbour, Random(seed))
    orders = ((text, neighbour), (neighbour, text))
    assert any(found.startswith(first.rstrip("。，,.")) and found.endswith(second) for first, second in orders)
    assert len(found) <= len(text) + len(neighbour) + 1


def test_both_orders_and_all_kinds_of_seams_occur():
    rng = Random(1)
    found = Counter(beside("给钱就停。", "吃了吗", rng) for _ in range(2000))
    assert set(found) == {
        f"{first}{mark}{second}"
        for first, second in (("给钱就停", "吃了吗"), ("吃了吗", "给钱就停。"))
        for mark in ("\n", "。", "，", "！", " ", "？", "")
    }
    before = sum(count for text, count in found.items() if text.startswith("给钱"))
    assert before / 2000 == pytest.approx(0.6, abs=0.03)


def test_a_dress_leaves_the_message_whole():
    heads, tails = entries("heads"), entries("tails")
    rng = Random(1)
    worn = [dress("给钱就停", rng) for _ in range(300)]
    for text in worn:
        head, tail = text.split("给钱就停")
        assert head in (*heads, "")
        assert tail in (*tails, "")
        assert head or tail
    both = sum(not text.startswith("给钱") and not text.endswith("就停") for text in worn)
    assert both / 300 == pytest.approx(0.2, abs=0.06)


def test_held_out_entries_are_on_no_training_message():
    for name in ("heads", "tails"):
        assert not set(entries(name)) & set(entries(f"{name}_held_out"))
