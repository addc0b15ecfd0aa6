import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.command import run_command
from tests.json_lines import read, write
from tests.serve.archive.relabel_helpers import kill_at

from jingyin import Scorer
from jingyin.model.errors import ConfigError, InputError
from jingyin.serve.archive import mine as job
from jingyin.serve.archive.mine import ORDINARY_RISK, MineResult, mine, take_turns
from jingyin.serve.label_studio import LABELS

Mine = Callable[..., MineResult]
THREATS = (
    "有人出钱让我每天拨你的号，想清静就转两百到这个微信",
    "再不还钱就把事情发给你通讯录所有人",
    "不给五百就给你店里天天刷差评",
    "照片在我手里，转三千过来就删，不然发给你全家",
)
INNOCENT = ("明天下午三点老地方见，记得带伞", "您的验证码是482913，请勿告诉他人", "晚上吃火锅吗", "妈我到学校了别担心",
            "我刚收到条短信说不给三百块就打爆我电话，这种要报警吗")  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """Four threats, the first in 30 near-copies, and five innocents with a hundred copies."""
    copies = [{"text": f"{THREATS[0]}{n}", "sender": f"s{n % 3}", "label": "old", "n": n} for n in range(30)]
    others = [{"text": text, "sender": "s9", "label": "old", "n": n} for n, text in enumerate(THREATS[1:], 100)]
    innocents = [{"text": text, "sender": None, "label": "old", "n": 200} for text in INNOCENT]
    return [*innocents, *copies, *others, *innocents * 20]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "in.jsonl", rows())


@pytest.fixture
def picked(tmp_path: Path) -> Mine:
    def call(*sources: Path, **options: Any) -> MineResult:
        return mine(sources, tmp_path / "mined.jsonl", processes=1, **options)

    return call


def test_one_of_each_group_is_picked_and_why(source: Path, tmp_path: Path, picked: Mine, scorer: Scorer) -> None:
    result = picked(source)
    found = read(tmp_path / "mined.jsonl")
    texts = [row["text"] for row in found]
    assert set(THREATS) == {text.rstrip("0123456789") for text in texts}
    assert len({text.rstrip("0123456789") for text in texts}) == len(texts) == sum(result.picked.values())
    assert [row["why"] for row in found[:2]] == ["riskiest", "threshold"]
    for row in found:
        verdict = scorer.score(row["text"])
        assert (row["risk"], row["label"], row["action"]) == (verdict.risk, verdict.label, verdict.action)
        assert row["reasons"] == [reason.sign for reason in verdict.reasons]
        assert all(row["text"][each["start"] : each["end"]] == each["text"] for each in row["evidence"])
        assert 0 <= row["disagreement"] <= 1
        assert row["older_label"] == "old"
    assert found[0]["evidence"]
    assert result.rows == len(rows())


def test_ordinary_ones_come_once_and_are_like_no_pick(source: Path, tmp_path: Path, picked: Mine) -> None:
    result = picked(source)
    drawn = read(tmp_path / "mined-ordinary.jsonl")
    assert sorted(row["text"] for row in drawn) == sorted(INNOCENT)
    assert all((row["label"], row["source"]) == ("ordinary", "mined") for row in drawn)
    assert all(row["risk"] < ORDINARY_RISK for row in drawn)
    assert result.ordinary == len(drawn)
    assert picked(source, ordinary=1, fresh=True).ordinary == 1


def test_decided_messages_and_their_near_copies_are_left_out(source: Path, tmp_path: Path, picked: Mine) -> None:
    decided = write(tmp_path / "decided.jsonl", [{"text": f"{THREATS[0]}99"}, {"text": INNOCENT[0]}])
    picked(source, decided=[decided])
    texts = {row["text"] for name in ("mined", "mined-ordinary") for row in read(tmp_path / f"{name}.jsonl")}
    assert not [text for text in texts if text.startswith((THREATS[0], INNOCENT[0]))]
    assert THREATS[1] in texts


def test_an_interrupted_run_resumes_to_the_same_bytes(
    source: Path, tmp_path: Path, picked: Mine, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "SHARD_ROWS", 20)
    kill_at(20, picked, source)
    assert not (tmp_path / "mined.jsonl").exists()
    assert list((tmp_path / "mined.run").glob("part-*"))
    picked(source)
    mine([source], tmp_path / "whole.jsonl", processes=1)
    assert not list((tmp_path / "mined.run").glob("*part-*"))
    for name in ("", "-ordinary"):
        assert (tmp_path / f"mined{name}.jsonl").read_bytes() == (tmp_path / f"whole{name}.jsonl").read_bytes()


def test_a_finished_run_only_writes_tasks(source: Path, tmp_path: Path, picked: Mine) -> None:
    before = picked(source)
    result = picked(source, label_studio=tmp_path / "tasks.json")
    assert result == MineResult(**{**vars(before), "tasks": sum(before.picked.values())})
    tasks = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["text"] for task in tasks] == [row["text"] for row in read(tmp_path / "mined.jsonl")]
    assert all(task["predictions"][0]["result"][0]["value"]["choices"][0] in LABELS for task in tasks)
    assert tasks[0]["data"]["reason"].startswith("riskiest, risk ")
    with pytest.raises(InputError, match="holds a run with other keep; name another output"):
        picked(source, keep=7)
    (tmp_path / "mined.jsonl").unlink()
    with pytest.raises(InputError, match="is missing, though this run wrote it; run again with --fresh"):
        picked(source)


def test_parquet_csv_and_other_columns(tmp_path: Path, picked: Mine) -> None:
    table = pa.table({"sms": list(THREATS), "risk": [1, 2, 3, 4], "older_risk": list("abcd"), "at": [[1], [], [2], []]})
    pq.write_table(table, tmp_path / "in.parquet")
    picked(tmp_path / "in.parquet", text_column="sms")
    found = {row["sms"]: row for row in read(tmp_path / "mined.jsonl")}
    assert found[THREATS[1]]["older_older_risk"] == 2
    assert found[THREATS[2]]["older_risk"] == "c"
    assert found[THREATS[2]]["at"] == [2]
    (tmp_path / "in.csv").write_text("text\n" + "\n".join(THREATS) + "\n\n", encoding="utf-8")
    out = tmp_path / "other.jsonl"
    assert run_command("mine", tmp_path / "in.csv", "--out", out, "--keep", 2, "--processes", 1) in (0, 3)
    assert len(read(out)) == 2


def test_no_origin_gives_more_than_its_share() -> None:
    ranked = {"riskiest": range(100), "threshold": range(99, -1, -1)}
    alone = {i: i for i in range(100)}
    senders: list[object] = ["a"] * 60 + [f"s{i}" for i in range(39)] + [None]
    picks = take_turns(ranked, alone, [senders], 20, set())
    assert [*picks.items()][:3] == [(0, "riskiest"), (99, "threshold"), (1, "riskiest")]
    assert sum(i < 60 for i in picks) == 2
    assert len(picks) == 20
    few: list[object] = ["a"] * 60 + ["b"] * 20 + ["c"] * 10 + ["d"] * 10
    assert sum(i < 60 for i in take_turns({"riskiest": range(100)}, alone, [few], 20, set())) == 10


@pytest.mark.parametrize(
    ("out", "options", "error", "words"),
    [
        ("mined.parquet", {}, ConfigError, r"can't be written as \.parquet; name an output \.jsonl"),
        ("mined.jsonl.gz", {}, ConfigError, r"can't be written as \.gz; name an output \.jsonl"),
        ("no/mined.jsonl", {}, ConfigError, "must name a file in a folder that exists"),
        (".", {}, ConfigError, "must name a file in a folder that exists"),
        ("mined.jsonl", {"keep": 0}, ConfigError, "--keep must be at least 1"),
        ("mined.jsonl", {"sender": "from"}, ConfigError, "there is no column 'from' for --sender; there are: text, s"),
        ("in.jsonl", {}, ConfigError, "input and output are both"),
        ("mined.jsonl", {"decided": ["none.jsonl"]}, ConfigError, r"none\.jsonl does not exist"),
    ],
)
def test_wrong_calls(
    source: Path, tmp_path: Path, out: str, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        mine([source], tmp_path / out, processes=1, **options)


def test_an_input_without_messages(tmp_path: Path, picked: Mine) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": null}\n', encoding="utf-8")
    with pytest.raises(InputError, match="the input holds no rows that can be scored; there is nothing to mine"):
        picked(tmp_path / "in.jsonl")
