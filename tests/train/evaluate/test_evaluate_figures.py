import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.train.evaluate.statistics import (
    estimate,
    mcnemar,
    mean_difference,
    rate,
    recall_at,
    recalls_at,
    share_difference,
    threshold_at,
)

BOOLS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def test_golden_rate():
    found = rate(np.array([True] * 9 + [False]))
    assert (found.count, found.rows, found.value) == (9, 10, 0.9)
    assert (found.low, found.high) == pytest.approx((0.55498, 0.99747), abs=1e-5)  # R: binom.test(9, 10)


def test_the_rate_of_no_rows_says_nothing():
    found = rate(np.array([], np.bool_))
    assert (found.count, found.rows, found.low, found.high) == (0, 0, 0.0, 1.0)


@given(st.lists(st.integers(0, 9).map(float), min_size=1, max_size=40), st.integers(0, 45))
def test_a_threshold_lets_no_more_through_than_allowed_and_is_the_lowest(risks, allowed):
    risks = np.array(risks)
    found = threshold_at(risks, allowed)
    assert (risks >= found).sum() <= allowed
    if np.isfinite(found):
        assert (risks >= np.nextafter(found, -np.inf)).sum() > allowed


def test_recall_at_a_rate():
    benign, flagged = np.arange(100) / 100, np.array([0.5, 0.975, 0.985, 0.995])
    assert recall_at(benign, flagged, 0.01) == 0.5  # one benign row, 0.99, may be reached: the threshold is above 0.98
    assert recall_at(benign, flagged, 0.005) == 0.25
    assert recall_at(benign, flagged, 1.0) == 1.0


def test_replicates_are_paired_so_that_a_system_never_differs_from_itself():
    rng = np.random.default_rng(1)
    system = (rng.random(300), rng.random(50) + 0.5)
    recalls = recalls_at([system, system], (np.arange(300), np.arange(50)), (0.01, 0.1))
    assert recalls.shape == (1001, 2, 2)
    assert (recalls[:, 0] == recalls[:, 1]).all()
    found = estimate(recalls[:, 0, 1])
    assert found.low < found.value < found.high


def test_replicates_draw_whole_groups_of_benign_and_of_flagged_rows():
    benign, flagged = np.arange(100) / 100, np.array([2.0] * 10 + [-1.0] * 30)
    groups = (np.array([7] * 50 + [3] * 50), np.array([5] * 10 + [9] * 30))
    recalls = recalls_at([(benign, flagged)], groups, (0.01,))[:, 0, 0]
    assert recalls[0] == 0.25
    assert set(recalls[1:]) == {0.0, 0.25, 1.0}  # both flagged groups once, or one of them twice
    # Where a half of the benign is drawn twice, its highest risk comes twice; one in a hundred may be reached: none is.
    second = recalls_at([(benign, benign)], (groups[0], np.zeros(100, np.int64)), (0.01,))[:, 0, 0]
    assert set(second) == {0.01, 0.0, 0.5}


def test_golden_mcnemar():
    first = np.array([True] * 10 + [False] * 2 + [True] * 5)
    second = np.array([False] * 10 + [True] * 2 + [True] * 5)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (10, 2)
    assert found.p == pytest.approx(0.03857, abs=1e-5)  # R: binom.test(10, 12)
    assert mcnemar(first, first).p == 1


@given(BOOLS)
def test_a_difference_of_shares_turns_its_sign_with_its_sides(rows):
    first, second = np.array(rows).T
    one, other = share_difference(first, second), share_difference(second, first)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert -1 <= one.low <= one.high <= 1


def test_golden_difference_of_shares():
    first = np.array([True] * 90 + [False] * 10)
    second = np.array([True] * 75 + [False] * 25)
    found = share_difference(first, second)
    assert found.value == pytest.approx(0.15)
    # 15.5 and 0.5 of 102 differ: 0.14706 +- 1.96 * sqrt(16 - 15**2 / 102) / 102
    assert (found.low, found.high) == pytest.approx((0.07569, 0.21843), abs=1e-5)
    same = share_difference(first, first)
    assert same.low < same.value == 0 < same.high


def test_mean_difference():
    found = mean_difference(np.array([0.0, 1.0] * 50))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.4015, 0.5985), abs=1e-4)
