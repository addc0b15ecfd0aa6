import json
import re
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.command import run_command
from tests.json_lines import write
from tests.serve.archive.campaigns_helpers import OTHERS, START, Run, members, rows, table
from tests.serve.archive.relabel_helpers import KilledError, kill_at, stop_at

from jingyin import Scorer
from jingyin.model.errors import ConfigError, InputError, JingyinError
from jingyin.model.labels import LABELS
from jingyin.serve.archive import campaign_tables as tables
from jingyin.serve.archive import campaigns as gather
from jingyin.serve.archive import text_files as lines
from jingyin.serve.archive.relabel import relabel

FINAL = ("campaigns.parquet", "members.parquet", "report.html")


def test_what_is_counted_of_campaigns(senders: Path, tmp_path: Path, run: Run, columns: dict[str, str]) -> None:
    report = run(senders, tmp_path / "out", **columns)
    assert (report.rows, report.chosen, report.members, report.campaigns, report.rejects) == (64, 64, 60, 2, {})
    threats, codes = table(tmp_path / "out")
    assert [threats[name] for name in ("rows", "senders", "receivers")] == [40, 3, 40]
    assert [codes[name] for name in ("rows", "texts", "senders", "receivers")] == [20, 1, 1, 5]
    assert threats["texts"] == 15  # names and listeners; amounts are masked
    assert threats["template"] == "‹…›,再不还1706元我们就把你欠钱不还的事告诉通讯录里的‹…›,后果自负"
    assert codes["template"] == "您的验证码是‹code›,十分钟内有效,请勿告诉他人"
    assert "".join(piece["text"] for piece in threats["pieces"]) == threats["template"]
    assert (threats["first_seen"], threats["last_seen"]) == (START, START + timedelta(hours=39))
    assert [(each["start"], each["rows"]) for each in threats["timeline"]] == [
        (START + timedelta(hours=n), 1) for n in range(40)
    ]
    assert codes["timeline"][0] == {"start": datetime(2018, 3, 1), "rows": 1, "disguised": 0}
    assert len(codes["timeline"]) == 20
    assert members(tmp_path / "out") == {
        threats["campaign"]: list(range(1, 41)),
        codes["campaign"]: list(range(41, 61)),
    }
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "_begun.json", "_lock", "_rejects.csv", "_report.json", *FINAL,
    ]  # fmt: skip


def test_labels_and_risks_are_those_of_the_scorer(senders: Path, tmp_path: Path, run: Run, scorer: Scorer) -> None:
    run(senders, tmp_path / "out")
    verdicts = [scorer.score(row["text"]) for row in rows()[:40]]
    threats = table(tmp_path / "out")[0]
    risks = [verdict.risk for verdict in verdicts]
    assert [threats[name] for name in ("risk_min", "risk_max")] == [min(risks), max(risks)]
    assert threats["risk"] == pytest.approx(sum(risks) / 40)
    labels = [verdict.label for verdict in verdicts]
    assert labels.count(threats["label"]) / 40 == threats["label_share"] == max(map(labels.count, labels)) / 40


def test_flagged_rows_by_default(senders: Path, tmp_path: Path, run: Run, scorer: Scorer) -> None:
    flagged = [n for n, row in enumerate(rows(), 1) if scorer.score(row["text"]).action != "pass"]
    report = run(senders, tmp_path / "out", every=False, min_rows=1)
    assert report.chosen == len(flagged)
    assert sorted(row for each in members(tmp_path / "out").values() for row in each) == flagged


def test_ids_depend_neither_on_the_order_nor_on_the_files(tmp_path: Path, run: Run) -> None:
    data = rows()
    run(write(tmp_path / "in.jsonl", data), tmp_path / "one")
    Random(1).shuffle(data)
    parts = [write(tmp_path / f"{n}.jsonl", data[n::3]) for n in range(3)]
    run(parts, tmp_path / "other")
    kept = ("campaign", "rows", "texts")
    one, other = ([{name: row[name] for name in kept} for row in table(tmp_path / name)] for name in ("one", "other"))
    assert one == other
    there = pq.read_table(tmp_path / "other" / "members.parquet").to_pylist()
    assert {row["file"] for row in there} == {str(part) for part in parts}


def test_min_rows(senders: Path, tmp_path: Path, run: Run) -> None:
    assert [run(senders, tmp_path / str(n), min_rows=n).campaigns for n in (1, 20, 21, 41)] == [6, 2, 1, 0]


def test_disguises_and_when_they_were_seen(tmp_path: Path, run: Run) -> None:
    days = [{"text": "再不还钱就告诉你单位", "at": f"2018-03-0{day}"} for day in range(1, 7)]
    for row in days[2:]:
        row["text"] = "\u200b".join(row["text"])
    days[5]["text"] = "再.不.还.钱.就告诉你单位"
    run(write(tmp_path / "in.jsonl", days), tmp_path / "out", time="at")
    (found,) = table(tmp_path / "out")
    assert (found["rows"], found["texts"]) == (6, 1)
    assert found["disguises"] == [
        {"kind": "invisible", "rows": 3, "first": datetime(2018, 3, 3), "last": datetime(2018, 3, 5)},
        {"kind": "gaps", "rows": 1, "first": datetime(2018, 3, 6), "last": datetime(2018, 3, 6)},
    ]
    assert [each["disguised"] for each in found["timeline"]] == [0, 0, 1, 1, 1, 1]


SHOWN = [
    *({"text": f"今天曝光你，今晚回家看电影{'，赎金' if n < 4 else ''}"} for n in range(6)),
    *({"text": "我们一起走吧，明天早上公园见"} for _ in range(3)),
]


def test_reasons_are_counted_the_commonest_first(
    tmp_path: Path, run: Run, signed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [[{"sign": "exposure", "rows": 6}, {"sign": "demand_money", "rows": 4}], []]
    senders = write(tmp_path / "in.jsonl", SHOWN)
    assert run(senders, tmp_path / "out", bundle=signed_bundle).signs == 4
    assert [row["reasons"] for row in table(tmp_path / "out")] == wanted
    monkeypatch.setattr(lines, "ROWS", 2)
    monkeypatch.setattr(gather, "SHARD_ROWS", 2)
    run(senders, tmp_path / "parts", bundle=signed_bundle)
    assert [row["reasons"] for row in table(tmp_path / "parts")] == wanted
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert text.count("reasons: ") == 1
    shown = re.sub("<[^>]*>", "", text)
    assert "reasons: tells others 100%, demands money 67%" in shown


def test_tasks_have_the_reasons_of_their_campaign(tmp_path: Path, run: Run, signed_bundle: Path) -> None:
    tasks = tmp_path / "tasks.json"
    run(write(tmp_path / "in.jsonl", SHOWN), tmp_path / "out", bundle=signed_bundle, label_studio=tasks)
    first, second = (each["data"] for each in json.loads(tasks.read_text(encoding="utf-8")))
    assert (first["reasons"], second["reasons"]) == (["exposure", "demand_money"], [])
    assert first["reason"].splitlines()[0].endswith("%; 告知他人, 索要钱财")


def test_a_bundle_without_signs_says_so(tmp_path: Path, run: Run, make_bundle: Callable[..., Path]) -> None:
    report = run(write(tmp_path / "in.jsonl", SHOWN), tmp_path / "out", bundle=make_bundle())
    assert [row["reasons"] for row in table(tmp_path / "out")] == [[], []]
    found = list(gather.lines(report, tmp_path / "out"))
    assert found[1].endswith(", which has no signs, so no campaign has reasons")
    assert "reasons: " not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_bundle_of_other_labels_is_refused(tmp_path: Path, run: Run, make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="has labels that this jingyin does not know: gambling; "):
        run(write(tmp_path / "in.jsonl", SHOWN), tmp_path / "out", bundle=make_bundle(labels=(*LABELS, "gambling")))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and shards of 30 rows."""
    monkeypatch.setattr(lines, "ROWS", 30)
    monkeypatch.setattr(gather, "SHARD_ROWS", 30)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("small")
def test_a_run_stopped_at_any_step_ends_with_the_same_bytes(senders: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        steps = stop_at(patch, -1, KilledError())
        run(senders, out)
    wanted = {file.name: file.read_bytes() for file in out.iterdir()}
    for number in range(1, steps[0] + 1):
        shutil.rmtree(out)
        kill_at(number, run, senders, out)
        assert all((out / name).read_bytes() == wanted[name] for name in FINAL if (out / name).exists()), number
        run(senders, out)
        assert {file.name: file.read_bytes() for file in out.iterdir()} == wanted, number


@pytest.mark.usefixtures("small")
def test_a_full_disk_leaves_nothing_under_a_final_name(senders: Path, tmp_path: Path, run: Run) -> None:
    full = OSError(28, "No space left on device")
    with (  # noqa: PT012
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(JingyinError, match=r"No space left .* it resumes"),
    ):
        stop_at(patch, 8, full)
        run(senders, tmp_path / "out")
    assert not [name for name in FINAL if (tmp_path / "out" / name).exists()]
    assert run(senders, tmp_path / "out").campaigns == 2


def test_other_options_are_refused_and_fresh_replaces(senders: Path, tmp_path: Path, run: Run) -> None:
    run(senders, tmp_path / "out")
    with pytest.raises(InputError, match=r"holds a run with other fewest rows; name another output.*--fresh"):
        run(senders, tmp_path / "out", min_rows=3)
    assert run(senders, tmp_path / "out", min_rows=30, fresh=True).campaigns == 1


def test_a_task_a_campaign_and_its_answer_for_all_rows(senders: Path, tmp_path: Path, run: Run) -> None:
    out, tasks = tmp_path / "out", tmp_path / "tasks.json"
    assert run(senders, out, label_studio=tasks, sender="from").tasks == 2
    written = json.loads(tasks.read_text(encoding="utf-8"))
    first = table(out)[0]
    assert written[0]["data"]["text"] == first["examples"][0]
    assert written[0]["data"]["reason"].startswith("40 rows, 15 texts, 3 senders; risk ")
    assert first["template"] in written[0]["data"]["reason"]
    result = [{"type": "choices", "value": {"choices": ["debt_threat"]}}]
    written[0]["annotations"], written[1]["annotations"] = [{"result": result}], []
    export = tmp_path / "export.json"
    export.write_text(json.dumps(written), encoding="utf-8")
    report = run(senders, out, sender="from", answers=export)
    assert report.answers == (1, 40, 0, 1)
    labelled = pq.read_table(out / "labels.parquet").to_pylist()
    assert [(row["row"], row["label"]) for row in labelled] == [(n, "debt_threat") for n in range(1, 41)]
    (line,) = (out / "finetune.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {
        "text": first["examples"][0], "label": "debt_threat", "campaign": first["campaign"], "rows": 40,
    }  # fmt: skip


def test_finetune_reads_one_message_a_campaign(senders: Path, tmp_path: Path, run: Run) -> None:
    from jingyin.train.finetune_data import Columns, read_labelled  # the extra `train`

    out, tasks = tmp_path / "out", tmp_path / "tasks.json"
    run(senders, out, label_studio=tasks)
    written = json.loads(tasks.read_text(encoding="utf-8"))
    for each, label in zip(written, ("debt_threat", "ordinary"), strict=True):
        each["annotations"] = [{"result": [{"type": "choices", "value": {"choices": [label]}}]}]
    (tmp_path / "export.json").write_text(json.dumps(written), encoding="utf-8")
    assert run(senders, out, answers=tmp_path / "export.json").answers == (2, 60, 0, 0)
    found, _ = read_labelled([str(out / "finetune.jsonl")], Columns(), tmp_path / "run")
    examples = [row["examples"][0] for row in table(out)]
    assert [(row.text, row.label) for row in found] == list(zip(examples, ("debt_threat", "ordinary"), strict=True))


def test_answers_about_other_campaigns(senders: Path, tmp_path: Path, run: Run) -> None:
    result = [{"type": "choices", "value": {"choices": ["ordinary"]}}]
    export = tmp_path / "export.json"
    export.write_text(json.dumps([{"data": {"text": "?"}, "annotations": [{"result": result}]}]), encoding="utf-8")
    with pytest.raises(InputError, match=r"1 answers of .* match no campaign of .*out; name the folder"):
        run(senders, tmp_path / "out", answers=export)
    assert not (tmp_path / "out" / "finetune.jsonl").exists()


@pytest.mark.exhaustive
def test_two_processes_write_what_one_writes(senders: Path, tmp_path: Path, run: Run) -> None:
    run(senders, tmp_path / "one")
    run(senders, tmp_path / "two", processes=2)
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in FINAL)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = rows()
    data[3]["at"] = "gestern"
    source = write(tmp_path / "in.jsonl", data)
    arguments = ("campaigns", source, tmp_path / "out", "--all", "--time", "at", "--processes", 1)
    assert run_command(*arguments) == 3
    printed = capsys.readouterr()
    assert "60 of 64 rows (64 read) lie in 2 campaigns" in printed.out
    assert "1 row rejected: unreadable time; see" in printed.out
    assert (tmp_path / "out" / "_rejects.csv").read_text().splitlines()[1].endswith("in.jsonl,4,unreadable time,,")
    assert len(members(tmp_path / "out")[table(tmp_path / "out")[0]["campaign"]]) == 40  # a member without a time
    assert run_command(*arguments, "--json") == 3
    assert json.loads(capsys.readouterr().out)["campaigns"] == 2
    assert run_command(*arguments, "--sender", "who") == 2
    assert "there is no column 'who' for --sender; there are: text, from, to, at, kind" in capsys.readouterr().err


def test_parquet_with_dictionaries_and_numbers_for_senders(tmp_path: Path, run: Run) -> None:
    columns = {
        "sms": pa.array(["再不还钱就上门"] * 3).dictionary_encode(), "who": pa.array([1, 1, 2]),
        "when": pa.array([START] * 3, pa.timestamp("ms", "UTC")),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    run(tmp_path / "in.parquet", tmp_path / "out", text_column="sms", sender="who", time="when")
    (found,) = table(tmp_path / "out")
    assert (found["senders"], found["receivers"], found["first_seen"]) == (2, None, START)


def test_templates_are_written_in_blocks(senders: Path, tmp_path: Path, run: Run, monkeypatch) -> None:
    run(senders, tmp_path / "whole")
    monkeypatch.setattr(tables, "_BATCH", 1)
    run(senders, tmp_path / "blocks")
    assert table(tmp_path / "blocks") == table(tmp_path / "whole")


def test_verdicts_of_this_bundle_are_not_scored_again(
    senders: Path, tmp_path: Path, run: Run, columns: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(senders, tmp_path / "scored", **columns)
    for kind in ("parquet", "csv", "jsonl"):
        relabel([senders], tmp_path / f"done.{kind}", processes=1)
        with monkeypatch.context() as patch:
            patch.setattr(gather, "choose", None)
            report = run(tmp_path / f"done.{kind}", tmp_path / kind, **columns)
        assert report.reused == report.rows == 64
        assert table(tmp_path / kind) == table(tmp_path / "scored")
        assert members(tmp_path / kind) == members(tmp_path / "scored")
    told = list(gather.lines(report, tmp_path))
    assert told[1] == "64 rows had verdicts of this bundle and were not scored again"


def test_other_bundles_verdicts_are_scored_again(senders: Path, tmp_path: Path, run: Run, signed_bundle: Path) -> None:
    relabel([senders], tmp_path / "done.parquet", bundle=signed_bundle, processes=1)
    report = run(tmp_path / "done.parquet", tmp_path / "out")
    assert (report.reused, report.stale) == (0, 64)
    told = list(gather.lines(report, tmp_path))
    assert told[1] == "64 rows had verdicts of another bundle and were scored again"


def test_messages_like_no_other_are_no_campaign(tmp_path: Path, run: Run) -> None:
    report = run(write(tmp_path / "in.jsonl", [{"text": text} for text in OTHERS]), tmp_path / "out")
    assert (report.members, report.campaigns) == (0, 0)
    assert "No message is like another." in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["O'Brien", "back\\slash", "label=1", "source=7"])
def test_any_name_of_an_output_folder(senders: Path, tmp_path: Path, run: Run, name: str) -> None:
    answers = tmp_path / "answers.json"
    out = tmp_path / name / name
    report = run(senders, out, label_studio=answers)
    tasks = json.loads(answers.read_text(encoding="utf-8"))
    choice = {"type": "choices", "value": {"choices": ["ordinary"]}}
    answers.write_text(json.dumps([{**task, "annotations": [{"result": [choice]}]} for task in tasks]))
    assert report.members == 60
    assert run(senders, out, answers=answers).answers.rows == 60
    assert {row["file"] for row in pq.read_table(out / "labels.parquet", partitioning=None).to_pylist()} == {
        str(senders)
    }
