import numpy as np
import pytest

from jingyin.model.cascade import FLAGGED_INDEX
from jingyin.model.labels import LABELS
from jingyin.model.text import clean
from jingyin.train.data import Rows
from jingyin.train.finetune import MOST_REPEATS, repeated, targets, training_rows

SOFT = np.array([[0.6, 0.1, 0.15, 0.05, 0.1]], np.float32)


def rows(*kinds: tuple[str, str, str], messages: list[int] | None = None) -> Rows:
    """Return rows of (source, family, label)."""
    count = len(kinds)
    return Rows(
        [clean(f"第{i}条") for i in range(count)], np.array([LABELS.index(label) for _, _, label in kinds]),
        np.ones(count, np.float32), np.array(messages or range(count)), [family for _, family, _ in kinds],
        [source for source, _, _ in kinds], [""] * count, ["?"] * count,
    )  # fmt: skip


def test_an_own_label_stands_and_an_authored_one_is_mixed_with_what_the_incumbent_says():
    found = targets(
        rows(("own", "debt_threat", "debt_threat"), ("authored", "chat", "debt_threat")), np.tile(SOFT, (2, 1))
    )
    assert found[0] == pytest.approx([0.004, 0.004, 0.984, 0.004, 0.004])
    assert found[1] == pytest.approx(0.5 * found[0] + 0.5 * SOFT[0])


@pytest.mark.parametrize(
    ("side", "label", "risk"), [("flagged", "debt_threat", 0.98), ("not_flagged", "ordinary", 0.02)]
)
def test_a_side_alone_sets_the_risk_and_leaves_the_rest_to_the_incumbent(side, label, risk):
    (found,) = targets(rows(("own", side, label)), SOFT)
    assert found.sum() == pytest.approx(1)
    assert found[FLAGGED_INDEX].sum() == pytest.approx(risk, abs=1e-6)
    assert found[2] / found[3] == pytest.approx(3, rel=1e-5)
    assert found[0] / found[1] == pytest.approx(6, rel=1e-5)


def test_few_own_messages_are_repeated_until_they_are_a_quarter():
    kinds = [("own", "a", "ordinary")] * 2 + [("authored", "a", "ordinary")] * 18
    assert repeated(rows(*kinds)).tolist() == [3, 3] + [1] * 18
    many = [("own", "a", "ordinary")] * 9 + [("authored", "a", "ordinary")] * 9
    assert set(repeated(rows(*many)).tolist()) == {1}
    one = [("own", "a", "ordinary")] + [("authored", "a", "ordinary")] * 300
    assert repeated(rows(*one))[0] == MOST_REPEATS


def test_a_repetition_is_a_message_of_its_own_with_the_same_copies():
    given = rows(
        ("own", "a", "ordinary"),
        ("own", "a", "ordinary"),
        *[("authored", "a", "ordinary")] * 6,
        messages=[0, 0, 1, 2, 3, 4, 5, 6],
    )
    data = training_rows(given, np.zeros((8, 5), np.float32), lambda cleaned: [[2, 3]] * len(cleaned))
    assert len(data) == 2 * 2 + 6
    counts = np.bincount(data["message"][:])
    assert sorted(counts[counts > 0].tolist()) == [1] * 6 + [2, 2]
