import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jingyin.model.labels import LABELS
from jingyin.train.loop import Schedule, _plan, _side_by_side, one_variant_each, pad, token_batches
from jingyin.train.losses import cross_entropy, margin_loss, pair_loss


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=60), st.integers(0, 5))
def test_each_message_comes_once(rows: list[tuple[int, bool]], seed: int):
    messages, plain = (np.array(column) for column in zip(*rows, strict=True))
    chosen = one_variant_each(messages, plain, np.random.default_rng(seed))
    assert sorted(messages[chosen].tolist()) == sorted(set(messages.tolist()))


def test_a_plain_row_comes_in_half_of_the_cases_and_all_rows_take_turns():
    messages, plain = np.array([0, 1, 0, 1, 0, 1, 0]), np.array([False, False, True, False, False, False, True])
    drawn = [one_variant_each(messages, plain, np.random.default_rng(seed)) for seed in range(800)]
    counts = np.bincount(np.concatenate(drawn), minlength=7)
    assert counts.sum() == 1600
    assert counts[[2, 6]] == pytest.approx([300, 300], abs=40)  # half of 800, and half of the other half
    assert counts[[0, 4]] == pytest.approx([100, 100], abs=30)
    assert counts[[1, 3, 5]] == pytest.approx([267] * 3, abs=40)  # no plain row: any


def test_messages_are_shown_their_times_an_epoch():
    messages, times, plain = np.array([0, 0, 1, 2, 2, 2]), np.array([1, 1, 1, 3, 3, 3]), np.ones(6, np.bool_)
    schedule = Schedule(epochs=2, tokens=64, learning_rate=1e-4, precision="bf16", seed=1)
    plan, last = _plan([[2, 5, 3]] * 6, messages, plain, times, [""] * 6, schedule)
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


def test_the_rows_of_a_pair_share_a_batch():
    rng = np.random.default_rng(3)
    lengths = rng.integers(3, 60, 400)
    pairs = [f"pair {row // 2}" if row < 200 else "" for row in range(400)]
    padded, order = _side_by_side(lengths, rng.permutation(400), pairs)
    assert sorted(order.tolist()) == list(range(400))
    batches = token_batches(padded, order, 600, rng)
    together = sum(2 * pair in batch and 2 * pair + 1 in batch for batch in batches for pair in range(100))
    assert together >= 85  # a batch may end between the two
    assert all(padded[row] == max(lengths[row], lengths[row ^ 1]) for row in range(200))


def test_an_innocent_pays_above_its_margin_a_threat_below_its_own_another_threat_nothing():
    logits = torch.zeros(3, 5)  # of each three labels of five speak against the risk: log-odds of log 2/3
    target = torch.eye(5)[[LABELS.index(label) for label in ("ordinary", "pay_to_stop", "other_threat")]]
    paid = margin_loss(1.0)(logits, target) - cross_entropy(logits, target)
    odds = math.log(2 / 3)
    assert paid.tolist() == pytest.approx([(odds + 5) ** 2, (2 - odds) ** 2, 0.0], abs=1e-5)


def test_pair_loss_is_the_softplus_of_what_lacks_to_the_margin():
    logits = torch.zeros(5, 5)
    logits[0, 3] = 50.0  # a threat, surely flagged
    target = torch.eye(5)[[3, 0, 3, 0, 0]]
    assert float(pair_loss(logits, target, ["a", "a", "", "", ""])) == pytest.approx(0, abs=1e-6)
    alike = float(pair_loss(logits, target, ["", "", "b", "b", "b"]))
    assert alike == pytest.approx(2 * float(torch.nn.functional.softplus(torch.tensor(4.0))))
    assert float(pair_loss(logits, target, ["", "c", "", "c", ""])) == 0.0  # two innocents
