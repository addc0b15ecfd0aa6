import re
from random import Random

import pytest

from jingyin.train.corpus.perturb import affix, entries
from jingyin.train.corpus.slots import words


def test_an_affix_is_a_head_or_a_tail_or_both_and_one_in_ten_is_padding():
    heads, tails = {*entries("heads"), ""}, {*entries("tails"), ""}
    rng = Random(1)
    found = [affix(rng) for _ in range(600)]
    affixes = [(head, tail) for head, tail in found if head in heads and tail in tails]
    assert all(head or tail for head, tail in found)
    assert sum(bool(head and tail) for head, tail in affixes) / len(affixes) == pytest.approx(0.2, abs=0.06)
    padding = [head + tail for head, tail in found if (head, tail) not in affixes]
    assert len(padding) / 600 == pytest.approx(0.1, abs=0.04)
    phrases = re.compile(f"(?:{'|'.join(map(re.escape, words('padding')))}){{1,6}}")
    assert all(phrases.fullmatch(text) for text in padding)


def test_held_out_entries_are_on_no_training_message():
    for name in ("heads", "tails"):
        assert not set(entries(name)) & set(entries(f"{name}_held_out"))
