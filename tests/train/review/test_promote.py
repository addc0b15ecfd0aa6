import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tests.command import run_command
from tests.json_lines import read, write

from jingyin.model.errors import ConfigError, InputError
from jingyin.train import promote as promoting
from jingyin.train.evaluate import evaluate as evaluating
from jingyin.train.evaluate.samples import Seen, read_messages
from jingyin.train.evaluate.systems import System
from jingyin.train.promote import (
    ActionRates,
    Check,
    PairedActions,
    Promotion,
    _at_most,
    comparisons,
    default_config,
    latency_check,
    load_config,
    not_worse,
    promote,
    requirements,
)

CONFIG = load_config(default_config())


def failed(checks):
    return {check.name: check.reason for check in checks if not check.passed}


# ---- verdict tables: chance and harm


def simulated(seed, threats=900, innocents=6000, noise=0.4):
    """Return verdicts of two bundles that differ by their seed, on cases of ten rows in families of six cases.

    Each row has a risk that both share and one of the bundle's own; a twentieth of the innocents are hard. As between
    two bundles of one recipe, some 7% of the threats get another action.
    """
    rng = np.random.default_rng(seed)
    rows = threats + innocents
    kinds = np.arange(rows) < threats
    cases = np.arange(rows) // 10
    hard = np.where(rng.random(rows) < 0.05, -2.5, -7.0)
    shared = np.where(kinds, 2.5, hard) + rng.normal(0, 1.2, cases.max() + 1)[cases] + rng.normal(0, 1.5, rows)
    risks = [shared + rng.normal(0, noise, rows) for _ in range(2)]
    new, old = ((risk > 0.9).astype(np.int64) + (risk > 2.2) for risk in risks)
    return PairedActions(new, old, kinds, cases, np.array([f"f{case // 6}" for case in cases]))


def found_in(table):
    """Return tables as promote makes them: all rows, an unseen part, and the same rows changed in some ways."""
    part = table.take(table.groups % 4 == 0)
    return {"all": table, "unseen cases": part, "company": part, "long messages": table.take(table.groups % 4 == 1)}


@pytest.mark.exhaustive
def test_a_bundle_equal_up_to_its_seed_passes_in_nine_of_ten_runs():
    tables = [simulated(seed) for seed in range(60)]
    apart = np.mean([(table.new != table.old)[table.threats].mean() for table in tables])
    assert 0.05 < apart < 0.2
    passed = [not failed(comparisons(found_in(table), CONFIG)) for table in tables]
    assert np.mean(passed) >= 0.9


def test_a_bundle_that_never_blocks_fails():
    table = simulated(1)
    reasons = failed(comparisons(found_in(table._replace(new=np.minimum(table.new, 1))), CONFIG))
    assert {"all: threats, block", "unseen cases: threats, block"} <= reasons.keys()
    assert "all: threats, review" not in reasons


@pytest.mark.parametrize("family", ["f2", "f9"])
def test_a_bundle_with_one_family_spoilt_fails(family):
    for seed in range(10):
        table = simulated(seed)
        lost = table._replace(new=np.where(table.families == family, 0, table.new))
        reasons = failed(comparisons({"all": lost}, CONFIG))
        assert f"threats of {family}" in reasons


def test_a_bundle_that_flags_one_family_of_innocents_fails():
    table = simulated(3)
    hit = (table.families == "f40") & (np.arange(len(table.new)) % 3 == 0)
    reasons = failed(comparisons({"all": table._replace(new=np.where(hit, 1, table.new))}, CONFIG))
    assert "innocents of f40" in reasons
    assert not any(name.startswith("threats of") for name in reasons)


@pytest.mark.parametrize("part", ["company", "long messages", "unseen cases"])
def test_threats_lost_in_one_part_alone_fail(part):
    tables = found_in(simulated(4))
    table = tables[part]
    lost = table.threats & (np.arange(len(table.new)) % 4 == 0)
    tables[part] = table._replace(new=np.where(lost, 0, table.new))
    assert {f"{part}: threats, review", f"{part}: threats, block"} <= failed(comparisons(tables, CONFIG)).keys()


def test_blocked_innocents_have_one_slack_for_all_families():
    table = simulated(5)
    innocents = np.flatnonzero(~table.threats)
    few, many = (table.old.copy() for _ in range(2))
    few[innocents[:: len(innocents) // 4]] = 2
    many[innocents[::60]] = 2
    assert "all: innocents, block" not in failed(comparisons({"all": table._replace(new=few)}, CONFIG))
    assert "all: innocents, block" in failed(comparisons({"all": table._replace(new=many)}, CONFIG))


@pytest.mark.parametrize(
    ("lost", "rows", "passed"),
    [
        (0, 100, True),
        (3, 100, True),  # chance
        (15, 100, False),  # harm
        (15, 3000, True),  # real, and within the margin
        (150, 3000, False),
    ],
)
def test_a_loss_fails_where_it_is_beyond_chance_and_may_be_beyond_the_margin(lost, rows, passed):
    old = np.ones(rows, np.bool_)
    check = not_worse("x", np.arange(rows) >= lost, old, np.arange(rows), 0.02)
    assert check.passed is passed
    assert check.reason.startswith(f"{rows - lost} of {rows} right against {rows}, ")


def test_what_many_checks_share_takes_more_to_fail():
    new, old = np.arange(40) >= 9, np.ones(40, np.bool_)
    assert not not_worse("x", new, old, np.arange(40), 0.0).passed
    assert not_worse("x", new, old, np.arange(40), 0.0, tests=500).passed


def test_time_is_compared_message_by_message():
    old = np.random.default_rng(0).lognormal(0, 1, 300)
    assert latency_check("latency", np.array([old * 1.2, old]), 1.25).passed
    slower = latency_check("latency", np.array([old * 1.3, old]), 1.25)
    assert not slower.passed
    assert slower.reason.endswith(", 1.30 times (at least 1.30), allowed 1.25")
    one = np.array([np.where(np.arange(300) == 7, 200.0, old), old])  # a single slow message is no slow bundle
    assert latency_check("latency", one, 1.25).passed


# ---- what a bundle must hold by itself


def side(word="曝光"):
    """Return a system that flags what says a word, and blocks what says it twice."""

    def score(texts):
        return np.array([min(1.0, 0.5 * text.count(word)) for text in texts]), None

    return System("toy", score, 0.5, 0.9)


def traffic(tmp_path, sources, flagged):
    """Return messages of which `sources` (name -> rows) are traffic; the first `flagged` of each source say 曝光."""
    rows = [{"text": f"{label}曝光曝光", "label": label} for label in ("debt_threat", "pay_to_stop", "other_threat")]
    rows += [{"text": f"账单{i}", "label": "lawful_collection", "source": "authored"} for i in range(50)]
    for source, count in sources.items():
        rows += [
            {"text": f"{source}{i}" + "曝光" * (i < flagged), "label": "ordinary", "source": source}
            for i in range(count)
        ]
    return read_messages([write(tmp_path / "rows.jsonl", rows)])


@pytest.fixture
def few_lines(monkeypatch):
    monkeypatch.setattr(evaluating, "NONSENSE", 100)
    monkeypatch.setattr(evaluating, "EVERYDAY", 100)


def required(messages, seen=None, old=None):
    sides = [each.judge(messages.texts) for each in (side(), old or side("塌方"))]
    return {check.name: check for check in requirements(sides, messages, seen, CONFIG)}


@pytest.mark.usefixtures("few_lines")
def test_the_shipping_rule_goes_by_sources_that_training_has_not_seen(tmp_path):
    messages = traffic(tmp_path, {"nus": 3000, "weibo": 30_000}, 4)
    known = required(messages, Seen(frozenset(), frozenset(), frozenset({"nus"})))
    assert known["traffic of sources kept out: review"].reason == "4 of 30000 messages against 0, wanted 1 in 2,000"
    assert known["traffic of sources kept out: review"].passed
    assert known["traffic of sources kept out: block"].passed
    assert known["traffic of nus: review"].reason == "4 of 3000 messages against 0, wanted 1 in 1,000"
    assert required(messages)["traffic: review"].reason == "8 of 33000 messages against 0, wanted 1 in 2,000"


@pytest.mark.usefixtures("few_lines")
def test_the_worst_source_is_refused_though_the_pool_holds(tmp_path):
    found = required(traffic(tmp_path, {"nus": 3000, "weibo": 30_000}, 13))
    assert found["traffic: review"].passed
    assert found["traffic of weibo: review"].passed
    assert not found["traffic of nus: review"].passed


@pytest.mark.usefixtures("few_lines")
def test_a_rate_that_the_incumbent_misses_as_well_must_not_get_worse(tmp_path):
    messages = traffic(tmp_path, {"nus": 3000}, 13)
    assert not required(messages)["traffic of nus: review"].passed
    assert required(messages, old=side())["traffic of nus: review"].passed


@pytest.mark.usefixtures("few_lines")
def test_a_rate_that_the_messages_can_t_show_is_refused(tmp_path):
    found = required(traffic(tmp_path, {"nus": 3000}, 0))
    assert found["traffic: review"].passed
    assert not found["traffic: block"].passed
    assert found["traffic: block"].reason.endswith("so few messages can't show that rate, add real traffic to the data")


@pytest.mark.parametrize("rows", [1, 49, 98, 3000])
def test_one_in_n_messages_can_be_shown_by_n(rows):
    actions = [np.zeros(rows, np.int64)] * 2
    checks = _at_most("traffic", actions, ActionRates(review=0.5 / rows, block=0.999 / rows), large_enough=True)
    assert not any(check.passed for check in checks)
    if rows > 1:
        limits = ActionRates(review=1 / rows, block=1 / rows)
        assert all(check.passed for check in _at_most("traffic", actions, limits, large_enough=True))


@pytest.mark.parametrize(("rows", "blocked", "before", "passed"), [
    (3000, 0, 0, True), (1, 0, 0, True), (0, 0, 0, False), (3000, 8, 0, False), (3000, 8, 8, True),
])  # fmt: skip
def test_a_limit_of_none_is_kept_where_none_is_blocked(rows, blocked, before, passed):
    actions = [2 * (np.arange(rows) < count) for count in (blocked, before)]
    _, check = _at_most("traffic", actions, ActionRates(review=0.5, block=0), large_enough=True)
    assert check.passed is passed
    assert check.reason.startswith(f"{blocked} of {rows} messages against {before}, wanted none")


@pytest.mark.usefixtures("few_lines")
def test_plain_threats_reminders_and_nonsense(tmp_path):
    messages = traffic(tmp_path, {"nus": 3000}, 0)
    found = required(messages)
    plain = found["plain threats: review"]  # nearly none of them says 曝光, and none 塌方
    assert plain.passed
    assert plain.reason.endswith("of 250 messages against 250, wanted at most 2.0% missed")
    knows = System("knows", lambda texts: (np.ones(len(texts)), None), 0.5, 0.9)
    assert not required(messages, old=knows)["plain threats: review"].passed
    assert found["lawful reminders: block"].reason == "0 of 50 messages against 0, wanted 1 in 1,000"
    assert found["nonsense: review"].passed
    assert {"plain innocents: review", "plain innocents: block"} <= found.keys()


# ---- the whole


@pytest.fixture(scope="module")
def judged_on(data, tmp_path_factory):
    """The toy rows, of which the first hundred are real traffic."""
    rows = read(data)
    rows = [{**row, "source": "nus" if i < 100 else "authored"} for i, row in enumerate(rows)]
    return write(tmp_path_factory.mktemp("promote") / "corpus" / "test.jsonl", rows)


@pytest.mark.exhaustive
def test_a_bundle_that_misses_a_word_is_refused(bundle, make_bundle, judged_on, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluating, "NONSENSE", 50)
    monkeypatch.setattr(evaluating, "EVERYDAY", 50)
    monkeypatch.setattr(promoting, "CHANGED", 12)
    monkeypatch.setattr("jingyin.train.evaluate.systems.TIMED", 10)
    rows = read(judged_on)
    (tmp_path / "old").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[100:110]), tmp_path / "old" / "calibration.parquet")
    known = hashlib.sha256((tmp_path / "old" / "calibration.parquet").read_bytes()).hexdigest()
    config = yaml.safe_load(default_config().read_text(encoding="utf-8"))
    config |= {"data": [str(write(tmp_path / "new" / "test.jsonl", rows))], "plain_threats": 0.0}
    config |= {"latency_ratio": 50, "traffic": {"review": 0.02, "block": 0.02}}
    (tmp_path / "promote.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    made = {"data_sha256": {"calibration": "other"}, "calibrated": {"data_sha256": {"calibration": known}}}
    worse = make_bundle(unknown=("曝光", "全村"), provenance=made)

    found = promote(worse, bundle, tmp_path / "promote.yaml", tmp_path / "new folder" / "decision.json")
    assert not found.promote
    reasons = failed(found.checks)
    assert {"all: threats, review", "debt_threat: threats, block", "minimal pairs", "minimal pairs, labels"} <= (
        reasons.keys()
    )
    assert reasons["debt_threat: threats, review"].startswith("28 of 60 right against 60, -53.3% [")
    assert not any(": innocents" in name or "pay_to_stop" in name for name in reasons)
    assert found.checks[0].reason == (
        f"10 of 470 rows left out: bundles were made with them; train, validation, calibration of {found.candidate}: "
        "not near the data, so their rows can't be recognised; "
        f"train, validation, calibration of {found.incumbent}: not near the data, so their rows can't be recognised"
    )
    written = json.loads((tmp_path / "new folder" / "decision.json").read_text("utf-8"))
    assert [check["name"] for check in written["checks"]] == [check.name for check in found.checks]


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_the_command_exits_by_the_decision(passed, code, bundle, tmp_path, monkeypatch, capsys):
    checks = [Check("size", True, "1.0 MB against 1.0 MB"), Check("recall", passed, "1 of 2 against 2")]
    monkeypatch.setattr("jingyin.train.promote.promote", lambda *_: Promotion(passed, "new", "old", {}, checks))
    assert run_command("promote", bundle, "--incumbent", bundle) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("passed size: 1.0 MB against 1.0 MB" if passed else "FAILED recall: 1 of 2 against 2")
    assert lines[-1].startswith("promote;" if passed else "keep the incumbent;")


def test_the_configuration_and_the_incumbent_are_the_package_s_by_default(bundle, tmp_path, monkeypatch):
    assert CONFIG.data == [Path("runs/corpus-default/test.parquet")]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr("jingyin.train.promote.default_path", lambda: bundle)
    with pytest.raises(InputError, match=r"test\.parquet can't be read \(FileNotFoundError\)"):
        promote(bundle, None, None, tmp_path / "decision.json")


# ---- what is refused


def test_bundles_of_different_labels_are_refused_by_name(bundle, make_bundle, tmp_path):
    other = make_bundle(labels=("ordinary", "lawful_collection", "debt_threat", "pay_to_stop", "menace"))
    with pytest.raises(InputError, match=r"has labels .*menace; wanted ordinary, .*other_threat: bundles of different"):
        promote(bundle, other, None, tmp_path / "decision.json")


def test_a_folder_is_no_place_for_the_decision(bundle, tmp_path):
    with pytest.raises(ConfigError, match=r"is a folder; name a file for the decision"):
        promote(bundle, bundle, None, tmp_path)


def test_a_configuration_with_errors_lists_them_all(tmp_path):
    path = tmp_path / "promote.yaml"
    path.write_text("data: []\nthreats: {review: 2, block: 0}\nlatency_ratio: 1\nspeed: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has 14 error\(s\)") as caught:
        load_config(path)
    for key in ("data", "threats.review", "size_ratio", "speed", "traffic", "worst_source", "plain", "nonsense"):
        assert key in str(caught.value)
