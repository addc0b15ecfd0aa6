from random import Random

import pytest

from jingyin.train.corpus.perturb import affix, entries


def test_an_affix_leaves_the_message_whole():
    heads, tails = entries("heads"), entries("tails")
    rng = Random(1)
    texts = [affix("给钱就停", rng) for _ in range(300)]
    for text in texts:
        head, tail = text.split("给钱就停")
        assert head in (*heads, "")
        assert tail in (*tails, "")
        assert head or tail
    both = sum(not text.startswith("给钱") and not text.endswith("就停") for text in texts)
    assert both / 300 == pytest.approx(0.2, abs=0.06)


def test_held_out_entries_are_on_no_training_message():
    for name in ("heads", "tails"):
        assert not set(entries(name)) & set(entries(f"{name}_held_out"))
