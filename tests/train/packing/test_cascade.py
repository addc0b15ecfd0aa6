import numpy as np
import pytest

from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.model.text import clean
from jingyin.train.data import Rows
from jingyin.train.pack.calibrate import _fit_steps, _Readings
from jingyin.train.recipes import Classify

ORDINARY, THREATS, OPAQUE = 400, 100, 40


def readings() -> _Readings:
    """Return readings of real ordinary messages, of which a tenth are opaque, and of threats."""
    count = ORDINARY + THREATS
    labels = np.array([LABELS.index("ordinary")] * ORDINARY + [LABELS.index("debt_threat")] * THREATS)
    rows = Rows(
        [clean("好")] * count, labels, np.ones(count, np.float32), np.arange(count), [""] * count, ["nus"] * count,
        [""] * count, ["?"] * count,
    )  # fmt: skip
    scores = np.concatenate([np.arange(ORDINARY) / ORDINARY - 2, np.ones(THREATS)]).astype(np.float32)
    return _Readings(rows, np.stack([scores, scores]), np.arange(count) < OPAQUE, [np.zeros((count, len(LABELS)))])


def recipe(passed: float) -> Classify:
    return Classify(stage="classify", corpus="c", layers=1, epochs=1, passed=(passed,))


def test_a_share_that_opaque_messages_fill_stops_all_but_the_highest_score():
    given = readings()
    assert _fit_steps([], given, recipe(OPAQUE / ORDINARY)).prefilter == (given.prefilter[0, :ORDINARY].max(), 0.0)


def test_more_opaque_messages_than_the_first_network_is_to_read():
    wanted = r"may not judge 10\.00% of the 400 ordinary .* first share in passed is 9\.00%: raise it above the former"
    with pytest.raises(InputError, match=wanted):
        _fit_steps([], readings(), recipe(0.09))
