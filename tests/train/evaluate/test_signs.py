import json
from dataclasses import replace

import pytest

from jingyin.model.bundle import read_bundle
from jingyin.model.errors import BundleError, InputError
from jingyin.model.signs import SIGN_IDS
from jingyin.serve.scorer import Scorer
from jingyin.train.evaluate import judge as signs
from jingyin.train.evaluate.evaluate import evaluate
from jingyin.train.evaluate.judge import judge, sign_results, why_left_out
from jingyin.train.evaluate.results import MacroF1, SignPair
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


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def messages(tmp_path):
    rows = [{"text": text, "label": label, "signs": signs} for text, label, signs in ANNOTATED]
    return read_messages([write(tmp_path / "rows.jsonl", rows)])


def judged(scorer, messages):
    return judge(served(scorer), messages)


def test_golden_figures(signed, messages, monkeypatch):
    monkeypatch.setattr(signs, "FEWEST", 3)
    found = sign_results(signed.bundle, judged(signed, messages), messages)
    assert found.rows == 9  # the last two were not read by people
    of = {each.sign: each for each in found.signs}
    assert [each.sign for each in found.signs] == ["exposure", "flooding", "demand_money", "false_police"]
    assert {sign: (each.shown, each.given, each.right) for sign, each in of.items()} == {
        "exposure": (4, 3, 3),
        "flooding": (4, 2, 2),
        "demand_money": (1, 2, 1),
        "false_police": (0, 1, 0),
    }
    exposure = of["exposure"]
    assert (exposure.precision, exposure.recall, exposure.f1) == (1.0, 0.75, pytest.approx(6 / 7))
    assert (of["demand_money"].precision, of["demand_money"].recall) == (0.5, 1.0)
    assert (of["false_police"].precision, of["false_police"].recall, of["false_police"].f1) == (0, 0, 0)
    assert (found.frequent.signs, found.commonest.signs) == (2, 4)
    assert found.frequent.value == pytest.approx((6 / 7 + 4 / 6) / 2)
    assert found.commonest.value == pytest.approx((6 / 7 + 4 / 6 + 2 / 3 + 0) / 4)


def test_pairs_come_the_most_frequent_first(signed, messages):
    found = sign_results(signed.bundle, judged(signed, messages), messages)
    assert found.pairs == [SignPair(("exposure", "flooding"), 2, 1), SignPair(("flooding", "demand_money"), 1, 1)]


def test_missed_threats_are_counted_by_the_signs_that_they_show(signed, messages):
    found = sign_results(signed.bundle, judged(signed, messages), messages)
    missed = {each.sign: (each.missed.count, each.missed.rows) for each in found.signs}
    assert missed == {"exposure": (1, 4), "flooding": (1, 4), "demand_money": (0, 1), "false_police": (0, 0)}


def test_no_frequent_sign_has_no_mean(signed, messages):
    found = sign_results(signed.bundle, judged(signed, messages), messages)
    assert found.frequent == MacroF1(0, None)


def test_messages_that_pass_are_judged_too_and_thresholds_are_the_manifests(signed, messages):
    manifest = signed.bundle.manifest
    strict = {sign: scale.model_copy(update={"threshold": 0.999}) for sign, scale in manifest.signs.items()}
    bundle = replace(signed.bundle, manifest=manifest.model_copy(update={"signs": strict}))
    found = sign_results(bundle, judged(signed, messages), messages)
    assert {each.given for each in found.signs} == {0}


def test_why_signs_are_left_out(signed, bundle, messages):
    assert why_left_out(signed.bundle, messages) == ""
    assert why_left_out(read_bundle(bundle), messages).endswith("the bundle has none, so its verdicts give no reasons")
    unread = replace(messages, signs=["?", "visit,?"] + ["?"] * (len(messages) - 2))
    assert why_left_out(signed.bundle, unread) == (
        "signs are left out: no row of the data names those that people read in it, in a column `signs`"
    )
    manifest = signed.bundle.manifest
    odd = {**manifest.signs, "of_tomorrow": manifest.signs["exposure"]}
    later = replace(signed.bundle, manifest=manifest.model_copy(update={"signs": odd}))
    assert "the bundle has of_tomorrow, which data can't" in why_left_out(later, messages)


def test_a_manifest_that_names_signs_which_no_network_has(signed, bundle, messages):
    plain = read_bundle(bundle)
    broken = replace(plain, manifest=plain.manifest.model_copy(update={"signs": signed.bundle.manifest.signs}))
    with pytest.raises(BundleError, match=rf"bundle {plain.manifest.id} names signs, and no network of it has any"):
        sign_results(broken, judged(signed, messages), messages)


# ---- what is read


def one_of_each(**changes):
    labels = ("ordinary", "lawful_collection", "debt_threat", "pay_to_stop", "other_threat")
    return [{"text": f"第{i}条", "label": label, **changes} for i, label in enumerate(labels)]


@pytest.mark.parametrize("given", [{}, {"signs": None}, {"signs": ""}, {"signs": "?"}])
def test_data_without_signs_stays_valid(given, tmp_path):
    assert read_messages([write(tmp_path / "rows.jsonl", one_of_each(**given))]).signs == ["?"] * 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["joke"], r"rows\.jsonl:1: 'signs' is a list; write ids of signs with commas between them$"),
        ("joke,jest,!fun", r"rows\.jsonl:1: unknown signs 'fun, jest'; known: demand_money, "),
        ("手机1380013" * 9, r"rows\.jsonl:1: unknown signs '.{40}'; known: "),
    ],
)
def test_signs_that_are_none_are_refused(given, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_messages([write(tmp_path / "rows.jsonl", one_of_each(signs=given))])


# ---- the whole


def evaluated(bundle, rows, tmp_path):
    out = tmp_path / "out"
    found = evaluate(bundle, [write(tmp_path / "test.jsonl", rows)], out, None, [])
    content = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    return found, content, (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_report_and_the_figures_show_signs(signed_bundle, data, tmp_path, capsys):
    from rich.console import Console

    from jingyin.train.evaluate.report import print_summary

    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    rows = [row | ({"signs": "exposure"} if "曝光" in row["text"] or "全村" in row["text"] else {}) for row in rows]
    found, content, page = evaluated(signed_bundle, rows, tmp_path)
    shown = sum("signs" in row for row in rows)
    assert 20 < shown < 50
    assert content["signs"]["rows"] == shown
    assert content["signs"]["signs"][0] == {
        "sign": "exposure", "shown": shown, "given": shown, "right": shown, "precision": 1.0, "recall": 1.0, "f1": 1.0,
        "missed": {"count": 0, "rows": shown, "value": 0.0, "low": 0.0, "high": pytest.approx(0.1, abs=0.08)},
    }  # fmt: skip
    assert "<h2>Signs</h2>" in page
    assert "tells others<br><small>exposure</small>" in page
    assert not any("signs are left out" in note for note in found.notes)
    print_summary(found, Console(width=200))
    assert f"signs on {shown} annotated messages: macro-F1 " in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_without_signs_the_section_is_left_out_and_a_line_says_why(bundle, data, tmp_path):
    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    found, content, page = evaluated(bundle, rows, tmp_path)
    assert found.signs is content["signs"] is None
    assert "<h2>Signs</h2>" not in page
    assert [note for note in found.notes if note.startswith("signs")] == [
        "signs are left out: the bundle has none, so its verdicts give no reasons"
    ]
    assert "signs are left out: the bundle has none" in page


def test_the_signs_of_a_trained_bundle_are_those_that_data_is_annotated_with(scorer: Scorer):
    assert set(scorer.bundle.manifest.signs) <= set(SIGN_IDS)
