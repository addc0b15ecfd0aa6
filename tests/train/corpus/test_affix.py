from random import Random

import pytest

from jingyin.train.corpus.perturb import affix, entries


def test_an_affix_is_a_head_or_a_tail_or_both():
    heads, tails = entries("heads"), entries("tails")
    rng = Random(1)
    found = [affix(rng) for _ in range(300)]
    for head, tail in found:
        assert head in (*heads, "")
        assert tail in (*tails, "")
        assert head or tail
    assert sum(bool(head and tail) for head, tail in found) / 300 == pytest.approx(0.2, abs=0.06)


def test_held_out_entries_are_on_no_training_message():
    for name in ("heads", "tails"):
        assert not set(entries(name)) & set(entries(f"{name}_held_out"))
