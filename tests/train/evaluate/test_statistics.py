import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.train.evaluate.statistics import paired_difference, rate, recall_at, recalls_at, threshold_at


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


def test_intervals_draw_whole_groups():
    flags = np.array([True] * 50 + [False] * 50)
    alone, grouped = rate(flags), rate(flags, np.arange(100) // 25)
    assert (grouped.count, grouped.rows, grouped.value) == (50, 100, 0.5)
    assert (grouped.low, grouped.high) == (0.0, 1.0)  # four groups of 25, two of them flagged
    assert rate(flags, np.arange(100)) == alone
    none = np.zeros(40, np.bool_)
    assert rate(none, np.arange(40) // 20) == rate(none)  # no draw tells more


@pytest.mark.parametrize(
    ("rows", "count", "low", "high"), [(30, 7, 0.0, 4 / 7), (60_000, 30_001, 0.2964898238718676, 0.306101122439626)]
)
def test_many_groups_are_drawn_in_parts(rows, count, low, high):
    rng, groups = np.random.default_rng(count), np.arange(rows) % count
    flags = rng.random(count)[groups] < 0.3
    tracemalloc.start()
    found = rate(flags, groups)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.low, found.high) == (low, high)  # as if all were drawn at once
    assert peak < 2e8  # bytes


def test_recall_at_a_rate_draws_groups_of_benign_and_of_flagged_rows():
    benign, flagged = np.arange(100) / 100, np.array([2.0] * 10 + [-1.0] * 30)
    groups = (np.array([7] * 50 + [3] * 50), np.array([5] * 10 + [9] * 30))
    (found,) = recalls_at((benign, flagged), groups, (0.01,))
    assert (found.value, found.low, found.high) == (0.25, 0.0, 1.0)  # both flagged groups once, or one of them twice
    # Where a half of the benign is drawn twice, its highest risk comes twice; one in a hundred may be reached: none is.
    (second,) = recalls_at((benign, benign), (groups[0], np.zeros(100, np.int64)), (0.01,))
    assert (second.value, second.low, second.high) == (0.01, 0.0, 0.5)


def test_golden_paired_difference():
    new, old = np.array([True] * 90 + [False] * 10), np.array([True] * 75 + [False] * 25)
    found = paired_difference(new, old, np.arange(100), 1.96)
    assert found.value == pytest.approx(0.15)
    assert (found.low, found.high) == pytest.approx((0.0716, 0.2284))  # 0.15 -+ 1.96 * sqrt(15 + 1) / 100
    same = paired_difference(new, new, np.arange(100), 1.96)
    assert same.low < same.value == 0 < same.high


def test_what_differs_by_whole_groups_is_less_sure():
    new, old = np.zeros(40), np.array([1.0] * 20 + [0.0] * 20)
    rows, groups = (paired_difference(new, old, numbers, 2) for numbers in (np.arange(40), np.arange(40) // 10))
    assert rows.value == groups.value == -0.5
    assert rows.high < 0 < groups.high


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=1, max_size=60))
def test_a_paired_difference_turns_its_sign_with_its_sides(rows):
    new, old, groups = np.array(rows).T
    one, other = paired_difference(new, old, groups, 2), paired_difference(old, new, groups, 2)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
