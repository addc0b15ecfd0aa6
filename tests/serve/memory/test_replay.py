import json
from pathlib import Path

import pytest
from tests.serve.http.http_fakes import Process, until
from typer.testing import CliRunner

from jingyin.cli import app
from jingyin.model.errors import ConfigError, InputError, JingyinError
from jingyin.serve.analyst import ask
from jingyin.serve.memory.replay import Recorded, read_lines

THREAT = "不还钱就爆你通讯录，今晚六点前把三千块转过来"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "rules:\n  - {name: trial, sender: ['1*'], action: block, dry_run: true}\n"
        "  - {name: friends, sender: ['10690*'], action: pass}\n  - {name: rest, review: 0.0001}\n"
    )
    return file


def test_check_shows_which_rule_decides(policy: Path) -> None:
    found = CliRunner().invoke(app, ["policy", "check", str(policy), THREAT, "--sender", "106901"])
    first, *rules = found.output.splitlines()
    assert first.startswith("block")
    assert first.endswith("the bundle alone")
    assert rules == ["block  rule trial  (dry run)", "pass  rule friends"]


def test_replay_counts_by_rule_and_shows_what_changes(policy: Path, tmp_path: Path) -> None:
    traffic, known = tmp_path / "traffic.jsonl", tmp_path / "known.jsonl"
    lines = [
        {"text": THREAT, "sender": "106901", "time": "2026-01-01T10:00:00"},
        {"text": THREAT, "sender": "5", "time": 1.8e9},
        {"text": "明天下午三点老地方见，记得带伞", "action": "pass"},
        {"text": "周末聚餐改到\x1b城东的火锅店，大家六点到", "action": "block"},
    ]
    traffic.write_text("\n".join(json.dumps(each, ensure_ascii=False) for each in lines), encoding="utf-8")
    known.write_text(json.dumps({"text": lines[2]["text"], "action": "review"}) + "\n")
    found = CliRunner().invoke(app, ["policy", "replay", str(policy), str(traffic), "--known", str(known)])
    assert found.output.splitlines() == [
        f"block -> pass  policy  {THREAT}",
        f"pass -> review  known  {lines[2]['text']}",
        f"block -> review  policy  {lines[3]['text']}".replace("\x1b", " "),  # which a terminal would obey
        "        1  rule friends: pass",
        "        1  rule rest: block",
        "        2  rule rest: review",
    ]


def test_a_wrong_line_is_named_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "traffic.jsonl"
    file.write_text('{"text": "a"}\n{"text": 5, "sender": "机密"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"line 2 of .* text: Input should be a valid string") as told:
        list(read_lines(file, Recorded))
    assert "机密" not in str(told.value)
    file.write_bytes('{"text": "机密"}'.encode("gbk"))
    with pytest.raises(InputError, match=r"line 1 of .* can't be read: Invalid JSON"):
        list(read_lines(file, Recorded))


@pytest.mark.parametrize("url", ["http://[::1", "http://a b", "http://127.0.0.1:1"])
def test_a_service_that_is_not_there_is_one_sentence(url: str) -> None:
    with pytest.raises(JingyinError, match=r"can't be reached \("):
        ask(url, "GET", "/admin/known")


@pytest.mark.exhaustive
def test_known_wordings_from_the_command_line(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    labels = {"campaign": ["c1", "c1", "c2", "c3"], "label": ["debt_threat", "debt_threat", "ordinary", None]}
    pq.write_table(pa.table(labels), tmp_path / "labels.parquet")
    templates = ["不还钱就爆你‹…›通讯录,今晚‹datetime›前转", "您的订单‹number›已发货,请保持电话畅通", "‹…›"]
    pq.write_table(pa.table({"campaign": ["c1", "c2", "c3"], "template": templates}), tmp_path / "campaigns.parquet")
    with Process() as server:
        at = ["--url", f"http://127.0.0.1:{server.port}"]

        def jingyin(*arguments: str) -> list[str]:
            found = CliRunner().invoke(app, ["known", *arguments, *at], catch_exceptions=False)
            return found.output.splitlines()

        (number,) = jingyin("add", THREAT, "--note", "案 7")
        (listed,) = jingyin("list")
        assert listed == f"{number}  block         0 hits  by -  案 7"
        jingyin("remove", number)
        assert until(lambda: jingyin("list") == [], 20)
        assert [line.split()[1] for line in jingyin("add", "--campaigns", str(tmp_path))] == ["block", "pass"]
        assert [json.loads(line)["note"] for line in jingyin("list", "--json")] == ["campaign c2", "campaign c1"]
        line = json.dumps({"text": f"{THREAT}\u2028", "action": "pass", "note": "误报"}, ensure_ascii=False) + "\n"
        (tmp_path / "known.jsonl").write_text(line, encoding="utf-8")
        assert [line.split()[1] for line in jingyin("add", "--file", str(tmp_path / "known.jsonl"))] == ["pass"]
        for faulty in ('{"text": "机密"}'.encode(), '{"text": "机密", "action": "pass"}'.encode("gbk")):
            (tmp_path / "known.jsonl").write_bytes(faulty)
            with pytest.raises(ConfigError, match=r"line 1 of .* is no wording; wanted JSON with text and action"):
                jingyin("add", "--file", str(tmp_path / "known.jsonl"))
