"""The memory of running services: several workers, several machines, an analyst, and what a server holds of it all."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serve.http.http_fakes import Process, serving, until
from tests.serve.http.test_page import Browser, browser  # noqa: F401  a fixture
from tests.serve.memory.conftest import Valkey
from tests.serve.memory.gateway import MemoryUser, Slow
from tests.serve.processes import children

from jingyin.model.errors import ConfigError
from jingyin.serve.memory.known import NewWording
from jingyin.serve.memory.memory import Memory, _rounded, shared_state
from jingyin.serve.memory.remote import Guarded
from jingyin.serve.memory.secret import Secret
from jingyin.serve.memory.state import PUSHED, Local, Op
from jingyin.serve.settings import load_settings

THREAT = "不还钱就叫人弄死你全家，今天晚上八点以前把钱转到我的账户"
COPY = "不还钱就叫人弄死你全家，明天中午九点以前把钱转到我的账户"
MILD = "明天再不转过来你看着办"
NOTICE = "【城市供水】您本期水费已死账单，户号请于五月二十日前缴纳，逾期将产生违约金"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "state_secret"
    file.write_text("ab" * 32)
    return file


class Machine:
    """A service with two workers; each request comes on a connection of its own, to either."""

    def __init__(self, **settings: Any) -> None:
        given = {"senders": {}, "conversations": {}, "burst": {"count": 3}, "workers": 2, **settings}
        self.process = Process({"PATIENT": "1"}, **given)

    def __enter__(self) -> "Machine":
        self.process.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.__exit__()

    def call(self, method: str, path: str, body: object = None) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        ask = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        answer = self.process.send(ask.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        head, _, found = answer.partition(b"\r\n\r\n")
        return json.loads(found) if b"application/json" in head else found.decode()

    def score(self, text: str, **more: Any) -> str:
        answer = self.call("POST", "/v1/score", {"text": text, **more})
        return f"{answer['action']} {answer['reason']}"

    def metric(self, name: str) -> float:
        found = [line for line in self.call("GET", "/metrics").splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def check(machines: list[Machine]) -> None:
    """Check that what one worker of one machine has seen is known to all of them."""
    turns = [machines[i % len(machines)] for i in range(8)]
    first, *others = turns
    assert first.score(THREAT, sender="gang", receiver="x") == "block scored"
    assert [each.score(MILD, sender="gang") for each in others] == ["review sender"] * 7
    assert first.score("快死 微信 laowang_88") == "block scored"
    assert [each.score("加微信 laowang_88") for each in others] == ["review contact"] * 7
    held = [each.score("本店今日全场五折欢迎新老顾客光临惠顾") for each in turns]
    assert held == ["pass scored"] * 4 + ["review burst"] * 4
    part = {"keys": ["k"], "part": "a", "seconds": 60}
    assert [each.call("POST", "/v1/parts", part)["keys"][0]["parts"] for each in turns] == [[]] + [["a"]] * 7
    for i, each in enumerate(turns):
        each.score(f"第{'零一二三四五六七'[i]}条短信", sender="a", receiver="b")
    assert sum(each.metric('jingyin_joined_texts_total{outcome="same"}') for each in machines) == 7
    added = first.call("POST", "/admin/known", {"text": NOTICE, "action": "pass", "note": "水费"})
    until(lambda: all(each.score(NOTICE) == "pass known" for each in turns))
    (listed,) = others[0].call("GET", "/admin/known")["known"]
    assert (listed["id"], listed["note"]) == (added["id"], "水费")
    assert listed["hits"] >= 8
    assert others[0].call("DELETE", f"/admin/known/{added['id']}") == {"removed": added["id"]}
    until(lambda: all(each.score(NOTICE) == "block scored" for each in turns))


@pytest.mark.exhaustive
def test_workers_of_a_machine_remember_together_without_a_server(tmp_path: Path) -> None:
    with Machine(known=tmp_path / "known.json") as machine:
        check([machine])


@pytest.mark.exhaustive
@pytest.mark.external
def test_two_machines_with_two_workers_each_remember_together(valkey: Valkey, secret: Path) -> None:
    given = {"state": valkey.address, "state_secret": secret}
    with Machine(**given) as one, Machine(**given) as other:
        check([one, other])


@pytest.mark.exhaustive
def test_memory_survives_a_killed_worker_and_a_reload_and_wordings_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "known.json"
    with Machine(known=file) as machine:
        machine.score(THREAT, sender="gang")
        machine.call("POST", "/admin/known", {"text": COPY, "action": "review"})
        os.kill(children(machine.process.process.pid)[0], signal.SIGKILL)
        until(lambda: machine.metric("jingyin_workers_replaced_total") == 1)
        assert [machine.score(MILD, sender="gang") for _ in range(6)] == ["review sender"] * 6
        machine.call("POST", "/admin/reload")
        until(lambda: machine.metric('jingyin_reloads_total{outcome="done"}') == 2)
        assert [machine.score(MILD, sender="gang") for _ in range(6)] == ["review sender"] * 6
    assert file.stat().st_mode & 0o777 == 0o600
    with Machine(known=file) as machine:
        until(lambda: machine.score(THREAT) == "review known")
        assert machine.score(MILD, sender="gang") == "pass scored"


@pytest.mark.exhaustive
@pytest.mark.external
def test_no_sender_number_or_text_is_in_the_server(valkey: Valkey, secret: Path) -> None:
    canaries = ("13812345678", "13987654321", "laowang_88", "evil-site.com", "机密内容", "gateway-key")
    with Machine(state=valkey.address, state_secret=secret) as machine:
        for text in (
            "机密内容 加微信laowang_88 打13812345678 见 http://evil-site.com/x",
            "死 13812345678 机密内容机密内容机密内容",
        ):
            for _ in range(3):
                machine.score(text, sender="13987654321", receiver="13812345678", route="gateway-key")
        wording = {"text": f"{THREAT}机密内容", "action": "block", "note": "机密内容 13812345678"}
        machine.call("POST", "/admin/known", wording)
        until(lambda: machine.score(wording["text"], sender="13987654321") == "block known")
    dumped = b""
    import redis

    with redis.Redis(unix_socket_path=str(valkey.socket), protocol=2) as client:
        keys = client.keys("*")
        kinds = {key.split(b":")[1] for key in keys}
        assert {b"b", b"c", b"fc", b"fs", b"hits", b"known", b"s", b"v"} <= kinds
        for key in keys:
            kind = client.type(key)
            read: dict[bytes, Callable[[], Any]] = {
                b"string": lambda key=key: client.get(key), b"hash": lambda key=key: client.hgetall(key),
                b"zset": lambda key=key: client.zrange(key, 0, -1),
            }  # fmt: skip
            found = read[kind]()
            for part in found if isinstance(found, list) else [found]:
                for piece in part.items() if isinstance(part, dict) else [(part,)]:
                    dumped += key + b"".join(piece) + b"\n"
    for canary in canaries:
        for form in (canary.encode(), canary.encode("utf-16-le"), json.dumps(canary)[1:-1].encode()):
            assert form not in dumped
    assert canaries[0] not in machine.process.log
    assert canaries[4] not in machine.process.log


@pytest.mark.exhaustive
@pytest.mark.external
def test_a_service_goes_on_while_its_server_is_away(valkey: Valkey, secret: Path) -> None:
    with Machine(state=valkey.address, state_secret=secret) as machine:
        machine.score(THREAT, sender="gang")
        valkey.stop()
        assert {machine.score(f"{MILD}{i}", sender=f"gang {i}") for i in range(20)} <= {"pass scored", "review burst"}
        until(lambda: machine.metric("jingyin_state_away") > 0)
        answer = machine.call("POST", "/admin/known", {"text": THREAT, "action": "block"})
        assert "the state can't be reached" in answer["error"]
        answer = machine.call("POST", "/v1/parts", {"keys": ["k"], "part": "a", "seconds": 60})
        assert "the state can't be reached" in answer["error"]
        valkey.start()
        until(lambda: machine.metric("jingyin_state_away") == 0)
        machine.score(THREAT, sender="gang")
        until(lambda: machine.score(MILD, sender="gang") == "review sender")
    assert '"event":"state_away"' in machine.process.log
    assert '"event":"fault"' not in machine.process.log


class Gone:
    """A state that can't be reached."""

    async def run(self, ops: Sequence[Op]) -> list[Any]:
        raise ConnectionRefusedError


async def test_a_state_that_is_away_is_reported_before_a_message_needs_it() -> None:
    events: list[tuple[str, str]] = []
    guarded = Guarded(Gone(), Local(), lambda *event: events.append(event))
    secret = Secret(bytes(32), encrypts=True)
    memory = Memory(load_settings(), SimpleNamespace(), secret, guarded, Gone())  # type: ignore[arg-type]
    memory.tend()
    async with asyncio.timeout(10):
        while not events:
            await asyncio.sleep(0.01)
    await memory.close()
    assert events == [("away", "ConnectionRefusedError")]


class Faulty(Local):
    """A state whose known wordings can't be read while `fault` is set."""

    fault: Exception | None = None

    async def run(self, ops: Sequence[Op]) -> list[Any]:
        if self.fault and any(op.name == "fields" for op in ops):
            raise self.fault
        return self.run_now(ops)


async def test_known_wordings_that_can_not_be_refreshed_are_reported_once(capfd: pytest.CaptureFixture[str]) -> None:
    state = Faulty()
    gateway = MemoryUser(state)
    await gateway.memory.known.add(NewWording(action="block", text=THREAT), "admin", 0.9)
    for state.fault in (ValueError(THREAT), ValueError(THREAT), None, None):
        gateway.memory.tend()
        assert gateway.memory._refreshing
        await gateway.memory._refreshing
        assert await gateway.reason(THREAT, 0.9) == "block known"
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(line["level"], line["event"], line.get("error")) for line in lines] == [
        ("warning", "known_stale", "ValueError"), ("info", "known_refreshed", None)
    ]  # fmt: skip


async def test_a_part_sent_again_pushes_out_no_other() -> None:
    for encrypts in (False, True):
        gateway = MemoryUser(encrypts=encrypts)
        parts = [f"part {number}" for number in range(PUSHED)]
        for part in [*parts, parts[0]]:
            await gateway.memory.share_part("gw", ["k"], part, 60)
        assert await gateway.memory.share_part("gw", ["k", "l"], None, 60) == [(parts, False), ([], False)]
        await gateway.memory.forget_part("gw", ["k", "l"], parts[1])
        assert await gateway.memory.share_part("gw", ["k"], None, 60) == [([parts[0], *parts[2:]], False)]


@given(st.integers(1, 604_800))
def test_parts_are_kept_for_one_of_eighty_times(seconds: int) -> None:
    rounded = _rounded(seconds)
    assert seconds <= rounded <= 1.25 * seconds
    assert rounded in {2.0**power * quarters for power in range(-2, 18) for quarters in range(4, 9)}


async def test_parts_are_never_kept_where_other_workers_do_not_see_them() -> None:
    memory = Memory(load_settings(), SimpleNamespace(), Secret(bytes(32), encrypts=True), Local(), Gone())  # type: ignore[arg-type]
    with pytest.raises(ConnectionRefusedError):
        await memory.share_part("", ["k"], "a", 60)


async def test_a_late_step_is_named() -> None:
    events: list[tuple[str, str]] = []
    gateway = MemoryUser(Guarded(Slow(0.03), Local(), lambda *event: events.append(event)), senders={})
    gateway.memory.suspects._chance = lambda: 0.0
    await gateway.send("你好", sender="a")
    await gateway.memory.close()
    assert events == [("late", "look_up"), ("late", "report")]


def test_a_server_needs_a_secret(tmp_path: Path) -> None:
    from jingyin.serve.http.process import run_server

    with pytest.raises(ConfigError, match="needs state_secret"):
        run_server(load_settings(port=0, state="redis://127.0.0.1:1/0"), load=lambda *_: None)  # type: ignore[arg-type]
    (tmp_path / "short").write_text("abcd")
    with pytest.raises(ConfigError, match="has 2 bytes"):
        run_server(load_settings(port=0, state="redis://x", state_secret=tmp_path / "short"), load=lambda *_: None)  # type: ignore[arg-type]


def test_without_a_folder_for_its_state_a_service_makes_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stat(self: Path, **_: Any) -> os.stat_result:
        if self.parent.name == "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return os.stat(self)

    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "closed"))
    monkeypatch.setattr(Path, "stat", stat)
    with shared_state(load_settings(), tmp_path):
        assert len((tmp_path / "secret").read_text()) == 64
    assert '"event":"known_not_kept"' in capfd.readouterr().err


@pytest.mark.exhaustive
def test_sighup_reads_what_is_remembered_again(tmp_path: Path) -> None:
    config, policy = tmp_path / "serve.yaml", tmp_path / "policy.yaml"
    config.write_text("burst: {count: 3}\n")
    with Machine(config=config, senders=None, conversations=None, burst=None, known=tmp_path / "known.json") as machine:
        machine.score(THREAT, sender="gang")
        assert machine.score(MILD, sender="gang") == "pass scored"
        policy.write_text("rules: [{name: all, action: review, key: [x]}, {name: rest, sender: [bank], action: pass}]")
        config.write_text(f"senders: {{}}\npolicy: {policy}\n")
        machine.call("POST", "/admin/reload")
        until(lambda: machine.metric('jingyin_reloads_total{outcome="done"}') == 2)
        # An old worker may answer until it has drained.
        until(lambda: machine.score(THREAT, sender="gang") and machine.score(MILD, sender="gang") == "review sender")
        until(lambda: machine.score(THREAT, sender="bank") == "pass policy")
        config.write_text("senders: {risk: 7}\n")
        machine.call("POST", "/admin/reload")
        until(lambda: machine.metric('jingyin_reloads_total{outcome="failed"}') == 1)
        config.write_text(f"senders: {{}}\npolicy: {tmp_path / 'missing.yaml'}\n")
        machine.call("POST", "/admin/reload")
        until(lambda: machine.metric('jingyin_reloads_total{outcome="failed"}') == 2)
        assert machine.score(MILD, sender="gang") == "review sender"
    reasons = [line for line in machine.process.log.splitlines() if '"event":"worker_failed"' in line]
    assert ["senders.risk" in reasons[0], "missing.yaml" in reasons[1]] == [True, True]


# ---- the analyst


async def test_a_trial_says_why_and_changes_nothing() -> None:
    async with serving(senders={}) as (client, _):

        async def trial(**body: Any) -> dict[str, Any]:
            return (await client.post("/admin/trial", json=body)).json()  # type: ignore[no-any-return]

        await client.post("/v1/score", json={"text": "死", "sender": "a"})
        first = await trial(text=MILD, sender="a")
        assert (first["action"], first["reason"]) == ("review", "sender")
        await trial(text="死", sender="b")
        assert (await trial(text=MILD, sender="b"))["reason"] == "scored"
        overview = (await client.get("/admin/overview")).json()
        assert [each["id"] for each in overview["senders"]] == [first["sender_id"]]
        assert await _status(client, "DELETE", f"/admin/senders/{first['sender_id']}") == 200
        assert await _status(client, "DELETE", f"/admin/senders/{first['sender_id']}") == 404  # no longer suspicious
        assert (await trial(text=MILD, sender="a"))["reason"] == "scored"


async def _status(client: httpx.AsyncClient, method: str, path: str, **more: Any) -> int:
    return (await client.request(method, path, **more)).status_code


async def test_wrong_calls_of_the_analyst() -> None:
    async with serving() as (client, _):
        assert await _status(client, "POST", "/admin/known", json={"text": "x", "action": "drop"}) == 422
        assert await _status(client, "POST", "/admin/known", json={"text": "还钱", "action": "block"}) == 422
        assert await _status(client, "POST", "/admin/known", json={"action": "block"}) == 422
        assert await _status(client, "POST", "/admin/known", content=b'{"text": "', headers=JSON) == 400
        assert await _status(client, "POST", "/admin/known", content=b"{}") == 422  # no page elsewhere can send this
        assert await _status(client, "POST", "/admin/known", content=b"x" * 70_000, headers=JSON) == 422
        assert await _status(client, "DELETE", "/admin/known/none") == 404
        wrong = await client.post("/admin/known", json={"text": THREAT, "action": "block", "机密": 1})
        assert "机密" not in wrong.text


JSON = {"content-type": "application/json"}


async def test_all_of_it_needs_an_admin_key(tmp_path: Path) -> None:
    from hashlib import sha256

    file = tmp_path / "keys"
    file.write_text(f"a {sha256(b'one').hexdigest()} admin\nb {sha256(b'two').hexdigest()}\n")
    async with serving(keys=file) as (client, _):
        routes = [
            ("GET", "/admin/known"), ("POST", "/admin/known"), ("DELETE", "/admin/known/x"), ("GET", "/admin/overview"),
            ("DELETE", "/admin/senders/x"), ("POST", "/admin/trial"),
        ]  # fmt: skip
        for method, path in routes:
            assert await _status(client, method, path) == 401
            assert await _status(client, method, path, headers={"authorization": "Bearer two"}) == 403
        assert await _status(client, "GET", "/admin/known", headers={"authorization": "Bearer one"}) == 200
        assert await _status(client, "GET", "/admin/") == 200
        body = {"text": THREAT, "action": "block"}
        await client.post("/admin/known", json=body, headers={"authorization": "Bearer one"})
        found = await client.get("/admin/known", headers={"authorization": "Bearer one"})
        assert found.json()["known"][0]["by"] == "a"


@pytest.mark.exhaustive
@pytest.mark.external
def test_an_analyst_judges_a_message_on_the_page(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    with Machine(known=tmp_path / "known.json", burst=None) as machine:
        machine.score(THREAT, sender="gang")
        browser.call("Page.navigate", url=f"http://127.0.0.1:{machine.process.port}/admin/")
        browser.until("document.querySelector('#senders td') && document.getElementById('known').innerText === '无'")
        assert "解除" in browser.run("document.getElementById('senders').innerText")
        browser.run("document.getElementById('text').focus()")
        browser.call("Input.insertText", text=MILD)
        browser.run("document.getElementById('sender').value = 'gang'; document.getElementById('try').click()")
        browser.until("document.getElementById('verdict').innerText.includes('复核 · 原因: sender · 风险 25.0%')")
        hostile = "<img src=x onerror='window.bad=1'>"
        browser.run(f"document.getElementById('note').value = {hostile!r}")
        browser.run("document.querySelector('#form .main').click()")
        until(lambda: browser.run("document.querySelector('#known button') !== null"))
        assert hostile in browser.run("document.getElementById('known').innerText")
        assert browser.run("window.bad === undefined && document.querySelectorAll('img').length === 0")
        until(lambda: machine.score(MILD) == "block known")
        browser.run("document.querySelector('#known button').click()")
        browser.until("document.getElementById('known').innerText === '无'")
        # The other worker hears of it a second later; if it blocked until then, the sender would be suspicious anew.
        until(lambda: all(machine.score(MILD) == "pass scored" for _ in range(20)))
        browser.run("document.querySelector('#senders button').click()")
        browser.until("document.getElementById('senders').innerText === '无'")
        until(lambda: machine.score(MILD, sender="gang") == "pass scored")
