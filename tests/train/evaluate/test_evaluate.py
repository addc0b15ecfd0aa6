import json
import re
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jingyin.cli import main
from jingyin.model.errors import ConfigError, InputError
from jingyin.model.labels import LABELS
from jingyin.train.evaluate.evaluate import evaluate
from jingyin.train.evaluate.samples import read_messages
from jingyin.train.evaluate.systems import hugging_face, keywords

pytestmark = pytest.mark.slow

HOSTILE = "曝光<script>alert(1)</script>{{7*7}}&\ud800\x00"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one_of_each(**changes):
    return [{"text": f"第{i}条", "label": label, **changes} for i, label in enumerate(LABELS)]


@pytest.fixture(scope="module")
def evaluated(bundle, data, tmp_path_factory):
    """An evaluation of the toy bundle on rows of which one is hostile and one a fragment, and its folder."""
    folder = tmp_path_factory.mktemp("evaluated")
    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    rows += [
        {"text": HOSTILE, "label": "ordinary", "family": "<b>"},
        {"text": "半句", "label": "ordinary", "fragment": True},
    ]
    found = evaluate(bundle, [write(folder / "test.jsonl", rows)], folder / "out", data, [])
    return found, folder / "out"


def system(evaluation, name):
    return next(each for each in evaluation.systems if each.name == name)


def test_golden_figures_of_a_model_that_knows_all_words(evaluated):
    found, _ = evaluated
    model = system(found, "jingyin")
    assert (model.recall.count, model.recall.rows) == (120, 120)
    assert (model.false_positives.count, model.false_positives.rows) == (1, 321)  # the hostile row says 曝光
    assert model.recall.low == pytest.approx(0.9697, abs=1e-4)  # 0.025 ** (1 / 120)
    assert (model.pairs.count, model.pairs.rows) == (40, 40)
    assert model.by_label.confusion[0] == [200, 0, 1, 0, 0]
    assert model.by_label.labels[2].precision == pytest.approx(60 / 61)
    assert found.counts == {
        "ordinary": 201,
        "lawful_collection": 120,
        "debt_threat": 60,
        "pay_to_stop": 60,
        "other_threat": 30,
    }
    assert found.left_out == 1


def test_baselines_are_judged_in_the_same_run_and_compared_row_by_row(evaluated):
    found, _ = evaluated
    assert [each.name for each in found.systems] == ["jingyin", "keywords", "n-grams"]
    assert [each.baseline for each in found.differences] == ["keywords", "n-grams"]
    listed = system(found, "keywords")
    assert listed.by_label is None
    assert listed.recall.count < 120
    paired = found.differences[0].paired
    wrong = 120 - listed.recall.count + listed.false_positives.count - 1
    assert paired.only_first - paired.only_second == wrong


def test_a_rate_that_the_benign_rows_cannot_bound_is_refused_with_the_number(evaluated):
    found, _ = evaluated
    at_rates = system(found, "jingyin").at_rates
    assert [(each.rate, each.recall is None, each.needed) for each in at_rates] == [
        (0.001, True, 2995), (0.003, True, 998), (0.01, False, 299), (0.03, False, 99),
    ]  # fmt: skip
    assert at_rates[3].recall.value == 1


def test_false_positives_are_counted_by_family_worst_first(evaluated):
    found, _ = evaluated
    assert found.families[0].name == "<b>"
    assert (found.families[0].review.count, found.families[0].block.count) == (1, 1)
    assert {each.name for each in found.families[1:]} == {
        f"{b}_{i}" for b in ("ordinary", "lawful_collection") for i in range(3)
    }


def test_evasion_lists_every_family_for_every_system_with_held_out_ones_marked(evaluated):
    found, _ = evaluated
    of_model = {each.family: each for each in found.evasion if each.system == "jingyin"}
    assert len(of_model) == 14
    assert {name for name, each in of_model.items() if each.held_out} == {"component", "emoji", "slang", "reversal"}
    # The normaliser undoes these, and what the toy does not know it misses.
    assert of_model["zero_width"].recall_after.value == 1
    assert of_model["initials"].recall_after.value < 0.3
    assert of_model["initials"].recall_before.value == 1


def test_the_attack_is_part_of_it(evaluated):
    found, folder = evaluated
    assert found.attack.rows == 100
    assert len(found.attack.dressings) == 40
    assert found.attack.dressings[0].passed.count == 0  # no head or tail hides a word that the toy knows
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "A lazy sender" in page
    assert "…退订回T" in page


def test_slices_of_each_dimension_cover_all_rows(evaluated):
    found, _ = evaluated
    for dimension in ("length", "script", "source"):
        some = [each for each in found.slices if each.dimension == dimension]
        assert sum(each.recall.rows for each in some) == 120
        assert sum(each.review.rows for each in some) == 321


def test_the_report_is_one_file_and_escapes_what_messages_say(evaluated):
    _, folder = evaluated
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "曝光&lt;script&gt;alert(1)&lt;/script&gt;{{7*7}}&amp;\ufffd\ufffd" in page
    assert "<script" not in page
    assert "<b>" not in page.split("False positives by family")[1]
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    assert page.count("data:image/svg+xml;base64,") == 4


def test_the_figures_hold_no_text(evaluated):
    found, folder = evaluated
    content = (folder / "evaluation.json").read_text(encoding="utf-8")
    assert content.isascii()
    assert json.loads(content)["errors"]["false_positives"] == [
        {"where": f"{folder.parent / 'test.jsonl'}:471", "label": "ordinary", "family": "<b>",
         "predicted": "debt_threat", "action": "block",
         "risk": pytest.approx(found.errors["false_positives"][0].risk)},
    ]  # fmt: skip


def test_the_command_prints_a_summary_without_text(bundle, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jingyin", "evaluate", str(bundle), str(data), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    out = " ".join(capsys.readouterr().out.split())
    assert "471" not in out
    assert "keywords" in out
    assert "no n-gram baseline, and unseen cases are not shown apart: there is no train.parquet beside" in out
    assert "lazy sender, tries: " in out
    assert "曝光" not in out


# ---- what is refused


def test_parquet_and_json_lines_read_alike(tmp_path):
    rows = one_of_each(group="g", source="s")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    one, other = (read_messages([path]) for path in (write(tmp_path / "rows.jsonl", rows), tmp_path / "rows.parquet"))
    assert one.texts == other.texts
    assert one.labels.tolist() == other.labels.tolist() == [0, 1, 2, 3, 4]
    assert one.groups == other.groups == ["g"] * 5
    assert other.where[1] == f"{tmp_path / 'rows.parquet'}:2"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "好"}], r":1: no label; every row needs 'label', one of ordinary, "),
        ([{"label": "ordinary"}], r":1: no text; every row needs 'text'"),
        ([{"text": None, "label": "ordinary"}], r":1: no text"),
        ([*one_of_each(), {"text": "好", "label": "spam"}], r":6: unknown label 'spam'; known: ordinary, "),
        (one_of_each()[:3], r"no row to score has label pay_to_stop, other_threat; add rows"),
        (one_of_each(fragment=True), r"no row to score has label ordinary, "),
        ([], r"holds no rows"),
    ],
)
def test_rows_that_cannot_be_judged_on_are_refused(rows, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_messages([write(tmp_path / "rows.jsonl", rows)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"text,label", "neither .parquet nor .jsonl"),
        ("rows.jsonl", b"[1]\n", "rows.jsonl:1: not a JSON object"),
        ("rows.jsonl", b'{"text"\n', "rows.jsonl:1: not a JSON object"),
        ("rows.jsonl", b"\xff\n", r"can't be read \(UnicodeDecodeError\)"),
        ("rows.parquet", b"PAR1", r"can't be read \(ArrowInvalid\)"),
    ],
)
def test_files_that_cannot_be_read_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_messages([tmp_path / name])


def test_too_few_benign_rows_are_refused_with_the_number(bundle, tmp_path):
    with pytest.raises(InputError, match=r"^2 benign rows .* rate of 0\.03; wanted at least 99"):
        evaluate(bundle, [write(tmp_path / "rows.jsonl", one_of_each())], tmp_path / "out", None, [])
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_other_labels_is_refused(make_bundle, data, tmp_path):
    other = make_bundle(labels=("ordinary", "lawful_collection", "debt_threat", "pay_to_stop", "menace"), unknown=())
    with pytest.raises(InputError, match=r"has labels .*menace; wanted ordinary, .*other_threat"):
        evaluate(other, [data], tmp_path / "out", None, [])


def test_a_keyword_rule_of_two_words_needs_both():
    assert keywords().judge(["举报", "举报有钱", "呼 死 你", "明天见"]).risks.tolist() == [0, 1, 1, 0]


def test_a_baseline_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"baseline .* can't be loaded \(\w+\); give a text-classification model"):
        hugging_face(str(tmp_path))


def test_a_hugging_face_baseline_is_judged_by_its_labels(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "还钱": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    shape: dict[str, Any] = {
        "vocab_size": 3,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    config = BertConfig(**shape, id2label={0: "ham", 1: "debt_threat"}, label2id={"ham": 0, "debt_threat": 1})
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    scores = hugging_face(str(tmp_path)).judge(["还钱", "明天 见"])
    assert scores.probabilities is None
    assert ((scores.risks > 0) & (scores.risks < 1)).all()
    config.id2label = {0: "ham", 1: "spam"}
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"knows labels \['ham', 'spam'\]; name at least one of them debt_threat or"):
        hugging_face(str(tmp_path))


def test_unused_numpy_types_do_not_reach_the_figures(evaluated):
    found, _ = evaluated
    assert not isinstance(found.systems[0].recall.low, np.floating)
