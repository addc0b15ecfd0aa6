"""The review queue over HTTP: from a doubted message to a decision."""

import asyncio
import json
import sqlite3
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serve.http.http_fakes import SECRET, FakeScorer, serving

from jingyin.serve.cases import store
from jingyin.serve.cases.cases import Cases, Filter, Message
from jingyin.serve.cases.store import Store
from jingyin.serve.http.service import Service
from jingyin.serve.memory.secret import Secret
from jingyin.serve.settings import CaseSettings

THREAT = "【某某贷】死线已到，今晚八点前不处理，你的家人同事都会收到你的欠款记录"
COPIES = [f"{THREAT}，回{end}" for end in ("电", "话", "复")]
OTHER = "死机的设备已经送修，预计周五可以取回，请带上取货单"


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))


def queued(**flags: Any) -> AbstractAsyncContextManager[tuple[httpx.AsyncClient, Service]]:
    """Run a service whose blocked messages are all kept."""
    return serving(**{"cases": {"block_share": 1}, **flags})


async def listing(client: httpx.AsyncClient, wanted: int, query: str = "state=open") -> list[dict[str, Any]]:
    for _ in range(200):
        cases = (await client.get(f"/admin/cases?{query}")).json()["cases"]
        if len(cases) == wanted:
            return cases  # type: ignore[no-any-return]
        await asyncio.sleep(0.05)
    raise AssertionError(f"{len(cases)} cases")


async def test_near_copies_are_one_case_that_a_decision_turns_into_a_wording_and_a_row(tmp_path: Path) -> None:
    async with queued() as (client, _):
        for number, text in enumerate([*COPIES, COPIES[0], OTHER]):
            body = {"text": text, "sender": "106", "receiver": f"1390000000{number}", "route": "abroad"}
            await client.post("/v1/score", json=body)
        first, second = await listing(client, 2)
        assert (first["state"], first["count"], first["senders"], first["receivers"]) == ("open", 4, 1, 4)
        assert (first["texts"], second["texts"]) == (COPIES, [OTHER])
        assert (first["label"], first["risk"], first["action"]) == ("pay_to_stop", 0.75, "block")
        assert (first["reasons"], first["reports"]) == (["insult"], 0)
        assert first["first"] <= first["last"]
        path = f"/admin/cases/{first['id']}"
        detail = (await client.get(path)).json()
        assert [each["evidence"][0]["start"] for each in detail["examples"]] == [THREAT.index("死")] * 3

        wrong = await client.post(path, json={"decision": "threat", "label": "ordinary"})
        assert wrong.status_code == 422
        done = (await client.post(path, json={"decision": "innocent", "label": "lawful_collection"})).json()
        assert (done["id"], done["state"]) == (first["id"], "decided")
        verdict = (await client.post("/v1/score", json={"text": COPIES[1]})).json()
        assert (verdict["action"], verdict["reason"], verdict["known"]) == ("pass", "known", done["known"])
        again = await client.post(path, json={"decision": "threat"})
        assert (again.status_code, "decided meanwhile: innocent" in again.json()["error"]) == (409, True)
        (line,) = (await client.get(f"/admin/cases/export?since={time.time() - 60}")).text.splitlines()
        row = json.loads(line)
        assert row.pop("decided") <= time.time()
        assert row == {"text": COPIES[0], "label": "lawful_collection", "count": 4, "source": "cases"}
        (tmp_path / "export.jsonl").write_text(line + "\n", encoding="utf-8")
        assert (await client.get("/admin/cases/export?since=2999-01-01")).text == ""
        (await listing(client, 1, "state=decided"))

        assert (await client.delete(path)).json() == {"id": first["id"], "state": "open"}
        assert (await client.post("/v1/score", json={"text": COPIES[1]})).json()["action"] == "block"
        assert (await client.delete(path)).status_code == 409
        assert (await client.get("/admin/known")).json() == {"known": []}
    from jingyin.train.finetune_data import Columns, read_labelled

    rows, rejected = read_labelled([str(tmp_path / "export.jsonl")], Columns(), tmp_path / "run")
    assert ([(row.text, row.label) for row in rows], rejected) == ([(COPIES[0], "lawful_collection")], [])


async def test_a_case_that_changed_since_it_was_listed_is_not_decided() -> None:
    async with queued() as (client, _):
        await client.post("/v1/score", json={"text": THREAT})
        (case,) = await listing(client, 1)
        path = f"/admin/cases/{case['id']}"
        both = [client.post(path, json={"decision": name, "version": 0}) for name in ("threat", "innocent")]
        answers = await asyncio.gather(*both)
        assert sorted(each.status_code for each in answers) == [200, 409]
        assert len((await client.get("/admin/known")).json()["known"]) == 1
        await client.delete(path)
        stale = await client.post(path, json={"decision": "threat", "version": 0})
        assert "look at it again" in stale.json()["error"]


async def test_an_undo_of_a_decision_that_was_changed_is_refused_and_its_wording_stays() -> None:
    async with queued() as (client, _):
        await client.post("/v1/score", json={"text": THREAT})
        (case,) = await listing(client, 1)
        path = f"/admin/cases/{case['id']}"
        await client.post(path, json={"decision": "innocent"})  # version 1
        await client.delete(path)
        known = (await client.post(path, json={"decision": "threat"})).json()["known"]  # version 3
        stale = await client.delete(f"{path}?version=1")
        assert (stale.status_code, "decided meanwhile: threat" in stale.json()["error"]) == (409, True)
        assert (await client.delete(f"{path}?version=one")).status_code == 422
        assert (await client.post("/v1/score", json={"text": THREAT})).json()["known"] == known
        await client.delete(f"/admin/known/{known}")  # by hand: the decision can be undone all the same
        assert (await client.delete(f"{path}?version=3")).json()["state"] == "open"


async def test_filters_pages_and_search() -> None:
    async with queued() as (client, _):
        for text, route in ((THREAT, "a"), (THREAT, "a"), (OTHER, "b%")):
            await client.post("/v1/score", json={"text": text, "route": route, "receiver": text})
        one, two = await listing(client, 2)
        for query, found in (
            ("limit=1", [one]), (f"after={one['id']}", [two]), ("route=b%25", [two]), ("route=b", []),
            ("reason=insult", [one, two]), ("reason=sult", []), ("label=ordinary", []), ("text=送修", [two]),
        ):  # fmt: skip
            assert (await client.get(f"/admin/cases?{query}")).json()["cases"] == found
        assert (await client.get("/admin/cases?limit=0")).status_code == 422
        assert (await client.get("/admin/cases?after=none")).status_code == 404
        assert (await client.get("/admin/cases?route=%00")).status_code == 422


async def test_reports_open_and_raise_cases_and_one_reporter_counts_once() -> None:
    async with queued() as (client, _):
        await client.post("/v1/score", json={"text": OTHER})
        await client.post("/v1/score", json={"text": OTHER})
        assert (await client.post("/v1/report", json={"kind": "unwanted"})).json()["error"] == "text: Field required"
        empty = await client.post("/v1/report", json={"text": " "})
        assert "text: the message is empty" in empty.json()["error"]
        for receiver in ("1", "2", "2", "2"):
            body = {"text": "好的，明天上午十点在老地方见面", "receiver": receiver, "kind": "wrongly_blocked"}
            assert (await client.post("/v1/report", json=body)).status_code == 202
        reported, other = await listing(client, 2)
        assert (reported["reports"], reported["count"], other["count"]) == (2, 1, 2)
        assert reported["reasons"] == ["reported", "wrongly_blocked"]
        assert reported["state"] == "open"


async def test_without_the_setting_every_route_says_that_the_queue_is_off() -> None:
    async with serving() as (client, _):
        for method, path in (
            ("GET", "/admin/cases"), ("GET", "/admin/cases/export"), ("GET", "/admin/cases/1"),
            ("POST", "/admin/cases/1"), ("DELETE", "/admin/cases/1"), ("POST", "/v1/report"),
        ):  # fmt: skip
            answer = await client.request(method, path, json={"text": "a"} if method == "POST" else None)
            assert (answer.status_code, answer.json()["error"][:23]) == (404, "the review queue is off")
        assert (await client.get("/admin/overview")).json()["cases"] is False  # the page then hides the queue


async def test_no_text_or_sender_reaches_log_metrics_or_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with queued() as (client, service):
        body = {"text": f"死死死死，{SECRET}，请注意查看", "sender": "机密发信人", "receiver": "13911112222"}
        await client.post("/v1/score", json=body)
        (case,) = await listing(client, 1)
        await client.post(f"/admin/cases/{case['id']}", json={"decision": "threat"})
        written = service.metrics.render()
    written += capfd.readouterr().err.encode()
    assert b'"event":"case_decided"' in written
    written += b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert not [word for word in ("绝密", SECRET, "机密发信人", "13911112222") if word.encode() in written]
    assert (tmp_path / "cases.sqlite").stat().st_mode & 0o777 == 0o600


# ---- the database


def message(text: str, **changes: Any) -> Message:
    now = time.time()
    return Message(now, text, text, "review", "debt_threat", 0.5, (), "gw", None, "s", "r")._replace(**changes)


def cases(tmp_path: Path, secret: bytes = bytes(32), **settings: Any) -> tuple[Cases, dict[str, int]]:
    dropped: dict[str, int] = {}

    def count(what: str, number: int) -> None:
        dropped[what] = dropped.get(what, 0) + number

    made = Secret(secret, encrypts=True)
    return Cases(Store(tmp_path / "cases.sqlite", made), made, CaseSettings(**settings), count), dropped


DIFFERENT = [THREAT, OTHER, "明天上午十点在老地方见面，不见不散", "您的快递已放在门口，请尽快取走包裹"]


def test_bounds(tmp_path: Path) -> None:
    queue, dropped = cases(tmp_path, cases=2, texts=2, days=1)
    queue.keep([message(text, risk=0.1 * (i + 1)) for i, text in enumerate(DIFFERENT[:3])])
    queue.keep([message(text) for text in COPIES])
    queue.keep([message(DIFFERENT[3], time=time.time() - 90_000)])
    assert queue.expire() == 2  # open ones
    assert {case["texts"][0] for case in queue.listed(Filter(limit=9))} == {THREAT, DIFFERENT[2]}
    assert dropped == {"texts": 2, "old": 1, "cases": 1}


def test_an_old_case_that_is_opened_again_stays_for_analysts(tmp_path: Path) -> None:
    queue, dropped = cases(tmp_path, days=1)
    queue.keep([message(THREAT, time=time.time() - 90_000)])
    (case,) = queue.listed(Filter())
    queue.decide(case, "innocent", "ordinary", None, "anna")
    queue.undo(queue.one(case["id"]))
    assert queue.expire() == 1
    assert ([each["texts"] for each in queue.listed(Filter())], dropped) == ([[THREAT]], {"old": 0})


def test_a_flood_of_different_messages_stays_within_the_bounds_and_is_counted(tmp_path: Path) -> None:
    queue, dropped = cases(tmp_path, cases=100)
    characters = [chr(0x4E00 + number) for number in range(7_200)]
    texts = ["".join(characters[at : at + 12]) for at in range(0, len(characters), 12)]
    queue.keep([message(text, risk=0.1 + number / 1_000) for number, text in enumerate(texts)])
    assert queue.expire() == 100
    assert dropped == {"old": 0, "cases": 500}
    assert {case["texts"][0] for case in queue.listed(Filter(limit=1_000))} == set(texts[500:])  # the most harmful
    assert queue.expire() == 100


def test_pages_and_export_are_read_in_the_order_of_an_index(tmp_path: Path) -> None:
    queue, _ = cases(tmp_path)
    queue.keep([message(text) for text in DIFFERENT])
    statements: list[tuple[str, Any]] = []
    engine = queue.store._engine
    store.event.listen(engine, "before_cursor_execute", lambda *a: statements.append((a[2], a[3])))
    first, *_ = queue.listed(Filter(limit=1))
    queue.listed(Filter(limit=2, after=first["id"]))
    list(queue.export(0))
    with sqlite3.connect(tmp_path / "cases.sqlite") as database:
        plans = [
            [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
            for statement, values in statements
            if "FROM cases" in statement and "ORDER BY" in statement
        ]
    database.close()
    assert plans == [
        ["SEARCH cases USING INDEX cases_by_harm (state=?)"],
        ["SEARCH cases USING INDEX cases_by_harm (state=? AND (harm,id)<(?,?))"],
        ["SEARCH cases USING INDEX cases_by_decision ((decided,id)>(?,?))"],
    ]


def test_what_comes_after_a_decision_opens_a_new_case(tmp_path: Path) -> None:
    queue, _ = cases(tmp_path)
    queue.keep([message(THREAT)])
    (case,) = queue.listed(Filter(limit=9))
    queue.decide(case, "threat", "debt_threat", None, "anna")
    queue.keep([message(THREAT), message(THREAT, report="unwanted", time=time.time() + 60)])
    assert queue.listed(Filter(limit=9)) == []  # messages on their way, and reports that agree
    queue.keep([message(THREAT, time=time.time() + 60)])
    assert len(queue.listed(Filter(limit=9))) == 1


def test_a_newer_version_is_refused_and_an_older_one_brought_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases(tmp_path)[0].keep([message(THREAT)])
    with pytest.raises(store.ConfigError, match="were written with another secret; set state_secret"):
        cases(tmp_path, secret=bytes([1] * 32))[0].listed(Filter(limit=1))
    monkeypatch.setattr(store, "STEPS", (("ALTER TABLE cases ADD COLUMN note TEXT",),))
    assert len(cases(tmp_path)[0].listed(Filter(limit=1))) == 1
    monkeypatch.undo()
    with pytest.raises(store.ConfigError, match="are of version 2, this jingyin knows up to 1; upgrade jingyin"):
        cases(tmp_path)[0].listed(Filter(limit=1))


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    queue, _ = cases(tmp_path)
    queue.keep([message(THREAT)])
    full = store.event.listens_for(queue.store._engine, "begin")(
        lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1")
    )
    texts = [message(f"{number}{OTHER * 20}"[:500]) for number in range(300)]
    with pytest.raises(store.StoreError, match=r"the disk is full \(SQLITE_FULL\); nothing was changed"):
        queue.keep([each._replace(text=each.text * 50) for each in texts])
    store.event.remove(queue.store._engine, "begin", full)
    assert [case["texts"] for case in queue.listed(Filter(limit=9))] == [[THREAT]]


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cases.sqlite").write_text("no database" * 1_000)
    with pytest.raises(store.StoreError, match=r"the database fails \(SQLITE_NOTADB\)"):
        cases(tmp_path)[0].listed(Filter(limit=1))


async def test_while_the_database_is_away_messages_are_answered_counted_and_written_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "_SECONDS", 0.05)
    monkeypatch.setattr("jingyin.serve.cases.writer.RETRY_SECONDS", 0.05)
    async with queued(load=lambda: (FakeScorer(), None)) as (client, service):
        await client.post("/v1/score", json={"text": OTHER})
        await listing(client, 1)
        locked = sqlite3.connect(tmp_path / "cases.sqlite", isolation_level=None)
        locked.execute("BEGIN IMMEDIATE")
        for number in range(5):
            answer = await client.post("/v1/score", json={"text": f"{THREAT}{number}"})
            assert answer.json()["action"] == "block"
        while "jingyin_cases_away 1.0" not in service.metrics.render().decode():
            await asyncio.sleep(0.02)
        assert (await client.post("/v1/report", json={"text": THREAT})).status_code == 503
        locked.execute("ROLLBACK")
        locked.close()
        await listing(client, 2)
        assert "jingyin_cases_away 0.0" in service.metrics.render().decode()
    log = capfd.readouterr().err
    assert log.count('"event":"cases_away"') == log.count('"event":"cases_back"') >= 1


async def test_what_finds_the_queue_full_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store, "_SECONDS", 0.05)
    monkeypatch.setattr("jingyin.serve.cases.writer.RETRY_SECONDS", 0.05)
    async with queued(cases={"block_share": 1, "waiting": 4}, load=lambda: (FakeScorer(), None)) as (client, service):
        await client.post("/v1/score", json={"text": OTHER})
        await listing(client, 1)
        locked = sqlite3.connect(tmp_path / "cases.sqlite", isolation_level=None)
        locked.execute("BEGIN IMMEDIATE")
        await client.post("/v1/score", json={"text": DIFFERENT[2] + "死"})
        while "jingyin_cases_away 1.0" not in service.metrics.render().decode() or service.cases._queue.qsize():
            await asyncio.sleep(0.02)
        for number in range(10):  # the writer holds the one before, 4 wait
            answer = await client.post("/v1/score", json={"text": f"{chr(0x4E00 + number) * 9}死"})
            assert answer.json()["action"] == "block"
        assert 'jingyin_cases_dropped_total{what="queue"} 6.0' in service.metrics.render().decode()
        locked.execute("ROLLBACK")
        locked.close()
        await listing(client, 6)
