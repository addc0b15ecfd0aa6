import json
import sys

import pytest
import yaml

from jingyin.cli import main
from jingyin.model.errors import ConfigError, InputError
from jingyin.train.evaluate.latency import Latency
from jingyin.train.review.promote import Check, promote

GATES = {"family_slack": {"review": 0.05, "block": 0.0}, "latency_ratio": 3.0, "size_ratio": 1.1}


@pytest.fixture
def config(data, tmp_path):
    path = tmp_path / "promote.yaml"
    path.write_text(yaml.safe_dump({"data": [str(data)], **GATES}), encoding="utf-8")
    return path


def failed(decision):
    return {check.name: check.reason for check in decision.checks if not check.passed}


def test_an_equal_bundle_passes_and_the_decision_is_written(bundle, make_bundle, config, tmp_path):
    decision = promote(make_bundle(padding=1), bundle, config, tmp_path / "decision.json")
    assert failed(decision) == {}
    assert decision.promote
    assert decision.candidate != decision.incumbent
    written = json.loads((tmp_path / "decision.json").read_text("utf-8"))
    assert written["promote"] is True
    assert written["checks"][0] == {
        "name": "review: all benign", "passed": True,
        "reason": "0 of 320 benign messages (bound 0.93%) against 0 (bound 0.93%)",
    }  # fmt: skip


def test_a_bundle_that_misses_a_word_is_refused_for_recall_evasion_and_pairs(bundle, make_bundle, config, tmp_path):
    decision = promote(make_bundle(unknown=("曝光", "全村")), bundle, config, tmp_path / "decision.json")
    assert not decision.promote
    reasons = failed(decision)
    assert reasons.keys() == {
        "recall: debt_threat", "recall at 1.0%", "recall at 3.0%", "evasion, trained: recall", "evasion, held-out: recall",
        "minimal pairs", "minimal pairs, labels",
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
    monkeypatch.setattr("jingyin.train.review.promote.latencies", lambda ways, texts: times)
    decision = promote(bundle, bundle, config, tmp_path / "decision.json")
    assert failed(decision) == {
        "latency": "mean 2.00 ms against 0.50 ms",
        "latency of the network alone": "mean 2.00 ms against 0.50 ms",
    }


def test_bundles_of_different_labels_are_refused_by_name(bundle, make_bundle, config, tmp_path):
    labels = ("ordinary", "lawful_collection", "debt_threat", "pay_to_stop", "menace")
    with pytest.raises(
        InputError, match=r"candidate .* has labels .*menace, incumbent .* has ordinary, .*other_threat;"
    ):
        promote(make_bundle(labels=labels), bundle, config, tmp_path / "decision.json")
    assert not (tmp_path / "decision.json").exists()


def test_a_configuration_with_faults_lists_them_all(bundle, tmp_path):
    path = tmp_path / "promote.yaml"
    path.write_text("data: []\nfamily_slack: {review: 2, block: 0}\nlatency_ratio: 1\nspeed: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has 4 fault\(s\)") as caught:
        promote(bundle, bundle, path, tmp_path / "decision.json")
    for key in ("data", "family_slack.review", "size_ratio", "speed"):
        assert key in str(caught.value)


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_the_command_exits_by_the_decision_and_names_failures_first(
    passed, code, bundle, tmp_path, monkeypatch, capsys
):
    from jingyin.train.review.promote import Decision

    checks = [Check("size", True, "1.0 MB against 1.0 MB"), Check("recall", passed, "1 of 2 against 2")]
    monkeypatch.setattr("jingyin.train.review.promote.promote", lambda *_: Decision(passed, "new", "old", {}, checks))
    monkeypatch.setattr(sys, "argv", ["jingyin", "promote", str(bundle), "--incumbent", str(bundle)])
    with pytest.raises(SystemExit, match=f"^{code}$"):
        main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("held   size: 1.0 MB against 1.0 MB" if passed else "FAILED recall: 1 of 2 against 2")
    assert lines[-1].startswith("promote;" if passed else "keep the incumbent;")


def test_the_configuration_in_the_repository_is_sound():
    from pathlib import Path

    from pydantic import TypeAdapter

    from jingyin.train.recipes import read_yaml
    from jingyin.train.review.promote import Config

    path = Path(__file__).parents[3] / "configs/promote.yaml"
    assert read_yaml(path, TypeAdapter(Config)).family_slack.block == 0
