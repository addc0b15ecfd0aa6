import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin import LABELS
from jingyin.model.bundle import Join
from jingyin.model.join import joined, risk_odds

FLAGGED = [2, 3]
PROBABILITIES = np.array([[0.3, 0.1, 0.2, 0.3, 0.1], [0.9, 0.05, 0.02, 0.02, 0.01]])


def test_a_gate_without_an_opinion_changes_nothing() -> None:
    found = joined(Join(cap=9, slope=1, bias=0), PROBABILITIES, [0, 0], FLAGGED)
    np.testing.assert_allclose(found, PROBABILITIES, rtol=0, atol=1e-12)


def test_log_odds_add_up() -> None:
    found = joined(Join(cap=9, slope=0.5, bias=-1), PROBABILITIES, [1.5, -0.25], FLAGGED)
    odds = 0.5 * (np.log([0.5 / 0.5, 0.04 / 0.96]) + np.array([1.5, -0.25])) - 1
    assert risk_odds(found, FLAGGED) == pytest.approx(odds)
    assert found[0, 2] / found[0, 3] == pytest.approx(2 / 3)
    assert found[1, 0] / found[1, 4] == pytest.approx(90)


def test_a_network_that_is_surer_than_the_cap_says_no_more() -> None:
    sure = np.array([[0.01, 0, 0.99, 0, 0], [0.001, 0, 0.999, 0, 0], [0.5, 0, 0.5, 0, 0]])
    found = joined(Join(cap=2, slope=1, bias=-1), sure, [-3, -3, -3], FLAGGED)
    assert risk_odds(found, FLAGGED) == pytest.approx([-2, -2, -4])


rows = st.lists(
    st.lists(st.floats(0, 1), min_size=len(LABELS), max_size=len(LABELS)).filter(sum), min_size=1, max_size=4
)


@given(rows, st.floats(-50, 50))
def test_whatever_comes_in_probabilities_come_out_and_more_score_is_more_risk(
    each: list[list[float]], score: float
) -> None:
    probabilities = np.array(each) / np.sum(each, axis=1, keepdims=True)
    join = Join(cap=3.5, slope=0.7, bias=-0.5)
    low, high = (joined(join, probabilities, np.full(len(each), s), FLAGGED) for s in (score, score + 1))
    assert np.allclose(low.sum(1), 1)
    assert ((low >= 0) & (low <= 1)).all()
    assert (high[:, FLAGGED].sum(1) >= low[:, FLAGGED].sum(1) - 1e-12).all()
