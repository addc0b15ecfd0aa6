import hashlib
import json
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jingyin.cli import main
from jingyin.model.errors import ConfigError, InputError
from jingyin.train.evaluate.systems import Latency
from jingyin.train.promote import Check, Decision, default_config, load_config, promote

pytestmark = pytest.mark.slow

FILLER = "今明后天早上午晚我你他们去吃饭看书电影公园学校买菜回家一起走吧好的"

CONDITIONS = {
    "traffic": {"review": 0.02, "block": 0.0}, "plain": {"flagged": 0.0, "passed": 0.9}, "nonsense": 50,
    "family_slack": {"review": 0.05, "block": 0.0}, "latency_ratio": 3.0, "size_ratio": 1.1,
}  # fmt: skip
"""The toy bundles know four words of a threat, so of plain ones nearly none."""


def write_lines(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_config(path, data, **changes):
    path.write_text(yaml.safe_dump({"data": [str(data)], **CONDITIONS, **changes}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def judged_on(data, tmp_path_factory):
    """The toy rows, of which the first hundred are real traffic."""
    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    rows = [{**row, "source": "nus" if i < 100 else "authored"} for i, row in enumerate(rows)]
    return write_lines(tmp_path_factory.mktemp("promote") / "corpus" / "test.jsonl", rows)


@pytest.fixture
def config(judged_on, tmp_path):
    return write_config(tmp_path / "promote.yaml", judged_on)


def failed(decision):
    return {check.name: check.reason for check in decision.checks if not check.passed}


def test_an_equal_bundle_passes_and_the_decision_is_written(bundle, make_bundle, config, tmp_path):
    decision = promote(make_bundle(padding=1), bundle, config, tmp_path / "decision.json")
    assert failed(decision) == {}
    assert decision.promote
    assert decision.candidate != decision.incumbent
    written = json.loads((tmp_path / "decision.json").read_text("utf-8"))
    assert written["promote"] is True
    reasons = {check["name"]: check["reason"] for check in written["checks"]}
    assert reasons["review: all benign"] == "of 320 benign messages 0 (bound 0.93%) against 0 (bound 0.93%)"
    assert reasons["real traffic: review"] == "0 of 100 real messages (bound 2.951%), wanted at most 2.000%"
    assert reasons["nonsense"] == "0 of 50 lines flagged, wanted none"
    assert reasons["plain innocents: passed"].endswith(" of 250, wanted at least 90.0%")


def test_a_bundle_that_misses_a_word_is_refused_for_recall_evasion_and_pairs(bundle, make_bundle, config, tmp_path):
    decision = promote(make_bundle(unknown=("曝光", "全村")), bundle, config, tmp_path / "decision.json")
    assert not decision.promote
    reasons = failed(decision)
    assert reasons.keys() == {
        "recall: debt_threat", "recall at 1.0%", "recall at 3.0%", "evasion, trained: recall",
        "evasion, held-out: recall", "minimal pairs", "minimal pairs, labels",
    }  # fmt: skip
    assert reasons["recall: debt_threat"].startswith("28 of 60 against 60, -53.3% [")


def test_a_bundle_that_takes_a_lawful_word_for_a_threat_is_refused_for_its_family(
    bundle, make_bundle, config, tmp_path
):
    decision = promote(make_bundle(alarms={"账单": "debt_threat"}), bundle, config, tmp_path / "decision.json")
    reasons = failed(decision)
    assert {f"{action}: lawful_collection_{i}" for action in ("review", "block") for i in range(3)} <= reasons.keys()
    assert "review: all benign" in reasons
    assert "review: ordinary_0" not in reasons
    assert "evasion, trained: false positives" in reasons
    assert "recall: debt_threat" not in reasons


def test_a_larger_bundle_is_refused_for_its_size(bundle, make_bundle, config, tmp_path):
    decision = promote(make_bundle(padding=10_000_000), bundle, config, tmp_path / "decision.json")
    assert failed(decision).keys() == {"size"}


def test_a_slower_bundle_is_refused_for_its_latency(bundle, config, tmp_path, monkeypatch):
    times = [Latency(1.0, 2.0, 3.0), Latency(1.0, 0.5, 3.0)]
    monkeypatch.setattr("jingyin.train.promote.latencies", lambda ways, texts: times)
    decision = promote(bundle, bundle, config, tmp_path / "decision.json")
    assert failed(decision) == {
        "latency": "mean 2.00 ms against 0.50 ms",
        "latency of the networks alone": "mean 2.00 ms against 0.50 ms",
    }


def test_bundles_of_different_labels_are_refused_by_name(bundle, make_bundle, config, tmp_path):
    labels = ("ordinary", "lawful_collection", "debt_threat", "pay_to_stop", "menace")
    with pytest.raises(
        InputError, match=r"candidate .* has labels .*menace, incumbent .* has ordinary, .*other_threat;"
    ):
        promote(make_bundle(labels=labels), bundle, config, tmp_path / "decision.json")
    assert not (tmp_path / "decision.json").exists()


def test_a_configuration_with_errors_lists_them_all(bundle, tmp_path):
    path = tmp_path / "promote.yaml"
    path.write_text("data: []\nfamily_slack: {review: 2, block: 0}\nlatency_ratio: 1\nspeed: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has 7 error\(s\)") as caught:
        promote(bundle, bundle, path, tmp_path / "decision.json")
    for key in ("data", "family_slack.review", "size_ratio", "speed", "traffic", "plain", "nonsense"):
        assert key in str(caught.value)


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_the_command_exits_by_the_decision_and_names_failures_first(
    passed, code, bundle, tmp_path, monkeypatch, capsys
):
    checks = [Check("size", True, "1.0 MB against 1.0 MB"), Check("recall", passed, "1 of 2 against 2")]
    monkeypatch.setattr("jingyin.train.promote.promote", lambda *_: Decision(passed, "new", "old", {}, checks))
    monkeypatch.setattr(sys, "argv", ["jingyin", "promote", str(bundle), "--incumbent", str(bundle)])
    with pytest.raises(SystemExit, match=f"^{code}$"):
        main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("passed size: 1.0 MB against 1.0 MB" if passed else "FAILED recall: 1 of 2 against 2")
    assert lines[-1].startswith("promote;" if passed else "keep the incumbent;")


def test_the_configuration_and_the_incumbent_are_the_package_s_by_default(bundle, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config(default_config())
    assert config.data == [Path("runs/corpus-default/test.parquet")]
    assert (config.family_slack.block, config.nonsense, config.plain.flagged, config.plain.passed) == (
        0,
        12_000,
        0.98,
        0.995,
    )
    monkeypatch.setattr("jingyin.train.promote.default_path", lambda: bundle)
    with pytest.raises(InputError, match=r"test\.parquet can't be read \(FileNotFoundError\)"):
        promote(bundle, None, None, tmp_path / "decision.json")


# ---- what a bundle must hold by itself


def test_real_traffic_above_the_shipping_rule_is_refused_with_counts(bundle, make_bundle, judged_on, tmp_path):
    rows = [json.loads(line) for line in judged_on.read_text("utf-8").splitlines()]
    for row in rows[:3]:
        row["text"] += "曝光"
    path = write_config(tmp_path / "promote.yaml", write_lines(tmp_path / "rows" / "test.jsonl", rows))
    reasons = failed(promote(make_bundle(padding=2), bundle, path, tmp_path / "decision.json"))
    assert reasons == {
        "real traffic: review": "3 of 100 real messages (bound 7.571%), wanted at most 2.000%",
        "real traffic: block": "3 of 100 real messages (bound 7.571%), wanted at most 0.000%",
    }


def test_a_rate_that_the_real_messages_can_t_show_is_refused(bundle, judged_on, tmp_path):
    rates = {"review": 0.001, "block": 0.0}
    path = write_config(tmp_path / "promote.yaml", judged_on, traffic=rates)
    reason = failed(promote(bundle, bundle, path, tmp_path / "decision.json"))["real traffic: review"]
    assert reason.endswith("wanted at most 0.100%: so few messages can't show that rate, add real traffic to the data")


def test_a_bundle_that_does_not_see_plain_threats_is_refused(bundle, judged_on, tmp_path):
    path = write_config(tmp_path / "promote.yaml", judged_on, plain={"flagged": 0.98, "passed": 0.9})
    reason = failed(promote(bundle, bundle, path, tmp_path / "decision.json"))["plain threats: flagged"]
    assert re.fullmatch(r"\d+ of 250, wanted at least 98\.0%", reason)


def test_a_bundle_that_flags_nonsense_is_refused(make_bundle, config, tmp_path):
    jumpy = make_bundle(alarms=dict.fromkeys(FILLER, "debt_threat"))
    reason = failed(promote(jumpy, jumpy, config, tmp_path / "decision.json"))["nonsense"]
    assert re.fullmatch(r"[1-9]\d* of 50 lines flagged, wanted none", reason)


# ---- what it may be judged on


def test_rows_that_set_the_incumbents_thresholds_are_left_out(make_bundle, judged_on, tmp_path):
    rows = [json.loads(line) for line in judged_on.read_text("utf-8").splitlines()]
    (tmp_path / "old").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[100:110]), tmp_path / "old" / "calibration.parquet")
    known = hashlib.sha256((tmp_path / "old" / "calibration.parquet").read_bytes()).hexdigest()
    path = write_config(tmp_path / "promote.yaml", write_lines(tmp_path / "new" / "test.jsonl", rows))
    old = make_bundle(
        provenance={"data_sha256": {"calibration": "other"}, "calibrated": {"data_sha256": {"calibration": known}}}
    )
    decision = promote(old, old, path, tmp_path / "decision.json")
    reasons = {check.name: check.reason for check in decision.checks}
    assert reasons["unused rows"] == (
        "10 of 470 rows left out: bundles were made with them; train, validation, calibration of "
        f"{decision.candidate}: not near the data, so their rows can't be told"
    )
    assert reasons["review: all benign"].startswith("of 310 benign messages 0 ")


def test_a_calibration_split_that_is_not_there_is_said(bundle, config, tmp_path):
    decision = promote(bundle, bundle, config, tmp_path / "decision.json")
    check = decision.checks[0]
    assert check.reason == (
        "0 of 470 rows left out: bundles were made with them; "
        f"train, validation, calibration of {decision.candidate}: not near the data, so their rows can't be told"
    )


def test_data_that_a_bundle_was_made_with_is_refused(bundle, make_bundle, judged_on, config, tmp_path):
    split = hashlib.sha256(judged_on.read_bytes()).hexdigest()
    made = make_bundle(provenance={"data_sha256": {"calibration": split, "test": "x"}})
    for sides in ((made, bundle), (bundle, made)):
        with pytest.raises(
            InputError, match=r"test\.jsonl is the calibration split that bundle \w+ was made with; name the"
        ):
            promote(*sides, config, tmp_path / "decision.json")
