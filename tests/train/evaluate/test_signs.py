from dataclasses import replace

import pytest
from tests.json_lines import write

from jingyin.model.bundle import read_bundle
from jingyin.model.errors import BundleError
from jingyin.model.signs import SIGN_IDS
from jingyin.train.evaluate import measures
from jingyin.train.evaluate.measures import signs
from jingyin.train.evaluate.samples import read_messages
from jingyin.train.evaluate.systems import served

ANNOTATED = [
    # What the toy gives: exposure for 曝光 and 全村, flooding for 轰炸, demand_money for 赎金, false_police for 坐牢.
    *[("明天曝光", "debt_threat", "exposure")] * 2,
    ("轰炸全村", "pay_to_stop", "exposure,flooding"),
    ("轰炸到你付赎金", "pay_to_stop", "demand_money,flooding"),
    ("赎金", "pay_to_stop", "flooding"),
    ("明天去公园", "debt_threat", "exposure,flooding"),  # a threat that it can't see
    ("坐牢", "ordinary", "-"),
    ("账单", "lawful_collection", "-"),
    ("小心", "other_threat", "violence"),  # a sign that it does not have
    ("看书曝光", "debt_threat", "?"),
    ("看书轰炸", "debt_threat", "exposure,!visit,?"),
]


@pytest.fixture
def messages(tmp_path):
    rows = [{"text": text, "label": label, "signs": signs} for text, label, signs in ANNOTATED]
    return read_messages([write(tmp_path / "rows.jsonl", rows)])


@pytest.fixture
def judged(signed, messages):
    return served(signed).judge(messages.texts)


def test_golden_figures(signed, judged, messages, monkeypatch):
    monkeypatch.setattr(measures, "FEWEST", 3)
    found, note = signs(signed.bundle, judged, messages)
    assert note == ""
    assert list(found) == ["mean", "exposure", "flooding", "demand_money", "false_police"]
    mean = found.pop("mean")
    assert mean == {
        "messages": 9,
        "frequent signs": 2,
        "F1": pytest.approx((6 / 7 + 4 / 6) / 2),
    }  # the last two were not read by people
    counts = {
        sign: (row["messages"], row["precision"].rows, row["precision"].count, row["recall"].count)
        for sign, row in found.items()
    }
    assert counts == {
        "exposure": (4, 3, 3, 3), "flooding": (4, 2, 2, 2), "demand_money": (1, 2, 1, 1), "false_police": (0, 1, 0, 0),
    }  # fmt: skip
    assert found["exposure"]["F1"] == pytest.approx(6 / 7)
    missed = {sign: (row["missed threats"].count, row["missed threats"].rows) for sign, row in found.items()}
    assert missed == {"exposure": (1, 4), "flooding": (1, 4), "demand_money": (0, 1), "false_police": (0, 0)}


def test_no_frequent_sign_has_no_mean(signed, judged, messages):
    found, _ = signs(signed.bundle, judged, messages)
    assert found["mean"] == {"messages": 9}


def test_messages_that_pass_are_judged_too_and_thresholds_are_the_manifests(signed, judged, messages):
    manifest = signed.bundle.manifest
    strict = {sign: scale.model_copy(update={"threshold": 0.999}) for sign, scale in manifest.signs.items()}
    bundle = replace(signed.bundle, manifest=manifest.model_copy(update={"signs": strict}))
    found, _ = signs(bundle, judged, messages)
    assert {row["precision"].rows for name, row in found.items() if name in SIGN_IDS} == {0}


def test_why_signs_are_left_out(signed, bundle, judged, messages):
    without, note = signs(read_bundle(bundle), judged, messages)
    assert without == {}
    assert note.endswith("the bundle has none, so its verdicts give no reasons")
    unread = replace(messages, signs=["?", "visit,?"] + ["?"] * (len(messages) - 2))
    assert signs(signed.bundle, judged, unread) == (
        {}, "signs are left out: no row of the data names those that people read in it, in a column `signs`"
    )  # fmt: skip
    manifest = signed.bundle.manifest
    odd = {**manifest.signs, "of_tomorrow": manifest.signs["exposure"]}
    later = replace(signed.bundle, manifest=manifest.model_copy(update={"signs": odd}))
    assert "the bundle has of_tomorrow, which data can't" in signs(later, judged, messages)[1]


def test_a_manifest_that_names_signs_which_no_network_has(signed, bundle, judged, messages):
    plain = read_bundle(bundle)
    broken = replace(plain, manifest=plain.manifest.model_copy(update={"signs": signed.bundle.manifest.signs}))
    with pytest.raises(BundleError, match=rf"bundle {plain.manifest.id} names signs, and no network of it has any"):
        signs(broken, judged, messages)


def test_the_signs_of_a_trained_bundle_are_those_that_data_is_annotated_with(scorer):
    assert set(scorer.bundle.manifest.signs) <= set(SIGN_IDS)
