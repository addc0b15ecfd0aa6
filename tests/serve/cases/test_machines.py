"""The review queue with real processes: a server that is killed, a PostgreSQL, a browser."""

import json
import os
import shutil
import signal
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from tests.serve.cases.test_cases import COPIES, OTHER, THREAT, message
from tests.serve.free_ports import free_ports
from tests.serve.http.http_fakes import InThread, Process, post, until
from tests.serve.http.test_page import Browser, browser  # noqa: F401  a fixture

from jingyin.serve.answer import RefusedError
from jingyin.serve.cases.cases import Cases, Filter
from jingyin.serve.cases.store import Store
from jingyin.serve.memory.secret import Secret
from jingyin.serve.settings import CaseSettings


def ask(server: Process | InThread, method: str, path: str, body: object = None) -> Any:
    request = post(body, path, close=True)
    if method != "POST":
        request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    else:
        request = request.replace(b"Host: x", b"Host: x\r\nContent-Type: application/json")
    return json.loads(server.send(request).partition(b"\r\n\r\n")[2])


@pytest.mark.exhaustive
def test_kill_9_loses_no_decision_and_at_most_the_last_second(tmp_path: Path) -> None:
    flags = {"cases": {"block_share": 1}, "workers": 2}
    with Process({"STATE_DIRECTORY": str(tmp_path)}, **flags) as server:
        ask(server, "POST", "/v1/score", {"text": THREAT})
        (case,) = until(lambda: ask(server, "GET", "/admin/cases")["cases"])
        decided = ask(server, "POST", f"/admin/cases/{case['id']}", {"decision": "threat"})
        assert decided["known"]
        until(lambda: ask(server, "POST", "/v1/score", {"text": THREAT})["reason"] == "known")
        for number in range(150):
            ask(server, "POST", "/v1/score", {"text": f"{OTHER}{chr(0x4E00 + number) * 3}"})
            if number == 99:  # a second later, on a machine that has time
                until(lambda: sum(each["count"] for each in ask(server, "GET", "/admin/cases")["cases"]) == 100)
        children = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True).stdout
        for each in [server.process.pid, *map(int, children.split())]:
            os.kill(each, signal.SIGKILL)
        server.process.wait()
    with Process({"STATE_DIRECTORY": str(tmp_path)}, **flags) as server:
        (kept,) = ask(server, "GET", "/admin/cases?state=decided")["cases"]
        assert (kept["id"], kept["decision"], kept["known"]) == (case["id"], "threat", decided["known"])
        assert ask(server, "POST", "/v1/score", {"text": THREAT})["known"] == decided["known"]
        counts = sum(each["count"] for each in ask(server, "GET", "/admin/cases?limit=1000")["cases"])
        assert 100 <= counts <= 150


class Postgres:
    """A server in a folder of its own; `url` is for the setting `database`."""

    def __init__(self, folder: Path) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found:
            pytest.skip("PostgreSQL is not installed")
        self.port, programs = *free_ports(1), found[-1].parent
        user: list[str] = []
        if os.geteuid() == 0:  # PostgreSQL refuses root
            shutil.chown(folder, "postgres")
            for parent in folder.parents:
                if parent.owner() == "root" and not parent.stat().st_mode & 1:
                    pytest.skip("the user postgres can't reach the test's folder")
            user = ["runuser", "-u", "postgres", "--"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([*user, str(programs / "initdb"), "-D", str(folder / "d"), "-U", "t"], check=True, **quiet)
        where = ["-k", str(folder), "-p", str(self.port), "-h", "127.0.0.1"]
        self.process = subprocess.Popen([*user, str(programs / "postgres"), "-D", str(folder / "d"), *where], **quiet)
        self.url = f"postgresql://t@127.0.0.1:{self.port}/postgres"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'jingyin[external]'")
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    server = Postgres(folder)
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.external
@pytest.mark.exhaustive
def test_postgresql(postgres: Postgres) -> None:
    secret = Secret(bytes(32), encrypts=True)
    one, two = (Cases(Store(postgres.url, secret), secret, CaseSettings(), lambda *_: None) for _ in "12")

    def reached() -> bool:
        try:
            one.store.open()
        except Exception:
            return False
        return True

    until(reached)
    one.keep([message(THREAT, route="a\0b")])
    two.keep([message(text) for text in (*COPIES, OTHER)])
    first, _ = one.listed(Filter(limit=9))
    assert (first["count"], first["texts"]) == (4, [THREAT, *COPIES])
    two.decide(two.checked(first["id"], "open", None), "threat", "debt_threat", None, "anna")
    with pytest.raises(Exception, match="decided by anna meanwhile"):
        one.decide(first, "innocent", "ordinary", None, "ben")
    assert [row["text"] for row in one.export(0)] == [THREAT]
    (other,) = one.listed(Filter(limit=9))
    together = Barrier(2)

    def decide(cases: Cases, by: str) -> str:
        case = cases.checked(other["id"], "open", other["version"])
        together.wait()
        try:
            cases.decide(case, "innocent", "ordinary", None, by)
        except RefusedError:
            return ""
        return by

    with ThreadPoolExecutor() as threads:
        (winner,) = filter(None, threads.map(decide, (one, two), ("anna", "ben")))
    assert one.one(other["id"])["by"] == winner
    assert [row["label"] for row in two.export(0)] == ["debt_threat", "ordinary"]
    with pytest.raises(RefusedError, match="no case with this id"):
        one.one("\0")
    one.expire()
    for each in (one, two):
        each.store.close()


@pytest.mark.external
@pytest.mark.exhaustive
def test_an_analyst_decides_by_keys(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    hostile = "<img src=x onerror='window.bad=1'>死线已到，😀死机也请尽快处理"
    with InThread(cases={"block_share": 1}) as server:
        for text in (THREAT, *COPIES, THREAT, hostile):
            ask(server, "POST", "/v1/score", {"text": text, "receiver": text, "route": "abroad"})
        until(lambda: len(ask(server, "GET", "/admin/cases")["cases"]) == 2)
        browser.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/admin/")
        browser.until("document.querySelectorAll('article mark').length === 3")  # three of four texts are shown
        assert browser.run("document.querySelectorAll('article p').length") == 4
        press = "document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: '{}', bubbles: true}}))"
        (tmp_path / "cases.png").write_bytes(b64decode(browser.call("Page.captureScreenshot")["data"]))
        browser.run(press.format("j"))
        browser.until("document.querySelectorAll('article')[1].querySelectorAll('mark').length === 2")
        assert hostile in browser.run("document.querySelectorAll('article')[1].innerText")
        assert browser.run("window.bad === undefined && document.querySelectorAll('article img').length === 0")
        browser.run(press.format("k"))
        browser.run(press.format("t"))
        browser.until("document.querySelector('article').innerText.startsWith('pay_to_stop (由')")
        (kept,) = ask(server, "GET", "/admin/cases?state=decided")["cases"]
        assert (kept["decision"], kept["decided_label"], kept["count"]) == ("threat", "pay_to_stop", 5)
        browser.run(press.format("k"))
        browser.run(press.format("u"))
        until(lambda: len(ask(server, "GET", "/admin/cases")["cases"]) == 2)
        browser.run("document.getElementById('search').value = '死机'")
        browser.run("document.getElementById('search').dispatchEvent(new Event('change'))")
        browser.until("document.querySelectorAll('article').length === 1")
