"""The ways into jingyin: the same messages have the same verdicts, whichever way they come."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from tests.serve.http.http_fakes import InThread

from jingyin import LABELS, Scorer
from jingyin.serve import scorer as scoring

MESSAGES = [
    "明天下午三点老地方见，记得带伞",
    "有人出钱让我每天拨你的号，想清静就转两百到这个微信",
    "【XX银行】您尾号1234的信用卡本期账单3,482.15元，最后还款日3月15日，如已还款请忽略。",
    "再不还钱就把你欠钱的事群发给你通讯录所有人，今晚6点前处理",
    "再不还钱就把你欠钱的事群发给你通讯录所有人，今晚8点前处理",
    "您的验证码是482913，5分钟内有效，请勿告诉他人。",
    "妳的電話從今晚開始不會停，三萬塊了事",
    "呼.死.你，口乎死亻尔，\u200b\u200b不给钱就不停",
    "",
    "   ",
    "😀😀😀",
    "line\nbreak\ttab",
    "今天天气不错，" * 100 + "不给两百这电话就一直响",
    "今天天气不错，" * 300 + "不给两百这电话就一直响" + "今天天气不错，" * 300,
    "明天下午三点老地方见，记得带伞",
]
FIELDS = ("label", "risk", "action", "probabilities", "bundle")

Verdicts = list[dict[str, Any]]


def by_score(folder: Path, messages: list[str], bundle: Path | None) -> Verdicts:
    scorer = Scorer.load(bundle)
    return [scorer.score(text).as_dict() for text in messages]


def by_score_many(folder: Path, messages: list[str], bundle: Path | None) -> Verdicts:
    return [verdict.as_dict() for verdict in Scorer.load(bundle).score_many(messages)]


def by_processes(folder: Path, messages: list[str], bundle: Path | None) -> Verdicts:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "CHUNK", 3)  # the first three are scored before processes start
        patch.setattr(scoring, "_ALONE_SECONDS", 0.0)
        return [verdict.as_dict() for verdict in Scorer.load(bundle).score_many(messages, processes=2)]


def by_http(folder: Path, messages: list[str], bundle: Path | None) -> Verdicts:
    with InThread(load=lambda: (Scorer.load(bundle), None), deadline_ms=5_000) as server:
        url = f"http://127.0.0.1:{server.port}/v1/score"
        alone = [ask(url, {"text": text}) for text in messages]
        assert [{**each, "request_id": None, "stage": None} for each in alone] == [
            {**each, "request_id": None, "stage": None} for each in ask(url, {"texts": messages})["results"]
        ]
        return alone


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    with urlopen(Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}), timeout=60) as response:
        return json.load(response)  # type: ignore[no-any-return]


def by_relabel(folder: Path, messages: list[str], bundle: Path | None) -> Verdicts:
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'jingyin[batch]'")
    from jingyin.serve.archive.relabel import relabel

    relabel([archive(folder, messages)], folder / "out.parquet", bundle=bundle, processes=1)
    return relabelled(folder / "out.parquet")


def by_spark(folder: Path, messages: list[str], bundle: Path | None) -> Verdicts:
    pytest.importorskip("pyspark", reason="needs pyspark: pip install 'jingyin[spark]'")
    if not shutil.which("java"):
        pytest.skip("needs Java 17")
    command = [sys.executable, "-m", "jingyin.serve.spark", "--master", "local[1]"]
    command += [archive(folder, messages), folder / "out", *(["--bundle", bundle] if bundle else [])]
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
    environment |= {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_HOSTNAME": "localhost"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return relabelled(folder / "out")


def archive(folder: Path, messages: list[str]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": list(range(len(messages))), "text": messages}), folder / "in.parquet")
    return folder / "in.parquet"


def relabelled(out: Path) -> Verdicts:
    import pyarrow.parquet as pq

    rows = sorted(pq.read_table(out).to_pylist(), key=lambda row: row["id"])
    return [{name.removeprefix("jingyin_"): value for name, value in row.items()} for row in rows]


@pytest.fixture(scope="module")
def wanted(scorer: Scorer) -> Verdicts:
    """The verdicts of a scorer that remembers nothing."""
    return [scorer.without_memory().score(text).as_dict() for text in MESSAGES]


def test_the_messages_are_of_several_kinds(wanted: Verdicts) -> None:
    assert {verdict["stage"] for verdict in wanted} == {"prefilter", "network"}
    assert len({verdict["action"] for verdict in wanted}) >= 2
    assert all(tuple(verdict["probabilities"]) == LABELS for verdict in wanted)


SPARK = pytest.param(by_spark, marks=[pytest.mark.external, pytest.mark.exhaustive])


WAYS = [by_score, by_score_many, by_processes, by_http, by_relabel, SPARK]
Way = Callable[[Path, list[str], Path | None], Verdicts]


def compared(verdicts: Verdicts) -> Verdicts:
    """Return what the ways must agree on; columns hold of a reason its sign alone."""
    signs = [[each if isinstance(each, str) else each["sign"] for each in verdict["reasons"]] for verdict in verdicts]
    kept = [{name: verdict[name] for name in FIELDS} for verdict in verdicts]
    return [{**each, "signs": found} for each, found in zip(kept, signs, strict=True)]


@pytest.mark.parametrize("way", WAYS)
def test_the_same_verdicts(way: Way, wanted: Verdicts, tmp_path: Path) -> None:
    assert compared(way(tmp_path, MESSAGES, None)) == compared(wanted)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_reasons(way: Way, signed_bundle: Path, signed: Scorer, tmp_path: Path) -> None:
    messages = ["赎金，曝光你", "回家吃饭", "曝\u200b光", "单位", "", "今天轰炸，全村曝光"]
    wanted = [signed.score(text) for text in messages]
    assert [len(verdict.reasons) for verdict in wanted] == [2, 0, 1, 0, 0, 2]
    assert compared(way(tmp_path, messages, signed_bundle)) == compared([verdict.as_dict() for verdict in wanted])
