import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
from tests.json_lines import read, write
from tests.serve.archive.campaigns_helpers import Run, members, rows, table
from tests.serve.archive.relabel_helpers import Here

from jingyin.model.errors import ConfigError, InputError

HAN = [chr(c) for c in range(0x4E00, 0x9000)]


def test_no_rows(tmp_path: Path, run: Run) -> None:
    (tmp_path / "in.csv").write_text("text\n")
    with pytest.raises(InputError, match="the input holds no rows that can be scored"):
        run(tmp_path / "in.csv", tmp_path / "out")
    with pytest.raises(InputError, match="the input holds no rows that can be scored"):
        run(write(tmp_path / "null.jsonl", [{"text": None}]), tmp_path / "other")


@pytest.mark.parametrize("every", [True, False])
def test_one_row(tmp_path: Path, run: Run, every: bool) -> None:
    report = run(write(tmp_path / "in.jsonl", [{"text": "你好"}]), tmp_path / "out", every=every)
    assert (report.rows, report.members, report.campaigns) == (1, 0, 0)
    assert table(tmp_path / "out") == []


def test_all_rows_equal(tmp_path: Path, run: Run) -> None:
    run(write(tmp_path / "in.jsonl", [{"text": "再不还钱就上门"}] * 500), tmp_path / "out")
    (found,) = table(tmp_path / "out")
    assert (found["rows"], found["texts"], found["template"]) == (500, 1, "再不还钱就上门")


def test_empty_messages_are_alike(tmp_path: Path, run: Run) -> None:
    run(write(tmp_path / "in.jsonl", [{"text": ""}, {"text": " "}, {"text": "\u200b"}]), tmp_path / "out")
    assert list(members(tmp_path / "out").values()) == [[1, 2, 3]]


@pytest.mark.exhaustive
def test_rows_of_100_000_characters(tmp_path: Path, run: Run) -> None:
    rng = Random(1)
    long = "".join(rng.choices(HAN, k=100_000))
    data = [long, long[:-5], "".join(rng.choices(HAN, k=100_000)), "啊" * 100_000, "啊" * 99_000]
    run(write(tmp_path / "in.jsonl", [{"text": text} for text in data]), tmp_path / "out")
    assert sorted(members(tmp_path / "out").values()) == [[1, 2], [4, 5]]
    assert (tmp_path / "out" / "report.html").stat().st_size < 20_000


def test_wrong_times_are_counted_and_not_fatal(tmp_path: Path, run: Run) -> None:
    data = [row | {"at": "05.03.2018" if n else "2018-03-05", "id": n} for n, row in enumerate(rows())]
    report = run(write(tmp_path / "in.jsonl", data), tmp_path / "out", time="at", id_column="id")
    assert (report.rejects, report.campaigns) == ({"unreadable time": 63}, 2)
    listed = (tmp_path / "out" / "_rejects.csv").read_text(encoding="utf-8").splitlines()
    assert listed[1].endswith("in.jsonl,2,unreadable time,1,")


def test_times_that_can_all_not_be_read_end_the_run_before_it_begins(tmp_path: Path, run: Run) -> None:
    path = write(tmp_path / "in.jsonl", [row | {"at": "05.03.2018"} for row in rows()])
    wanted = r"none of the first 64 times in column 'at' can be read, such as '05.03.2018'"
    with pytest.raises(ConfigError, match=wanted):
        run(path, tmp_path / "out", time="at")
    with pytest.raises(ConfigError, match=r"none of the first 64 times in column 'text' can be read; say how"):
        run(path, tmp_path / "out", time="text")  # named by mistake: no message in an error
    assert run(path, tmp_path / "out", time="at", time_format="%d.%m.%Y").rejects == {}


def test_columns_of_mixed_types_cost_no_row(tmp_path: Path, run: Run) -> None:
    times = [1520253180, "2018-03-05 12:33", 1520253180000, None]
    data = [
        {"text": "再不还钱就上门", "at": time, "from": sender}
        for time, sender in zip(times, ["a", 5, {"b": 1}, None], strict=True)
    ]
    report = run(write(tmp_path / "in.jsonl", data), tmp_path / "out", time="at", sender="from")
    (found,) = table(tmp_path / "out")
    assert report.rejects == {}
    assert (found["rows"], found["senders"]) == (4, 3)
    assert found["first_seen"] == found["last_seen"] - timedelta(0)


def test_an_empty_field_of_csv_is_a_missing_time(tmp_path: Path, run: Run) -> None:
    (tmp_path / "in.csv").write_text("text,at\n再见,\n再见,2018-03-05\n再见,5.3.2018\n", encoding="utf-8")
    assert run(tmp_path / "in.csv", tmp_path / "out", time="at").rejects == {"unreadable time": 1}
    (tmp_path / "in.csv").write_text("text,at\n再见,\n再见,\n", encoding="utf-8")
    assert run(tmp_path / "in.csv", tmp_path / "none", time="at").rejects == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_column": "sms"}, r"has no column 'sms'; it has: text, from, to, at, kind; name one"),
        ({"time": "when"}, "there is no column 'when' for --time"),
        ({"time_format": "%Y"}, "a time format needs a column of times"),
        ({"min_rows": 0}, "--min-rows must be at least 1, got 0"),
        ({"encoding": "klingon"}, "encoding 'klingon' is unknown"),
        ({"label_studio": "/nowhere/at/all.json"}, "must lie in a folder that exists"),
        ({"label_studio": "tasks.json", "answers": "./tasks.json"}, "would replace the answers in ./tasks.json"),
    ],
)
def test_wrong_calls(senders: Path, tmp_path: Path, run: Run, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(senders, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_someone_else_is_left_alone(senders: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty and holds no earlier run"):
        run(senders, tmp_path / "out", fresh=True)
    assert (tmp_path / "out" / "report.html").read_text() == "years of work"


def test_no_side_file_and_no_error_quotes_a_message(tmp_path: Path, run: Run) -> None:
    lines = [*(f'{{"text": "机密{n}号"}}' for n in range(4)), '{"text": "机密", "机密": 1}', '["机密"']
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run(tmp_path / "in.jsonl", tmp_path / "out")
    side = [file for file in (tmp_path / "out").iterdir() if file.name.startswith("_")]
    assert all("机密" not in file.read_text(encoding="utf-8") for file in side)


@pytest.mark.parametrize(
    "changed",
    [{"jingyin_label": "机密"}, {"jingyin_risk": "机密"}, {"jingyin_reasons": "机密"}, {"jingyin_label": None}],
)
def test_verdicts_that_were_changed_since(tmp_path: Path, run: Run, here: Here, changed: dict) -> None:
    here(write(tmp_path / "in.jsonl", [{"text": "再不还钱就上门"}] * 2), tmp_path / "out.jsonl")
    (part,) = (tmp_path / "out.jsonl").glob("part-*")
    edited = [row | changed for row in read(part)]
    with pytest.raises(InputError, match=r"edited.jsonl has verdicts that `jingyin relabel` did not write") as error:
        run(write(tmp_path / "edited.jsonl", edited), tmp_path / "campaigns")
    assert "机密" not in str(error.value)


def test_spark_names_all_that_is_missing() -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec; missing = ('pyarrow', 'pyspark'); "
        "sys.modules.update(dict.fromkeys(missing)); "
        "u.find_spec = lambda n, *a: None if n in missing else find(n, *a); import jingyin.serve.spark"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    wanted = "ConfigError: relabelling on Spark needs pyarrow, pyspark; run: pip install 'jingyin[spark]'"
    assert done.stderr.splitlines()[-1].endswith(wanted)
