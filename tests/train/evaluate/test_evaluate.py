import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.command import run_command
from tests.json_lines import read, write

from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.train.evaluate import evaluate as evaluating
from jingyin.train.evaluate.evaluate import behaviours, evaluate
from jingyin.train.evaluate.report import side_by_side, summary
from jingyin.train.evaluate.samples import read_messages
from jingyin.train.evaluate.systems import keywords, open_bundle, served

HOSTILE = "曝光<script>alert(1)</script>{{7*7}}&\ud800\x00"


def some_rows(data):
    """Return the toy rows, some of cases, writers and real traffic, with one hostile row and one fragment."""
    rows = read(data)
    for row in rows:
        row["source"] = "authored"
    of_label = {label: [row for row in rows if row["label"] == label] for label in ("ordinary", "debt_threat")}
    for row in of_label["ordinary"][:50]:
        row["source"] = "nus"
    for row in of_label["ordinary"][50:60] + of_label["debt_threat"][:20]:
        row["case"] = "B7"
    for row in of_label["debt_threat"][20:25]:
        row["case"] = "A1"
    for row in of_label["debt_threat"][15:40]:  # five of them of the unseen case
        row["writer"] = "w2"
    of_label["debt_threat"][0]["text"] = "明天去公园"  # a threat that the toy can't see
    of_label["ordinary"][50]["text"] = "明天去曝光"
    hostile = {"text": HOSTILE, "label": "ordinary", "family": "<b>", "source": "authored"}
    return [*rows, hostile, {"text": "半句", "label": "ordinary", "fragment": True}]


@pytest.fixture(scope="module")
def evaluated(bundle, make_bundle, data, tmp_path_factory):
    """An evaluation of a toy bundle beside one that lacks two words; training has seen case A1 and writer w1 alone."""
    folder = tmp_path_factory.mktemp("evaluated")
    rows = some_rows(data)
    files = [write(folder / "test.jsonl", rows)]
    train = write(folder / "train.jsonl", [row | {"case": "A1", "writer": "w1", "source": "authored"} for row in rows])
    chat = write(folder / "chat.jsonl", [{"text": f"去公园吧{i}"} for i in range(30)] + [{"text": "谁被曝光"}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluating, "NONSENSE", 50)
        patch.setattr(evaluating, "EVERYDAY", 50)
        patch.setattr("jingyin.train.evaluate.systems.TIMED", 10)
        found = evaluate(
            bundle, files, folder / "out", against=make_bundle(unknown=("曝光", "全村")), traffic=[chat],
            training=train, changed=8,
        )  # fmt: skip
    return found, folder / "out"


def figures(evaluated, table, row, system="jingyin"):
    return evaluated[0].tables[table][system][row]


def test_golden_figures_of_a_model_that_knows_all_words(evaluated):
    found, _ = evaluated
    assert list(found.tables["systems"]) == ["jingyin", "before", "n-grams, linear", "keyword list"]
    model = {name: row[""] for name, row in found.tables["systems"]["jingyin"].items()}
    assert (model["threats at review"].count, model["threats at review"].rows) == (119, 120)
    assert (model["benign messages flagged"].count, model["benign messages flagged"].rows) == (2, 321)
    assert model["benign messages flagged"].low == pytest.approx(0.00076, abs=1e-5)
    assert (model["minimal pairs, both sides right"].count, model["minimal pairs, both labels right"].rows) == (39, 40)
    assert model["threats found, 1.0% of the benign flagged"].value == pytest.approx(119 / 120)
    assert found.counts["ordinary"] == 201
    assert found.left_out == 1


def test_the_other_bundle_and_the_baselines_are_judged_on_the_same_rows(evaluated):
    tables = evaluated[0].tables
    before = tables["systems"]["before"]["threats at review"][""]
    assert (before.rows, before.count < 100) == (120, True)
    assert "threats blocked" not in tables["systems"]["keyword list"]  # it has no such threshold
    assert "macro-F1 of the labels" not in tables["systems"]["keyword list"]
    ngrams = tables["systems"]["n-grams, linear"]["benign messages flagged"][""]
    assert ngrams.count <= 2  # at most as many as the bundle flags
    for name in ("situations", "innocents", "lists", "traffic", "company", "disguises", "senders", "slices"):
        assert {"jingyin", "before"} <= tables[name].keys()


def test_a_rate_that_the_benign_rows_cannot_bound_is_left_out_with_the_number(evaluated):
    found, _ = evaluated
    assert "threats found, 0.3% of the benign flagged" not in found.tables["systems"]["jingyin"]
    assert found.notes[:2] == [
        "recall where 0.1% of the benign are flagged needs 2995 benign rows",
        "recall where 0.3% of the benign are flagged needs 998 benign rows",
    ]


def test_unseen_cases_and_writers_stand_apart_from_rows_like_training_and_from_real_traffic(evaluated):
    unseen = figures(evaluated, "situations", "unseen cases")
    assert (unseen["threats at review"].count, unseen["threats at review"].rows) == (19, 20)
    assert (unseen["threats blocked"].count, unseen["innocents flagged"].count) == (19, 1)
    assert unseen["macro-recall"] == pytest.approx((9 / 10 + 19 / 20) / 2)
    assert figures(evaluated, "situations", "unseen writers")["threats at review"].rows == 20
    assert figures(evaluated, "situations", "like training")["threats at review"].value == 1
    assert figures(evaluated, "situations", "real traffic")["innocents flagged"].rows == 50


def test_false_alarms_are_counted_by_source_and_sources_kept_out_apart(evaluated):
    table = evaluated[0].tables["traffic"]["jingyin"]
    assert list(table) == [
        "sources kept out, pooled",
        "worst source",
        "chat *",
        "nus *",
    ]  # the training rows here are all authored
    assert (table["chat *"]["flagged"].count, table["chat *"]["flagged"].rows) == (1, 31)
    assert table["sources kept out, pooled"]["blocked"].rows == 81
    curve = evaluated[0].tables["frontier"]["jingyin"]
    assert list(curve) == ["1 in 10", "1 in 20", "1 in 50", "review", "block"]
    assert curve["1 in 50"] == {"flagged": 0.02, "threats found": 19 / 20}
    assert curve["review"]["flagged"] == pytest.approx(1 / 81)


def test_false_positives_are_counted_by_family_worst_first(evaluated):
    table = evaluated[0].tables["innocents"]["jingyin"]
    assert list(table)[:4] == ["all", "lawful_collection", "ordinary", "<b>"]
    assert (table["<b>"]["flagged"].count, table["<b>"]["blocked"].count) == (1, 1)
    assert table["all"]["flagged"].rows == 321


def test_what_senders_do_is_tried_on_the_same_rows(evaluated):
    of_model = evaluated[0].tables["disguises"]["jingyin"]
    assert len(of_model) == 2 + 14
    # The normaliser undoes these, and what the toy does not know it misses.
    assert figures(evaluated, "disguises", "zero_width")["threats found"].value == 1
    assert figures(evaluated, "disguises", "initials")["threats found"].value < 0.3
    assert len(evaluated[0].tables["heads and tails"]["jingyin"]) == 2 + 40
    weather = figures(evaluated, "company", "behind 2 sentences of weather *")
    assert weather["flagged alone, now pass"].rows == 8
    assert figures(evaluated, "senders", "greedy sender, 1 try")["flagged alone, now pass"].rows == 8


def test_lists_are_judged_by_themselves(evaluated):
    assert figures(evaluated, "lists", "plain threats")["flagged"].rows == 250
    assert figures(evaluated, "lists", "nonsense")["flagged"].rows == 50
    assert figures(evaluated, "lists", "everyday innocents")["blocked"].rows == 50
    assert {name: len(texts) for name, texts in behaviours().items()} == {
        "plain threats": 250, "plain innocents": 250, "everyday innocents": 5_000, "nonsense": 12_000
    }  # fmt: skip


def test_slices_of_each_dimension_cover_all_rows(evaluated):
    table = evaluated[0].tables["slices"]["jingyin"]
    for dimension in ("length", "script"):
        some = [row for name, row in table.items() if name.startswith(dimension)]
        assert sum(row["threats at review"].rows for row in some) == 120
        assert sum(row["innocents flagged"].rows for row in some) == 321


def test_what_a_message_costs(evaluated):
    cost = evaluated[0].tables["cost"]["jingyin"]
    assert cost["a message"]["MB"] > 0
    assert cost["a message"]["ms, mean"] > 0
    assert evaluated[0].tables["cost"]["keyword list"].keys() == {"a message"}


# ---- what is written


def test_the_report_is_one_file_and_escapes_what_messages_say(evaluated):
    page = (evaluated[1] / "report.html").read_text(encoding="utf-8")
    assert "曝光&lt;script&gt;alert(1)&lt;/script&gt;{{7*7}}&amp;\ufffd\ufffd" in page
    assert "<script" not in page
    assert "<b>" not in page
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    assert page.count("data:image/png;base64,") == 1


def test_the_curve_is_a_picture(evaluated):
    assert (evaluated[1] / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_figures_hold_no_text(evaluated):
    found, folder = evaluated
    content = (folder / "evaluation.json").read_text(encoding="utf-8")
    assert "曝光" not in json.loads(content).__repr__()
    first = json.loads(content)["errors"]["false_positives"]
    assert {row["where"].rpartition(":")[2] for row in first} == {"51", "471"}
    assert first[0].keys() == {"where", "label", "family", "predicted", "action", "risk"}
    assert not isinstance(found.tables["systems"]["jingyin"]["threats at review"][""].low, np.floating)


def test_the_summary_is_the_readmes_table_with_the_other_bundle_beside(evaluated):
    text = (evaluated[1] / "summary.md").read_text(encoding="utf-8")
    assert "| threats at review | 99.2% | " in text
    assert f"|  | jingyin `{evaluated[0].bundle}` | before `{evaluated[0].against}` |" in text
    assert re.search(r"\| unseen cases: threats at review / blocked \| 95.0% / 95.0% \| [\d.]+% / ", text)
    assert "| real traffic, sources kept out: flagged / blocked | 1 of 81 / 1 of 81 | 0 of 81 / 0 of 81 |" in text


def test_systems_stand_next_to_each_other_in_each_column():
    table = {"a": {"x": {"n": 1.0, "m": 2.0}}, "b": {"x": {"n": 3.0}, "y": {"m": 4.0}}}
    assert side_by_side(table) == (
        ["n, a", "n, b", "m, a", "m, b"], {"x": [1.0, 3.0, 2.0, None], "y": [None, None, None, 4.0]}
    )  # fmt: skip
    assert side_by_side({"a": table["a"]}) == (["n", "m"], {"x": [1.0, 2.0]})


def test_the_command_passes_its_options_and_prints_the_summary(bundle, data, tmp_path, monkeypatch, capsys):
    given, told = {}, SimpleNamespace(notes=["no threats"])
    monkeypatch.setattr(evaluating, "evaluate", lambda *args, **options: given.update(options, args=args) or told)
    monkeypatch.setattr("jingyin.train.evaluate.report.summary", lambda _: "| summary |")
    out = tmp_path / "out"
    words = ["evaluate", bundle, data, "--out", out, "--against", "old", "--traffic", "a", "--traffic", "b"]
    assert run_command(*words) == 0
    assert given == {
        "args": (bundle, [data], out), "against": Path("old"), "traffic": [Path("a"), Path("b")], "training": None
    }  # fmt: skip
    assert capsys.readouterr().out == f"| summary |\nnote: no threats\nreport: {out / 'report.html'}\n"


@pytest.mark.parametrize(
    "labels", [("ordinary", "lawful_collection", "debt_threat"), ("ordinary", "lawful_collection")]
)
def test_labels_without_rows_are_named_and_their_figures_left_out(labels, bundle, data, tmp_path, monkeypatch):
    rows = [row for row in read(data) if row["label"] in labels]
    file = write(tmp_path / "test.jsonl", rows)
    for name in ("NONSENSE", "EVERYDAY"):
        monkeypatch.setattr(evaluating, name, 5)
    monkeypatch.setattr("jingyin.train.evaluate.systems.TIMED", 2)
    write(tmp_path / "train.jsonl", rows)
    found = evaluate(bundle, [file], tmp_path / "out", training=tmp_path / "train.jsonl", changed=4)
    threats = "debt_threat" in labels
    missing = ["debt_threat"] * (not threats) + ["pay_to_stop", "other_threat"]
    assert found.notes[0] == f"no row to score has label {', '.join(missing)}: figures of these are left out"
    assert "NaN" not in (tmp_path / "out" / "evaluation.json").read_text("utf-8")
    assert ("frontier" in found.tables) == (tmp_path / "out" / "curve.png").is_file() == threats
    model = {name: row[""] for name, row in found.tables["systems"]["jingyin"].items()}
    assert model["benign messages flagged"].rows == 320
    assert ("threats found, 3.0% of the benign flagged" in model) == threats
    assert model["macro-F1 of the labels"] > 0.9
    assert (
        summary(found)
        .splitlines()[2]
        .startswith("| threats at review | 100.0% |" if threats else "| threats at review | – |")
    )


# ---- what is refused


def one_of_each():
    return [{"text": f"第{i}条", "label": label} for i, label in enumerate(LABELS)]


def test_too_few_benign_rows_are_refused_with_the_number(bundle, tmp_path):
    with pytest.raises(InputError, match=r"^2 benign rows .* rate of 0\.03; wanted at least 99"):
        evaluate(bundle, [write(tmp_path / "rows.jsonl", one_of_each())], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_for_the_report_is_found_before_the_work(bundle, data, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(evaluating.systems, "verdicts", lambda *_: pytest.fail("messages were scored"))
    with pytest.raises(FileExistsError):
        evaluate(bundle, [data], tmp_path / "file")


def test_a_training_split_that_is_not_there_is_refused(bundle, data, tmp_path):
    with pytest.raises(InputError, match=r"typo\.parquet is not a file; name a training split, or leave --train out"):
        evaluate(bundle, [data], tmp_path / "out", training=tmp_path / "typo.parquet")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("ordinary", "spam"), r"train\.jsonl:2: unknown label 'spam'"),
        (("ordinary", None), r"train\.jsonl:2: no label"),
        (("ordinary", "ordinary"), r"all rows of .*train\.jsonl are ordinary; name a training split with several"),
    ],
)
def test_a_training_split_that_teaches_no_baseline_is_refused(labels, message, bundle, data, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluating.systems, "verdicts", lambda *_: pytest.fail("messages were scored"))
    training = write(tmp_path / "train.jsonl", [{"text": "好", "label": label} for label in labels])
    with pytest.raises(InputError, match=message):
        evaluate(bundle, [data], tmp_path / "out", training=training)


def test_the_curve_is_of_all_threats_if_none_is_unseen(bundle, data):
    messages = read_messages([data])
    judged = served(open_bundle(bundle)).judge(messages.texts)
    nothing_new, all_new = (np.full(len(messages), value) for value in (False, True))
    tables = [evaluating._on_traffic([judged], messages, None, {}, new) for new in (nothing_new, all_new)]
    assert tables[0] == tables[1]


def test_a_bundle_of_other_labels_is_refused(make_bundle, data, tmp_path):
    other = make_bundle(labels=("ordinary", "lawful_collection", "debt_threat", "pay_to_stop", "menace"), unknown=())
    with pytest.raises(InputError, match=r"has labels .*menace; wanted ordinary, .*other_threat"):
        evaluate(other, [data], tmp_path / "out")


def test_a_keyword_rule_of_two_words_needs_both():
    assert keywords().judge(["举报", "举报有钱", "呼 死 你", "明天见"]).risks.tolist() == [0, 1, 1, 0]
