import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jingyin.train.loop import Schedule, _plan, one_variant_each, pad, token_batches


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 5))
def test_each_message_comes_once(messages: list[int], seed: int):
    rows = one_variant_each(np.array(messages), np.random.default_rng(seed))
    assert sorted(messages[i] for i in rows) == sorted(set(messages))


def test_the_message_as_it_stands_comes_in_two_of_three_and_its_copies_take_turns():
    messages = np.array([0, 1, 0, 1, 0, 1])
    drawn = [one_variant_each(messages, np.random.default_rng(seed)) for seed in range(600)]
    counts = np.bincount(np.concatenate(drawn), minlength=6)
    assert counts.sum() == 1200
    assert counts[:2] == pytest.approx([400, 400], abs=40)
    assert counts[2:] == pytest.approx([100] * 4, abs=30)


def test_messages_are_shown_their_times_an_epoch():
    messages, times = np.array([0, 0, 1, 2, 2, 2]), np.array([1, 1, 1, 3, 3, 3])
    schedule = Schedule(epochs=2, tokens=64, learning_rate=1e-4, warmup=0.0, precision="bf16", seed=1)
    plan, last = _plan([[2, 5, 3]] * 6, messages, times, schedule)
    for part in (plan[:last], plan[last:]):
        assert np.bincount(messages[[row for batch in part for row in batch]]).tolist() == [1, 1, 3]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=300), st.integers(64, 300), st.integers(0, 5))
def test_batches_hold_every_row_once_and_no_more_tokens_than_asked_for(lengths: list[int], tokens: int, seed: int):
    rows = np.random.default_rng(seed).permutation(len(lengths))
    batches = token_batches(np.array(lengths), rows, tokens, np.random.default_rng(seed))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[row] for row in batch) <= tokens for batch in batches)


def test_rows_of_like_length_come_together_in_random_order():
    lengths = np.random.default_rng(0).integers(2, 100, 5000)
    batches = token_batches(lengths, np.arange(5000), 2048, np.random.default_rng(1))
    spread = [np.ptp(lengths[batch]) for batch in batches]
    assert np.mean(spread) < 5
    means = [lengths[batch].mean() for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_a_row_that_is_longer_than_a_batch_is_a_batch():
    assert token_batches(np.array([500, 2]), np.arange(2), 64, np.random.default_rng(0)) in ([[1], [0]], [[0], [1]])


def test_padding():
    ids, mask = pad([[2, 7, 3], [2, 3]])
    assert ids.tolist() == [[2, 7, 3], [2, 3, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert ids.dtype == mask.dtype == torch.long


def test_the_same_seed_gives_the_same_batches():
    lengths = np.random.default_rng(0).integers(2, 100, 500)
    first, again, other = (
        token_batches(lengths, np.arange(500), 512, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert sum(map(len, other)) == pytest.approx(500)
