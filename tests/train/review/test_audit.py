import gzip
import json
import re
from datetime import datetime
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.command import run_command
from tests.json_lines import read, write

from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.train.audit import audit, rank_within_class, take_answers
from jingyin.train.corpus.build import build
from jingyin.train.evaluate.samples import pairs, read_messages, read_rows


def answer(task, *labels, cancelled=False):
    """Answer a task as Label Studio exports it."""
    results = [
        {"was_cancelled": cancelled, "result": [
            {"type": "choices", "from_name": "label", "to_name": "text", "value": {"choices": [label]}}
        ]}
        for label in labels
    ]  # fmt: skip
    return {"id": 1, **task, "annotations": results}


@pytest.fixture(scope="module")
def audited(data, tmp_path_factory):
    """Rows: 20 have a wrong label, two contradict each other, 15 have none; where the wrong ones are; findings."""
    folder = tmp_path_factory.mktemp("audited")
    rows, rng = read(data), Random(3)
    wrong = sorted(rng.sample(range(len(rows)), 20))
    for i in wrong:
        rows[i]["label"] = rng.choice([label for label in LABELS if label != rows[i]["label"]])
        rows[i]["pair"] = ""
    twin = {"text": "这是同一条很长的消息只有末尾一个字不一样啊", "label": "ordinary"}
    rows += [twin, {"text": twin["text"][:-1] + "呀", "label": "other_threat"}]
    rows += [{"text": f"{word}也{'吃饭看书' * i}"} for word in ("曝光账单", "赎金缴费", "小心利息") for i in range(5)]
    path = write(folder / "rows.jsonl", rows)
    return path, wrong, audit([path], folder / "out"), folder / "out"


def test_wrong_labels_come_first_with_the_right_one_suggested(audited):
    _, wrong, found, _ = audited
    suspects = [each for each in found if each.kind == "suspect"]
    places = [int(each.where.rpartition(":")[2]) - 1 for each in suspects]
    assert len(set(places[:40]) & set(wrong)) >= 15
    assert len(set(places[:5]) & set(wrong)) >= 3


def test_near_duplicates_with_two_labels_are_both_shown(audited):
    path, _, found, _ = audited
    both = [each for each in found if each.kind == "contradiction"]
    assert [each.where for each in both] == [f"{path}:471", f"{path}:472"]
    assert [each.suggestion for each in both] == ["other_threat", "ordinary"]
    assert both[0].reason == f"100% like {path}:472, which has another label"


def test_a_row_is_one_task_however_many_rows_contradict_it(data, tmp_path):
    text = "再不还钱就把你的照片发到村里群里给大家看看"
    twins = [{"text": text + end, "label": "debt_threat"} for end in "甲乙丙丁戊"]
    path = write(tmp_path / "rows.jsonl", [*read(data), *twins, {"text": text, "label": "ordinary"}])
    found = audit([path], tmp_path / "out")
    assert len({each.where for each in found}) == len(found)
    last = f"{path}:{len(read(path))}"
    reasons = {each.where: each.reason for each in found if each.kind == "contradiction"}
    assert len(reasons) == 6
    assert all(reason.endswith(f"like {last}, which has another label") for at, reason in reasons.items() if at != last)


def test_minimal_pairs_of_a_built_corpus_are_no_contradictions_and_are_evaluated(data, tmp_path):
    starts = {
        "今天晚上我们一起去公园门口看电影再回家吃饭": "p1",
        "明天早上你们去学校买菜看书后天再走回公园": "p2",
        "他们后天上午一起回家看书吃饭晚上去看电影": "",
    }
    twins = [
        {"text": start + end, "label": label, "pair": pair}
        for start, pair in starts.items()
        for end, label in (("吧", "ordinary"), ("哼", "debt_threat"))
    ]
    (tmp_path / "authored").mkdir()
    rows = [{**row, "pair": ""} for row in read(data)] + twins
    write(tmp_path / "authored/rows.jsonl", [{"family": "f", **row, "voice": "plain"} for row in rows])
    splits = "splits: {train: 0, validation: 0, calibration: 0, test: 1}"
    (tmp_path / "corpus.yaml").write_text(f"authored: {tmp_path}/authored\n{splits}\n", encoding="utf-8")
    build(tmp_path / "corpus.yaml", tmp_path / "built")
    built = tmp_path / "built/test.parquet"

    found = [each for each in audit([built], tmp_path / "out") if each.kind == "contradiction"]
    texts = [row["text"] for row in read_rows(built)]
    assert {texts[int(each.where.rpartition(":")[2]) - 1] for each in found} == {row["text"] for row in twins[-2:]}

    messages = read_messages([built])
    assert {row["text"] for row in twins[:4]} <= {
        messages.texts[i] for rows in pairs(messages, messages.labels) for i in rows
    }


def test_tasks_are_label_studios_and_the_figures_hold_no_text(audited):
    _, _, found, out = audited
    tasks = json.loads((out / "tasks.json").read_text("utf-8"))
    assert len(tasks) == len(found)
    assert tasks[0]["data"].keys() == {"text", "label", "row", "reason"}
    assert tasks[0]["predictions"][0]["result"][0]["value"] == {"choices": [found[0].suggestion]}
    assert (out / "label_studio.xml").read_text("utf-8").count("<Choice ") == len(LABELS)
    assert (out / "audit.json").read_text("utf-8").isascii()


def test_answers_come_back_into_the_rows_and_the_rest_stays(audited, tmp_path):
    path, _, _, out = audited
    first, second, third, *_ = json.loads((out / "tasks.json").read_text("utf-8"))
    export = tmp_path / "export.json"
    export.write_text(json.dumps([
        answer(first, "lawful_collection"), answer(second, "ordinary", "debt_threat"),
        answer(third, "ordinary", cancelled=True),
    ]), encoding="utf-8")  # fmt: skip
    answers, changed = take_answers([path], export, tmp_path)
    assert (len(answers.labels), answers.disputed, answers.open, changed) == (1, 1, 1, 1)
    before, after = read(path), read(tmp_path / "rows.jsonl")
    moved = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old.get("label") != new["label"]]
    assert moved == [470]
    assert after[470] == {**before[470], "label": "lawful_collection"}


def test_times_and_the_like_come_back_as_text(tmp_path):
    pq.write_table(
        pa.table({"text": ["好"], "label": ["ordinary"], "at": [datetime(2025, 1, 2)]}), tmp_path / "a.parquet"
    )
    (tmp_path / "export.json").write_text(json.dumps([answer({"data": {"text": "好"}}, "debt_threat")]))
    take_answers([tmp_path / "a.parquet"], tmp_path / "export.json", tmp_path / "out")
    assert read(tmp_path / "out/rows.jsonl") == [{"text": "好", "label": "debt_threat", "at": "2025-01-02 00:00:00"}]


def test_half_an_emoji_is_replaced_and_packed_files_of_a_folder_are_read(tmp_path):
    rows = [{"text": f"第{i}条\ud83d", "label": "ordinary" if i % 2 else "debt_threat"} for i in range(12)]
    rows.append({"text": "第0条\ud83d", "label": "pay_to_stop"})
    (tmp_path / "data").mkdir()
    with gzip.open(tmp_path / "data" / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    findings = audit([tmp_path / "data"], tmp_path / "out", tell=lambda line: None)
    assert {finding.kind for finding in findings} >= {"contradiction"}
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text("utf-8"))
    assert all(task["data"]["text"].endswith("条\ufffd") for task in tasks)
    export = tmp_path / "export.json"
    export.write_text(json.dumps([answer({"data": {"text": "第3条\ufffd"}}, "lawful_collection")]), encoding="utf-8")
    assert take_answers([tmp_path / "data"], export, tmp_path / "out")[1] == 1
    assert read(tmp_path / "out" / "rows.jsonl")[3] == {"text": "第3条\ufffd", "label": "lawful_collection"}


def test_rank_within_class_takes_turns_between_classes():
    labels = np.array([0, 0, 0, 1])
    probabilities = np.array([[0.1, 0.9], [0.2, 0.8], [0.9, 0.1], [0.6, 0.4]])
    assert rank_within_class(labels, probabilities).tolist() == [0, 3, 1, 2]


# ---- what is refused


def test_rows_without_labels_are_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": f"第{i}条"} for i in range(20)])
    with pytest.raises(InputError, match=r"too few rows of ordinary \(0\), lawful_collection \(0\), .* at least 5"):
        audit([path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_label_of_one_group_is_not_audited(data, tmp_path):
    rows = [row for row in read(data) if row["label"] in ("ordinary", "lawful_collection", "debt_threat")]
    rows = [{**row, "group": "g" if row["label"] == "debt_threat" else ""} for row in rows]
    told: list[str] = []
    findings = audit([write(tmp_path / "rows.jsonl", rows)], tmp_path / "out", tell=told.append)
    assert "debt_threat (60 of one group)" in told[0]
    assert "debt_threat" not in {finding.label for finding in findings if finding.kind == "suspect"}
    path = write(tmp_path / "two.jsonl", [row for row in rows if row["label"] != "ordinary"])
    with pytest.raises(InputError, match=r"too few rows of .*debt_threat \(60 of one group\)"):
        audit([path], tmp_path / "out")


@pytest.mark.parametrize(
    "labels", [("ordinary", "lawful_collection", "debt_threat"), ("ordinary", "lawful_collection")]
)
def test_labels_without_rows_are_told_and_the_others_audited(labels, data, tmp_path):
    rows = [row for row in read(data) if row["label"] in labels]
    wrong = next(row for row in reversed(rows) if row["label"] == labels[-1])
    wrong |= {"label": "ordinary", "pair": ""}
    told: list[str] = []
    rare = {"text": f"{rows[0]['text']}。", "label": "other_threat"}
    found = audit([write(tmp_path / "rows.jsonl", [*rows, rare])], tmp_path / "out", tell=told.append)
    assert [each.split(":")[0] for each in told] == [
        f"too few rows of {'' if len(labels) == 3 else 'debt_threat (0), '}pay_to_stop (0), other_threat (1)"
    ]
    assert {each.suggestion for each in found if each.kind == "suspect"} <= set(labels)
    assert f"{tmp_path / 'rows.jsonl'}:{rows.index(wrong) + 1}" in {each.where for each in found}
    assert {each.label for each in found if each.kind == "contradiction"} >= {"other_threat"}
    with pytest.raises(InputError, match=r"wants at least 5 labelled rows of each of two labels or more"):
        audit([write(tmp_path / "one.jsonl", [row for row in rows if row["label"] == "ordinary"])], tmp_path / "out")


def test_an_unknown_label_is_refused_with_its_place(tmp_path):
    pq.write_table(pa.table({"text": ["好", "坏"], "label": ["ordinary", "spam"]}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"rows\.parquet:2: unknown label 'spam'"):
        audit([tmp_path], tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"no Label Studio export \(JSONDecodeError\); export the project as JSON"),
        ('[{"text": "好", "label": "ordinary"}]', r"no Label Studio export \(KeyError\)"),
        (json.dumps([answer({"data": {"text": "好"}}, "spam")]), r"has answers \['spam'\]; known labels"),
        (
            json.dumps([answer({"data": {"text": "没有"}}, "ordinary")]),
            r"^1 answers are about messages that the data lacks",
        ),
    ],
)
def test_exports_that_cannot_be_used_are_refused(content, message, tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": "好", "label": "ordinary"}])
    (tmp_path / "export.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        take_answers([path], tmp_path / "export.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", ["rows.jsonl", "."])
def test_answers_never_replace_the_data(named, tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": "好", "label": "ordinary"}])
    (tmp_path / "export.json").write_text(json.dumps([answer({"data": {"text": "好"}}, "debt_threat")]))
    with pytest.raises(InputError, match=r"rows\.jsonl is a file of the data, which is never changed; name another"):
        take_answers([tmp_path / named], tmp_path / "export.json", tmp_path)
    assert read(path) == [{"text": "好", "label": "ordinary"}]


def test_the_command_audits_and_takes_answers(data, tmp_path, capsys):
    def run(*extra):
        assert run_command("audit", data, "--out", tmp_path, *extra) == 0
        return capsys.readouterr().out

    assert re.match(r"(contradiction: \d+ rows, )?suspect: \d+ rows\ntasks: ", run())
    tasks = json.loads((tmp_path / "tasks.json").read_text("utf-8"))
    (tmp_path / "export.json").write_text(json.dumps([answer(tasks[0], "ordinary")]), encoding="utf-8")
    assert run("--answers", tmp_path / "export.json").startswith("1 answers, ")
