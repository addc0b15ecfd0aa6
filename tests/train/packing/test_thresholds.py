import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from jingyin.model.errors import InputError
from jingyin.train.packing.thresholds import (
    CAP,
    choose_threshold,
    expected_calibration_error,
    fit_fusion,
    fit_temperature,
    rows_needed,
    softmax,
    upper_bound,
)


@pytest.mark.parametrize(
    ("count", "rows", "wanted"),
    [(0, 10, 0.2589), (0, 3000, 0.000998), (1, 100, 0.0466), (5, 5, 1.0), (0, 0, 1.0)],
)
def test_upper_bound_is_clopper_and_pearsons(count, rows, wanted):
    assert upper_bound(count, rows) == pytest.approx(wanted, rel=2e-3)


@given(count=st.integers(0, 50), more=st.integers(1, 500))
def test_at_its_upper_bound_so_few_hits_have_a_chance_of_one_in_twenty(count, more):
    assert binom.cdf(count, count + more, upper_bound(count, count + more)) == pytest.approx(0.05, rel=1e-6)


@given(st.floats(0.0005, 0.5))
def test_rows_needed_is_the_smallest_number_that_supports_a_rate(rate):
    rows = rows_needed(rate)
    assert upper_bound(0, rows) <= rate * (1 + 1e-9)
    assert upper_bound(0, rows - 1) > rate * (1 - 1e-9)


def test_golden_threshold_with_its_evidence():
    risks = np.arange(1000) / 1000
    found = choose_threshold(risks, ["a", "b"] * 500, target=0.01, floor=0.5)
    # 5 count of 1000 bound the rate by 0.01048, 4 by 0.00913: four are allowed, so the risk lies just above the fifth.
    assert found.risk == np.nextafter(0.995, 1)
    assert (found.false_positives, found.rows, found.target) == (4, 1000, 0.01)
    assert found.bound == pytest.approx(0.00913, rel=1e-3)
    assert found.families == {"a": (2, 500), "b": (2, 500)}


def test_the_floor_holds_however_well_the_rows_behave():
    found = choose_threshold(np.zeros(1000), ["a"] * 1000, target=0.01, floor=0.5)
    assert (found.risk, found.false_positives) == (0.5, 0)


def test_nothing_reaches_a_threshold_that_certain_benign_rows_would_reach():
    found = choose_threshold(np.ones(1000), ["a"] * 1000, target=0.01, floor=0.5)
    assert found.risk > 1
    assert found.false_positives == 0


@given(
    st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=60, max_size=200),
    st.floats(0.05, 0.3),
    st.floats(0, 0.9),
)
def test_a_threshold_holds_its_target_and_none_lower_does(risks, target, floor):
    risks = np.array(risks)
    if upper_bound(0, len(risks)) > target:
        with pytest.raises(InputError, match="benign calibration rows can't support"):
            choose_threshold(risks, [""] * len(risks), target, floor)
        return
    found = choose_threshold(risks, [""] * len(risks), target, floor)
    assert found.bound <= target
    assert found.false_positives == (risks >= found.risk).sum()
    if found.risk > floor:
        lower = np.nextafter(found.risk, 0)
        assert upper_bound(int((risks >= lower).sum()), len(risks)) > target


def test_too_few_benign_rows_are_refused_with_the_number_needed():
    with pytest.raises(
        InputError, match=r"^500 benign .* rate of 0\.001: .* bound is 0\.006; wanted at least 2995 rows"
    ):
        choose_threshold(np.zeros(500), ["a"] * 500, target=0.001, floor=0.5)


def test_the_bound_holds_on_new_rows_at_least_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        found = choose_threshold(rng.random(500), ["a"] * 500, target=0.02, floor=0.0)
        rates.append(1 - found.risk)  # the true rate of uniform risks
    assert np.mean(np.array(rates) <= 0.02) == 0.98


def test_temperature_finds_how_much_logits_were_inflated_and_mends_the_error():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 5))
    labels = np.array([rng.choice(5, p=p) for p in softmax(logits)])
    found = fit_temperature(logits * 2.5, labels)
    assert found.temperature == pytest.approx(2.5, rel=0.05)
    assert found.ece_before > 0.1
    assert found.ece_after < 0.03
    assert found.rows == 4000


def test_golden_calibration_error_with_bins_of_equal_mass():
    probabilities = np.array([[0.6, 0.4], [0.7, 0.3], [0.9, 0.1], [1.0, 0.0]])
    # two bins: mean confidence 0.65 with 1 of 2 right, 0.95 with 2 of 2 right
    assert expected_calibration_error(probabilities, np.array([0, 1, 0, 0]), bins=2) == pytest.approx(0.1)


def test_a_perfect_classifier_has_no_calibration_error():
    assert expected_calibration_error(np.eye(5), np.arange(5)) == 0


def test_the_join_finds_slope_and_bias():
    rng = np.random.default_rng(0)
    odds, scores = rng.normal(-2, 3, 50_000), rng.normal(0, 2, 50_000)
    flagged = rng.random(50_000) < 1 / (1 + np.exp(-(0.6 * (np.minimum(odds, CAP) + scores) - 1)))
    join = fit_fusion(odds, scores, flagged)
    assert join.cap == CAP
    assert (join.slope, join.bias) == pytest.approx((0.6, -1), rel=0.05)


@pytest.mark.parametrize("flagged", [[False] * 5, [True] * 5])
def test_a_join_wants_both_kinds(flagged: list[bool]):
    with pytest.raises(InputError, match=rf"^the calibration split has {sum(flagged)} flagged messages of 5; both"):
        fit_fusion(np.zeros(5), np.zeros(5), np.array(flagged))
