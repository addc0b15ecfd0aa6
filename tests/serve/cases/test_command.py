"""`jingyin cases report` and `jingyin cases export`, against a service and against faults."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests import json_lines
from tests.command import run_command
from tests.serve.free_ports import free_ports
from tests.serve.http.http_fakes import InThread, Process

from jingyin.model.errors import ConfigError
from jingyin.serve.cases.writer import check_cases
from jingyin.serve.settings import load_settings

THREAT = "【某某贷】死线已到，今晚八点前不处理，你的家人同事都会收到你的欠款记录"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cases(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `jingyin cases` in this process: arguments in, exit code, output and errors out."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = run_command("cases", *arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with Process(cases={}) as server:
        yield f"http://127.0.0.1:{server.port}"


def write(path: Path, *rows: dict[str, Any]) -> str:
    return str(json_lines.write(path, rows))


def test_a_list_is_sent_and_what_is_decided_is_exported(cases: Run, url: str, tmp_path: Path) -> None:
    rows = [{"text": THREAT, "receiver": f"138****000{number}"} for number in range(3)]
    empty = [{"text": " ", "receiver": "138****0009"}, {"text": "\u200b\u200b"}]  # the second cleans to nothing
    file = write(tmp_path / "list.jsonl", *rows, *empty)
    assert cases("report", file, "--url", url) == (3, "3 reports sent, 2 rows without a text left out, 0 refused\n", "")
    (case,) = json.loads(ask_service(url, "GET", "/admin/cases"))["cases"]
    assert (case["reports"], case["reasons"][-1]) == (3, "reported")
    assert cases("export", "--url", url) == (0, "", "")
    ask_service(url, "POST", f"/admin/cases/{case['id']}", {"decision": "threat", "label": "debt_threat"})
    code, out, err = cases("export", "--since", "2020-01-01", "--url", url)
    row = json.loads(out)
    assert (code, err, row["text"], row["label"], row["source"]) == (0, "", THREAT, "debt_threat", "cases")
    assert cases("export", "--since", "2999-01-01", "--url", url) == (0, "", "")


def ask_service(url: str, method: str, path: str, body: object = None) -> str:
    from jingyin.serve.analyst import ask_text

    return ask_text(url, method, path, body)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["report", "columns.jsonl"], 2, ["'text'", "inhalt"]),
        (["report", "none.jsonl"], 2, ["none.jsonl"]),
        (["report", "good.jsonl", "--kind", "rude"], 1, ["kind"]),
        (["export", "--since", "yesterday"], 1, ["since"]),
    ],
)
def test_wrong_calls(
    cases: Run, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int,
    words: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "columns.jsonl", {"inhalt": THREAT})
    write(tmp_path / "good.jsonl", {"text": THREAT})
    found, out, err = cases(*arguments, "--url", url)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert all(word in err for word in words)
    assert THREAT not in err


def test_a_row_that_the_service_refuses_costs_no_other(cases: Run, url: str, tmp_path: Path) -> None:
    rows = [{"text": THREAT, "kind": "rude"}, {"text": THREAT, "time": "-1e300"}, {"text": THREAT, "time": "soon"}]
    good = {"text": "您好，我来修水管，半小时到", "receiver": "139****0001", "time": "2026-12-01T08:00:00+08:00"}
    code, out, err = cases("report", write(tmp_path / "list.jsonl", *rows, good), "--url", url)
    assert (code, out) == (3, "1 reports sent, 0 rows without a text left out, 3 refused\n")
    assert err.startswith("the first refusal: ")
    assert "kind" in err
    assert THREAT not in err
    listed = json.loads(ask_service(url, "GET", "/admin/cases"))["cases"]
    assert good["text"] in [text for case in listed for text in case["texts"]]


def test_times_that_python_does_not_know_cost_no_other_row(cases: Run, url: str, tmp_path: Path) -> None:
    times = pa.array([2**50, 1_796_000_000_000, 2**62, None], pa.timestamp("ms", "Asia/Shanghai"))
    texts = [f"{THREAT}，第{number}次" for number in "一二三四"]
    pq.write_table(pa.table({"text": texts, "time": times, "score": [0.5] * 4}), tmp_path / "list.parquet")
    code, out, err = cases("report", str(tmp_path / "list.parquet"), "--url", url)
    assert (code, out) == (3, "2 reports sent, 0 rows without a text left out, 2 refused\n")
    assert "time" in err


def test_a_service_that_cannot_be_reached(cases: Run, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    file = write(tmp_path / "list.jsonl", {"text": THREAT})
    for arguments in (["report", file], ["export"]):
        code, out, err = cases(*arguments, "--url", url)
        assert (code, out) == (1, "")
        assert err == f"jingyin: {url} can't be reached (URLError); is the service running there?\n"
    assert cases("export", "--url", "service")[0] == 2


def test_a_service_without_the_queue(cases: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "list.jsonl", {"text": THREAT})
    with InThread() as server:
        for arguments in (["report", file], ["export"]):
            code, out, err = cases(*arguments, "--url", f"http://127.0.0.1:{server.port}")
            assert (code, out, err.count("\n")) == (1, "", 1)
            assert "answers 404: the review queue is off; turn it on with the setting cases" in err


def test_a_newer_version_or_another_secret_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    (tmp_path / "a").mkdir()
    settings = load_settings(cases={})
    (tmp_path / "a" / "secret").write_text("11" * 32, encoding="ascii")
    check_cases(settings, tmp_path / "a")
    (tmp_path / "a" / "secret").write_text("22" * 32, encoding="ascii")
    with pytest.raises(ConfigError, match="were written with another secret; set state_secret to that file"):
        check_cases(settings, tmp_path / "a")
    with sqlite3.connect(tmp_path / "cases.sqlite") as database:
        database.execute("UPDATE state SET version = 99")
    database.close()
    with pytest.raises(ConfigError, match="are of version 99, this jingyin knows up to 1; upgrade jingyin"):
        check_cases(settings, tmp_path / "a")
