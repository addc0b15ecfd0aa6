from random import Random

import pytest

from jingyin.model.labels import FLAGGED
from jingyin.train.corpus.rows import default_folders, load
from jingyin.train.corpus.slots import fill_slots
from jingyin.train.corpus.store import Row
from jingyin.train.corpus.surface import FEATURES, SHORTCUT, shares, shortcuts, surface_rows


def row(text: str, label: str, source: str = "authored") -> Row:
    return Row(text, label, "f", "plain", source, "g", text, "", 1.0)


def test_shares_are_of_texts():
    found = shares(["给钱！", "给300元", "「好」", "早"])
    assert (found["！"], found["sum"], found["quotation marks"], found["under 10 characters"]) == (0.25, 0.25, 0.25, 1)
    assert set(shares([]).values()) == {0.0}


def test_a_shortcut_differs_twentyfold():
    same = dict.fromkeys(FEATURES, 0.1)
    assert shortcuts(same, same) == []
    assert shortcuts(same, same | {"！": 0.1 / SHORTCUT}) == ["！"]
    assert shortcuts(same | {"！": 0.0}, same | {"！": 0.0009}) == []  # too rare to be learnt


def test_the_table_has_a_column_for_each_kind_of_text():
    rows = [
        row("给钱！", "pay_to_stop"), row("给钱", "pay_to_stop"), row("早", "ordinary"), row("早！", "ordinary"),
        row("好吃！", "ordinary", "waimai"), row("拿钱", "debt_threat", "quoted"),
    ]  # fmt: skip
    table = {name: columns for name, *columns in surface_rows(rows, frozenset(("waimai",)))}
    assert table["！"] == ["50.0%", "50.0%", "100.0%", "0.0%", ""]


@pytest.mark.exhaustive
def test_no_feature_of_the_surface_tells_authored_threats_from_innocents():
    rng = Random(1)
    records = [record for folder in default_folders() for record in load(folder)]
    threats = shares(fill_slots(each.text, rng) for each in records if each.label in FLAGGED)
    innocents = shares(fill_slots(each.text, rng) for each in records if each.label not in FLAGGED)
    assert shortcuts(threats, innocents) == []
