import pytest

from jingyin.model.errors import InputError
from jingyin.train.finetune_data import FEWEST, Labelled, deduplicate, is_flagged

FILLER = [Labelled(f"第{chr(0x4E00 + i)}条", "ordinary", f"filler {i}") for i in range(FEWEST)]


def test_each_message_is_kept_once_with_its_fullest_label():
    rows = [
        Labelled("转三百给我", "flagged", "a"),
        Labelled("转 三百 给我", "pay_to_stop", "b"),
        Labelled("转五百给我", "flagged", "c"),
    ]
    assert deduplicate([*rows, *FILLER]) == [rows[1], *FILLER]  # sums of one size are one clean text


def test_one_message_with_two_labels():
    rows = [Labelled("转三百给我", "pay_to_stop", "a"), Labelled("转五百给我", "ordinary", "b")]
    with pytest.raises(
        InputError, match=r"^1 message\(s\) have two labels; .*\nb: ordinary, but a, the same message, is pay_to_stop$"
    ):
        deduplicate([*rows, *FILLER])


@pytest.mark.parametrize(
    ("one", "other"), [("flagged", "not_flagged"), ("flagged", "ordinary"), ("debt_threat", "pay_to_stop")]
)
def test_labels_that_contradict(one, other):
    with pytest.raises(InputError, match="have two labels"):
        deduplicate([Labelled("甲", one, "a"), Labelled("甲", other, "b"), *FILLER])


def test_too_few():
    rows = [Labelled("甲乙", "flagged", "a"), *FILLER[:4]]
    with pytest.raises(InputError, match=r"^5 different message\(s\); wanted at least 20, .*: label more"):
        deduplicate(rows)


def test_one_label_alone():
    with pytest.raises(InputError, match=r"^all 20 messages have the label ordinary; add messages of another label"):
        deduplicate(FILLER)


def test_what_makes_risk():
    assert [is_flagged(label) for label in ("flagged", "debt_threat", "pay_to_stop")] == [True] * 3
    assert [is_flagged(label) for label in ("not_flagged", "ordinary", "other_threat")] == [False] * 3
