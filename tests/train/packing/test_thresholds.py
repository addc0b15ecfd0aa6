import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import binom

from jingyin.model.bundle import rows_needed
from jingyin.model.cascade import with_risk
from jingyin.model.errors import InputError
from jingyin.train.pack.thresholds import (
    choose_threshold,
    expected_calibration_error,
    false_alarm_curve,
    fit_fusion,
    highest_allowed,
    missed_of,
    share_threshold,
    upper_bound,
)


@pytest.mark.parametrize(
    ("count", "rows", "wanted"), [(0, 10, 0.2589), (0, 3000, 0.000998), (1, 100, 0.0466), (5, 5, 1.0), (0, 0, 1.0)]
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
    found = choose_threshold(risks, ["a", "b"] * 500, target=0.01)
    # 5 of 1000 bound the rate by 0.01048, 4 by 0.00913: four are allowed, so the risk lies between 0.995 and 0.996.
    assert found.risk == pytest.approx(expit((logit(0.995) + logit(0.996)) / 2))
    assert (found.false_positives, found.rows, found.target, found.least) == (4, 1000, 0.01, 0.0)
    assert found.bound == pytest.approx(0.00913, rel=1e-3)
    assert found.sources == {"a": (2, 500), "b": (2, 500)}


def test_no_threshold_is_below_the_least():
    found = choose_threshold(np.zeros(1000), ["a"] * 1000, target=0.01, least=0.5)
    assert (found.risk, found.false_positives, found.least) == (0.5, 0, 0.5)


def test_nothing_reaches_a_threshold_that_certain_benign_rows_would_reach():
    found = choose_threshold(np.ones(1000), ["a"] * 1000, target=0.01)
    assert found.risk > 1
    assert found.false_positives == 0


def test_every_source_counts_alike():
    # Of 900 rows of one source none is flagged, of 300 of another all: half of the traffic.
    risks, sources = np.array([0.1] * 900 + [0.8] * 300), ["large"] * 900 + ["small"] * 300
    assert choose_threshold(risks, sources, target=0.4).risk > 0.8
    assert choose_threshold(risks, sources, target=0.6).risk == pytest.approx(0.1)
    # The bound is that of all rows together.
    assert choose_threshold(risks, sources, target=0.01).bound == pytest.approx(upper_bound(0, 1_200), rel=1e-6)


def test_small_sources_count_as_one():
    risks, sources = np.arange(600) / 600, ["a"] * 300 + [f"b{i}" for i in range(300)]
    assert choose_threshold(risks, sources, target=0.01).bound == pytest.approx(upper_bound(1, 600), rel=1e-6)


@given(st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=60, max_size=200), st.floats(0.05, 0.3))
def test_a_threshold_holds_its_target_and_with_one_more_row_it_would_not(risks, target):
    risks = np.array(risks)
    found = choose_threshold(risks, [""] * len(risks), target)
    assert found.bound <= max(target, upper_bound(0, len(risks)) * (1 + 1e-9))
    assert found.false_positives == (risks >= found.risk).sum()
    if (left := risks[risks < found.risk]).size:
        assert upper_bound(int((risks >= left.max()).sum()), len(risks)) > target * (1 - 1e-9)


def test_too_few_rows_for_a_rate_lead_above_all_of_them():
    found = choose_threshold(np.arange(500) / 500, ["a"] * 500, target=0.001)
    assert (found.risk, found.false_positives) == (np.nextafter(499 / 500, 1), 0)
    assert found.bound == pytest.approx(upper_bound(0, 500))


def test_the_curve_leads_from_one_in_ten_to_nobody():
    risks, threats = np.arange(2000) / 2000, np.array([0.2, 0.96, 0.999, 1.0])
    curve = false_alarm_curve(risks, ["a"] * 2000, threats)
    assert [point.risk for point in curve] == sorted({point.risk for point in curve})
    assert curve[0].rate == pytest.approx(0.1, abs=0.01)
    assert (curve[-1].rate, curve[-1].recall) == (0, 0.25)
    assert curve[-1].bound == pytest.approx(upper_bound(0, 2000))
    assert curve[0].recall == 0.75
    for point in curve:
        assert point.rate == pytest.approx((risks >= point.risk).mean())


def test_a_rate_to_the_nearest_row_reaches_the_highest_allowed():
    risks = np.arange(3000) / 3000
    for rate, count in ((0.001, 3), (0.0003, 1), (0.0001, 0)):
        assert (risks >= highest_allowed(risks, rate)).sum() == count
    assert highest_allowed(np.array([]), 0.5) == 0


def test_the_bound_holds_on_new_rows_at_least_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        found = choose_threshold(rng.random(500), ["a"] * 500, target=0.02)
        rates.append(1 - found.risk)  # the true rate of uniform risks
    assert np.mean(np.array(rates) <= 0.02) == 0.99


def test_golden_calibration_error_with_bins_of_equal_mass():
    confidence = np.array([0.65] * 20 + [0.95] * 10)
    probabilities, labels = np.stack([confidence, 1 - confidence], axis=1), np.array([0, 1] * 10 + [0] * 10)
    # Fifteen bins of two: ten of confidence 0.65 with 1 of 2 right, five of 0.95 with 2 of 2 right.
    assert expected_calibration_error(probabilities, labels) == pytest.approx((10 * 0.15 + 5 * 0.05) / 15)


def test_a_perfect_classifier_has_no_calibration_error():
    assert expected_calibration_error(np.eye(5), np.arange(5)) == 0


def as_logits(odds: np.ndarray) -> np.ndarray:
    """Return logits (n, 5) whose risk has the log-odds `odds` (n,)."""
    return np.log(with_risk(np.zeros((len(odds), 5)), odds))


def test_the_fusion_finds_weights_and_bias():
    rng = np.random.default_rng(0)
    first, second, scores = rng.normal(-2, 3, 50_000), rng.normal(-2, 3, 50_000), rng.normal(0, 2, (2, 50_000))
    clipped = [np.clip(each, -8, 8) for each in (first, second)]
    wanted = 0.3 * scores[0] + 0.4 * scores[1] + 0.6 * clipped[0] + 0.2 * clipped[1] - 1
    flagged, traffic = rng.random(50_000) < 1 / (1 + np.exp(-wanted)), rng.random(50_000) < 0.3
    found = fit_fusion(scores, [as_logits(first), as_logits(second)], flagged, traffic, np.ones(50_000))
    assert (*found.scores, *found.weights, found.bias) == pytest.approx((0.3, 0.4, 0.6, 0.2, -1), rel=0.1)


def test_a_row_can_stand_for_several():
    rng = np.random.default_rng(3)
    scores, flagged = rng.normal(0, 2, (2, 400)), rng.random(400) < 0.5
    times = np.where(np.arange(400) < 100, 3, 1)
    repeated = np.repeat(np.arange(400), times)
    found = fit_fusion(scores, [], flagged, ~flagged, times.astype(float))
    wanted = fit_fusion(scores[:, repeated], [], flagged[repeated], ~flagged[repeated], np.ones(len(repeated)))
    assert (*found.scores, found.bias) == pytest.approx((*wanted.scores, wanted.bias), abs=0.02)


def test_no_step_counts_against_what_it_says():
    rng = np.random.default_rng(1)
    good, bad = rng.normal(0, 2, 5000), rng.normal(0, 2, 5000)
    flagged = rng.random(5000) < 1 / (1 + np.exp(-(good - bad)))
    found = fit_fusion(np.zeros((2, 5000)), [as_logits(good), as_logits(bad)], flagged, ~flagged, np.ones(5000))
    assert found.weights[0] > 0.5
    assert found.weights[1] == 0


def test_proportions_are_fitted_where_traffic_is_rather_than_where_most_rows_are():
    rng = np.random.default_rng(2)
    flagged, traffic = np.arange(6000) < 3000, np.arange(6000) >= 5700
    first = np.where(flagged, 1.5, np.where(traffic, 1.0, -1.5)) + rng.normal(0, 1, 6000)  # taken in by traffic
    second = np.where(flagged, 1.0, np.where(traffic, -1.5, 0.5)) + rng.normal(0, 1, 6000)  # knows it
    logits = [as_logits(first), as_logits(second)]
    told, untold = (
        fit_fusion(np.zeros((2, 6000)), logits, flagged, marked, np.ones(6000))
        for marked in (traffic, np.zeros(6000, np.bool_))
    )
    assert told.weights[1] / told.weights[0] > 1.5 * untold.weights[1] / untold.weights[0]
    risk = 1 / (1 + np.exp(-(told.bias + told.weights[0] * first + told.weights[1] * second)))
    assert risk.mean() == pytest.approx(0.5, abs=0.01)  # still a probability over all rows


@pytest.mark.parametrize("flagged", [[False] * 5, [True] * 5])
def test_a_fusion_wants_both_kinds(flagged: list[bool]):
    with pytest.raises(InputError, match=rf"^the calibration split has {sum(flagged)} flagged messages of 5; both"):
        fit_fusion(np.zeros((2, 5)), [np.zeros((5, 5))], np.array(flagged), np.zeros(5, np.bool_), np.ones(5))


def test_a_share_of_the_values_reaches_the_threshold():
    values = np.arange(1000) / 1000
    for share in (0.0, 0.04, 0.25, 1.0):
        assert (values >= share_threshold(values, share)).mean() == pytest.approx(share, abs=2e-3)


def test_what_is_lost_is_counted_among_the_flagged_alone():
    found = missed_of(np.array([True, True, False, False]), np.array([True, False, True, False]))
    assert (found.lost, found.flagged, found.bound) == (1, 2, upper_bound(1, 2))


def test_infinite_values_reach_a_finite_threshold():
    values = np.concatenate([np.arange(8) / 8, [np.inf, np.inf]])
    assert share_threshold(values, 0.5) == np.quantile(np.concatenate([np.arange(8) / 8, [9, 9]]), 0.5) == 0.5625
    above = np.nextafter(7 / 8, 1)
    for share in (0.0, 0.1, 0.15):  # between two infinities, or nearer to one than to the largest finite value
        assert share_threshold(values, share) == above
    assert share_threshold(values, 0.2) == 7 / 8  # 0.2 of the way to infinity
    assert np.isfinite(share_threshold(np.full(5, np.inf), 0.5))


@pytest.mark.parametrize("share", [0.1, 0.105, 0.2, 1.0])
def test_all_finite_values_reach_a_threshold_where_negative_infinities_leave_fewer(share):
    values = np.concatenate([np.full(90, -np.inf), np.arange(10) / 8])  # as of messages without Chinese
    assert share_threshold(values, share) == 0.0
    assert np.isfinite(share_threshold(np.full(5, -np.inf), share))


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40), st.floats(0, 1))
def test_a_threshold_of_finite_values_is_their_quantile_to_the_bit(values, share):
    for kind in (np.float32, np.float64):
        given_values = np.array(values, kind)
        assert share_threshold(given_values, share) == float(np.quantile(given_values, 1 - share))
