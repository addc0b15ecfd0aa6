import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests import json_lines
from tests.serve.archive.relabel_helpers import THREAT, Here, rows

from jingyin import Scorer
from jingyin.model.errors import ConfigError, InputError
from jingyin.serve.archive import relabel as job
from jingyin.serve.archive.changes import MAX_FAMILIES, REST, Changes, Ranked
from jingyin.serve.archive.relabel import lines, relabel
from jingyin.serve.archive.shards import ProgressLine

CHAT = "明天下午三点老地方见，记得带伞"


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Six rows with older labels: one agrees, three move, one has none, one agrees."""
    data = [
        (CHAT, "ordinary", "chat"),
        (CHAT, "pay_to_stop", "chat"),
        (THREAT, "ordinary", "call_bombing"),
        (THREAT, "spam", "call_bombing"),
        (THREAT, None, "call_bombing"),
        (THREAT, "pay_to_stop", "call_bombing"),
    ]
    table = pa.Table.from_pylist([dict(zip(("text", "label", "family"), row, strict=True)) for row in data])
    pq.write_table(table, tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


def test_table_families_and_moved_rows(labelled: Path, out: Path, here: Here, scorer: Scorer) -> None:
    report = here(labelled, out, compare="label")
    assert report.changes == {
        "moved": 3,
        "table": {
            "(empty)": {"pay_to_stop": 1},
            "ordinary": {"ordinary": 1, "pay_to_stop": 1},
            "pay_to_stop": {"ordinary": 1, "pay_to_stop": 1},
            "spam": {"pay_to_stop": 1},
        },
        "families": {"call_bombing": [4, 2], "chat": [2, 1]},
    }
    moved = json_lines.read(out / "_moved.jsonl")
    assert [row["row"] for row in moved] == [3, 4, 2]
    threat = scorer.score(THREAT)
    assert moved[0] == {
        "file": "part-00000.parquet",
        "row": 3,
        "risk": threat.risk,
        "label": "pay_to_stop",
        "sure": threat.probabilities["pay_to_stop"],
        "action": threat.action,
        "reasons": [reason.sign for reason in threat.reasons],
        "before": "ordinary",
        "family": "call_bombing",
        "text": THREAT,
    }
    assert list(lines(report, out))[1:] == [
        f"3 rows moved; see {out / '_moved.jsonl'}",
        "before \\ now  ordinary  pay_to_stop",
        "(empty)              0            1",
        "ordinary             1            1",
        "pay_to_stop          1            1",
        "spam                 0            1",
        "",
        "family        rows  moved",
        "call_bombing     4      2",
        "chat             2      1",
    ]


def test_an_earlier_run_can_be_compared(labelled: Path, tmp_path: Path, here: Here) -> None:
    here(labelled, tmp_path / "first.parquet")
    for column in ("jingyin_label", "jingyin_action"):
        report = here(tmp_path / "first.parquet", tmp_path / f"{column}.parquet", compare=column)
        assert report.changes["moved"] == 0
        assert sum(sum(row.values()) for row in report.changes["table"].values()) == 6


def test_a_column_that_holds_no_labels(tmp_path: Path, here: Here) -> None:
    data = [row | {"tags": [1]} for row in rows(150)]
    pq.write_table(pa.Table.from_pylist(data), tmp_path / "in.parquet")
    with pytest.raises(InputError, match="has over 100 different values: it holds no labels"):
        here(tmp_path / "in.parquet", tmp_path / "a.parquet", compare="id")
    with pytest.raises(InputError, match="the column 'tags' is list<"):
        here(tmp_path / "in.parquet", tmp_path / "b.parquet", compare="tags")


def test_families_are_bounded() -> None:
    changes, many = Changes(), MAX_FAMILIES + 5
    changes.add(pa.array(["a"] * many), pa.array(["b"] * many), [f"{n:05d}" for n in range(many)])
    assert len(changes.families) == MAX_FAMILIES + 1
    assert changes.families[REST] == [5, 5]
    assert sum(rows for rows, _ in changes.families.values()) == many


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_empty_and_null_are_one_thing_in_any_format(tmp_path: Path, here: Here, kind: str) -> None:
    data = {"text": [CHAT] * 3, "old": ["", None, "bad"], "family": [None, "", "f"]}
    pq.write_table(pa.table(data), tmp_path / "in.parquet")
    changes = here(tmp_path / "in.parquet", tmp_path / f"out.{kind}", compare="old").changes
    assert changes["table"] == {"(empty)": {"ordinary": 2}, "bad": {"ordinary": 1}}
    assert changes["families"] == {"(empty)": [2, 0], "f": [1, 1]}


def test_families_are_names(tmp_path: Path, here: Here) -> None:
    pq.write_table(pa.table({"text": ["x"], "old": ["a"], "family": [["x"]]}), tmp_path / "in.parquet")
    wanted = r"the column 'family' is list<.*>, wanted labels or names; name another, or rename it"
    with pytest.raises(InputError, match=wanted):
        here(tmp_path / "in.parquet", tmp_path / "out.parquet", compare="old")


def test_a_label_map_says_what_older_labels_mean(labelled: Path, tmp_path: Path, here: Here) -> None:
    meanings = {"spam": "pay_to_stop"}
    changes = here(labelled, tmp_path / "out.parquet", compare="label", label_map=meanings).changes
    assert changes["table"]["pay_to_stop"] == {"ordinary": 1, "pay_to_stop": 2}
    assert changes["moved"] == 2


def test_a_label_map_without_such_a_label_is_refused_before_a_row_is_scored(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--label-map gives fraud; known labels: ordinary, "):
        relabel([labelled], tmp_path / "out.parquet", compare="label", label_map={"spam": "fraud"})
    assert not (tmp_path / "out.parquet").exists()


def test_a_finished_output_is_not_scored(
    labelled: Path, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, tasks = tmp_path / "out.parquet", tmp_path / "tasks.json"
    first = here(labelled, out, id_column="label")
    monkeypatch.setattr(job, "decide_packed", None)
    found = here(labelled, out, id_column="label", compare="label", label_studio=tasks)
    assert (found.rows, found.changes["moved"], found.tasks) == (first.rows, 3, 3)
    assert here(labelled, out, id_column="label", label_studio=tasks).tasks < 3


def test_tasks_of_moved_rows(labelled: Path, tmp_path: Path, here: Here) -> None:
    file = tmp_path / "tasks.json"
    assert here(labelled, tmp_path / "out.parquet", compare="label", label_studio=file, sample=2).tasks == 2
    first = json.loads(file.read_text(encoding="utf-8"))
    for task in first:
        assert task["data"]["text"] in (CHAT, THREAT)
        assert task["data"]["reason"].startswith("was ")
        (choice,) = task["predictions"][0]["result"]
        assert choice["value"]["choices"] == [task["data"]["reason"].split("; ")[0].rsplit(" ", 1)[1]]
        assert 0 <= task["predictions"][0]["score"] <= 1
    here(labelled, tmp_path / "again.parquet", compare="label", label_studio=file, sample=2)
    assert json.loads(file.read_text(encoding="utf-8")) == first


def test_tasks_without_a_comparison_are_rows_to_review(labelled: Path, tmp_path: Path, here: Here) -> None:
    here(labelled, tmp_path / "out.parquet", label_studio=tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    review = [row for row in pq.read_table(tmp_path / "out.parquet").to_pylist() if row["jingyin_action"] == "review"]
    assert len(tasks) == len(review)
    assert all(task["data"]["reason"].startswith("near a threshold") for task in tasks)


def test_tasks_and_moved_rows_have_the_reasons(tmp_path: Path, here: Here, signed_bundle: Path) -> None:
    data = {"text": ["赎金，曝光你", "单位"], "label": ["ordinary", "ordinary"]}
    pq.write_table(pa.table(data), tmp_path / "in.parquet")
    options = {"bundle": signed_bundle, "compare": "label", "label_studio": tmp_path / "tasks.json"}
    here(tmp_path / "in.parquet", tmp_path / "out.parquet", **options)
    found = [each["data"] for each in json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))]
    assert {each["text"]: (each["reasons"], each["reason"]) for each in found} == {
        data["text"][0]: (["exposure", "demand_money"], "was ordinary, is debt_threat; 告知他人, 索要钱财"),
        data["text"][1]: ([], "was ordinary, is debt_threat"),
    }
    moved = json_lines.read(tmp_path / "out.parquet" / "_moved.jsonl")
    assert [each["reasons"] for each in moved] == [each["reasons"] for each in found]


def test_rows_come_back_by_falling_risk_and_equal_ones_in_order(tmp_path: Path) -> None:
    held = Ranked(tmp_path)
    for order, risk in enumerate([0.5, 1.0, 0.0, 0.5, 1e-17, 0.25, 0.5, 0.9999999, 1 + 2**-52]):
        held.add({"risk": risk, "text": f"第{order}条\n"})
    for _ in range(2):
        assert [json.loads(line)["text"] for line in held] == [f"第{n}条\n" for n in (8, 1, 7, 0, 3, 6, 5, 4, 2)]
    held.close()
    assert list(tmp_path.iterdir()) == []


def test_progress_on_a_terminal_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = ProgressLine(0, 0.0, shown=True)
    quiet.show(10, 0.5)
    quiet.close()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("jingyin.serve.archive.shards.monotonic", iter((0.0, 60.0, 60.1)).__next__)
    bar = ProgressLine(1000, 0.2, shown=True)
    bar.show(13000, 0.6)
    bar.show(13100, 0.61)  # too soon
    bar.close()
    assert capsys.readouterr().err == "\r13,000 rows  60.0%  200 rows/s  1 min left\x1b[K\r\x1b[K"


@pytest.mark.parametrize("name", ["row", "file", "risk", "label", "sure", "text"])
def test_an_id_column_of_any_name_is_listed(tmp_path: Path, here: Here, signed_bundle: Path, name: str) -> None:
    table = pa.table({"sms": ["曝光你，赎金", "回家吃饭"], name: ["m1", "m2"], "old": ["spam", "spam"]})
    pq.write_table(table, tmp_path / "in.parquet")
    out, tasks = tmp_path / "out.parquet", tmp_path / "tasks.json"
    options = {"text_column": "sms", "id_column": name, "compare": "old", "label_studio": tasks}
    here(tmp_path / "in.parquet", out, bundle=signed_bundle, **options)
    moved = json_lines.read(out / "_moved.jsonl")
    assert [(row["file"], row["row"], row["id"], row["text"]) for row in moved] == [
        ("part-00000.parquet", 1, "m1", "曝光你，赎金"), ("part-00000.parquet", 2, "m2", "回家吃饭"),
    ]  # fmt: skip
    (first, _) = json.loads(tasks.read_text(encoding="utf-8"))
    assert (first["data"]["id"], first["data"]["row"]) == ("m1", "part-00000.parquet:1")


def test_a_third_output_can_be_compared_with_the_second(labelled: Path, tmp_path: Path, here: Here) -> None:
    here(labelled, tmp_path / "1.parquet")
    here(tmp_path / "1.parquet", tmp_path / "2.parquet", compare="jingyin_label")
    report = here(tmp_path / "2.parquet", tmp_path / "3.parquet", compare="jingyin_label")
    assert report.changes["table"] == {"ordinary": {"ordinary": 2}, "pay_to_stop": {"pay_to_stop": 4}}
    names = pq.read_schema(tmp_path / "3.parquet" / "part-00000.parquet").names
    assert names.count("older_jingyin_label") == 1


def test_a_row_that_is_too_long_for_csv_is_not_left_out_silently(tmp_path: Path, here: Here) -> None:
    pq.write_table(pa.table({"text": ["啊" * 200_000, "x"], "old": ["spam"] * 2}), tmp_path / "in.parquet")
    with pytest.raises(InputError, match=r"can't be read again: field over 128 KiB.*; name an output \.parquet"):
        here(tmp_path / "in.parquet", tmp_path / "out.csv", compare="old")
    assert here(tmp_path / "in.parquet", tmp_path / "out.parquet", compare="old").changes["moved"] == 2
