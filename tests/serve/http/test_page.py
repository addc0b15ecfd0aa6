import json
import re
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from tests.serve.http.http_fakes import InThread
from websockets.sync.client import connect

from jingyin.model.signs import SIGNS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_the_page_needs_nothing_from_elsewhere() -> None:
    from jingyin.serve.http.app import PAGE, page_response

    assert not re.search(r"https?://|src=|@import|url\(", PAGE)
    policy = page_response(PAGE).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_page_names_every_sign() -> None:
    from jingyin.serve.http.app import PAGE

    (held,) = re.findall(r"^const SIGNS = (.*);  //", PAGE, re.MULTILINE)
    assert json.loads(held) == {
        sign.id: {"zh": sign.chinese, "en": sign.english, "definition": sign.definition} for sign in SIGNS
    }
    assert "</" not in held  # nothing in it ends the script


def test_the_page_can_be_off() -> None:
    get = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with InThread() as server:
        assert b"text/html; charset=utf-8" in server.send(get)
    with InThread(page=False) as server:
        assert server.send(get).startswith(b"HTTP/1.1 404 ")


class Browser:
    """One tab of a headless Chromium, driven over its debugging protocol."""

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--accept-lang=zh-CN", "--window-size=900,900"]
        self.process = subprocess.Popen(
            [CHROMIUM, *flags, f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port_file = folder / "DevToolsActivePort"
        for _ in range(300):
            if port_file.exists() and port_file.read_text():
                break
            time.sleep(0.1)
        self.port = int(port_file.read_text().split()[0])
        with urlopen(f"http://127.0.0.1:{self.port}/json") as answer:
            (tab,) = [tab for tab in json.load(answer) if tab["type"] == "page"]
        self.opened = connect(tab["webSocketDebuggerUrl"], max_size=None)
        self.number = 0

    def __enter__(self) -> "Browser":
        self.socket = self.opened.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.__exit__(None, None, None)
        self.process.terminate()
        self.process.wait(10)

    def call(self, method: str, **parameters: Any) -> Any:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=20))
            if message.get("id") == self.number:
                return message["result"]

    def run(self, script: str) -> Any:
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def until(self, script: str) -> None:
        for _ in range(100):
            if self.run(script):
                return
            time.sleep(0.1)
        raise AssertionError(script)

    def press(self, key: str, modifiers: int = 0) -> None:
        codes = {"Enter": 13, "Tab": 9}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, modifiers=modifiers,
                windowsVirtualKeyCode=codes[key], text="\r" if key == "Enter" and kind == "keyDown" else "",
            )  # fmt: skip


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with Browser(tmp_path / "profile") as started:
        yield started


@pytest.mark.external
@pytest.mark.exhaustive
def test_a_person_pastes_messages_and_sees_verdicts(browser: Browser, tmp_path: Path) -> None:
    hostile = "😀<img src=x onerror='window.bad=1'><b>死</b>死"
    with InThread() as server:
        browser.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        browser.until("document.activeElement && document.activeElement.id === 'text'")
        browser.call("Input.insertText", text=f"你好\n{hostile}")
        browser.press("Enter", modifiers=2)  # Control
        browser.until("document.querySelectorAll('article').length === 2")
        seen = browser.run("[...document.querySelectorAll('article')].map(a => [a.className, a.innerText])")
        assert [name for name, _ in seen] == ["pass", "block"]
        assert "放行" in seen[0][1]
        assert "拦截" in seen[1][1]
        assert hostile in seen[1][1]
        assert browser.run("[...document.querySelectorAll('mark')].map(m => m.innerText)") == ["死", "死"]
        assert browser.run("window.bad === undefined && document.querySelectorAll('img, article b').length === 0")
        chip = "document.querySelector('.block .chip')"
        assert browser.run(f"[{chip}.innerText, {chip}.title]") == ["侮辱 88%", "insults or humiliates the reader"]
        assert browser.run("document.querySelectorAll('.pass .chip').length") == 0
        browser.run(f"{chip}.click()")
        assert browser.run(f"{chip}.getAttribute('aria-pressed')") == "true"
        marked = browser.run("[...document.querySelectorAll('mark')].map(m => m.innerText)")
        assert marked == ["死"]  # the reason's alone
        assert "标出的词说明所选原因" in browser.run("document.querySelector('.block').innerText")
        browser.run(f"{chip}.click()")
        assert browser.run("document.querySelectorAll('mark').length") == 2
        assert "标出的词使风险升高" in browser.run("document.querySelector('.block').innerText")
        browser.run("document.getElementById('language').click()")
        assert browser.run(f"{chip}.innerText") == "insults 88%"
        assert "pay-to-stop extortion" in browser.run("document.querySelectorAll('article')[1].innerText")
        assert browser.run("document.documentElement.lang") == "en"
        (tmp_path / "page.png").write_bytes(b64decode(browser.call("Page.captureScreenshot")["data"]))


@pytest.mark.external
@pytest.mark.exhaustive
def test_every_control_is_reached_by_keyboard_and_errors_are_shown(browser: Browser) -> None:
    with InThread() as server:
        browser.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        browser.until("document.activeElement && document.activeElement.id === 'text'")
        reached = []
        for _ in range(5):
            browser.press("Tab")
            reached.append(browser.run("document.activeElement.id || document.activeElement.tagName"))
        assert reached[:3] == ["go", "example", "SUMMARY"]
        browser.call("Page.navigate", url=f"http://127.0.0.1:{server.port}/")
        browser.until("document.activeElement && document.activeElement.id === 'text'")
        browser.run(
            "document.getElementById('text').value = Array(17).fill('a').join('\\n'); "
            "document.getElementById('go').click()"
        )
        browser.until("document.querySelector('article.error') !== null")
        assert "16" in browser.run("document.querySelector('article.error').innerText")
