"""Takes the pictures of README.md: `python bench/pictures.py` writes docs/images/page.png and campaigns.png.

All messages are invented. Needs the extra `dev`, Chromium, and a font with Chinese characters (fonts-noto-cjk).
"""

import json
import subprocess
import time
from base64 import b64decode
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

from websockets.sync.client import ClientConnection, connect

OUT, WIDTH, HEIGHT = Path("docs/images"), 860, 820
PORT, DEBUGGING_PORT = 18_080, 18_081
MESSAGES = "有人出錢让我每天拨你的号，想清静就转两百到这个薇.信\n【便利超市】您的会员积分将于月底到期，请到店兑换"
CAMPAIGNS = (
    (240, "【安心贷】{}女士，您的借款{},280.50元已逾期{}天，今晚{}点前不还将逐一通知您的通讯录和单位同事"),
    (90, "{}老板，{}千块保你店里电话清静，不给就每天打{}个小时，{}点前转过来"),
    (60, "{}先生，你的视频在我手里，{}万封口费，还剩{}小时，{}点一到全部发给你通讯录"),
)


def archive() -> str:
    """Return CSV: copies of three threats over half a day, the later half of each with dots inside words."""
    lines = ["time,sender,text"]
    for count, template in CAMPAIGNS:
        for i in range(count):
            text = template.format("李王张刘陈"[i % 5], 2 + i % 7, 3 + i % 9, 6 + i % 5)
            if 2 * i > count:
                text = text.replace("通讯录", "通.讯.录").replace("电话", "电.话")
            minute = 480 + 700 * i // count
            lines.append(f'2026-05-11T{minute // 60:02}:{minute % 60:02}:00,1069{i % 12:04},"{text}"')
    return "\n".join(lines)


def answer(address: str) -> bytes:
    """Return the response of an address, retrying until there is one."""
    while True:
        with suppress(OSError), urlopen(address) as found:
            return found.read()
        time.sleep(0.2)


def call(tab: ClientConnection, method: str, **parameters: object) -> dict:
    tab.send(json.dumps({"id": 1, "method": method, "params": parameters}))
    return json.loads(tab.recv(timeout=30))["result"]


def photograph(tab: ClientConnection, address: str, run: str, ready: str, name: str) -> None:
    """Save a picture of a page after the JavaScript `run`, once `ready` is true."""
    call(tab, "Page.navigate", url=address)
    time.sleep(2)
    call(tab, "Runtime.evaluate", expression=run)
    while not call(tab, "Runtime.evaluate", expression=f"Boolean({ready})")["result"]["value"]:
        time.sleep(0.2)
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT if "campaigns" in name else 680, "scale": 1}
    image = call(tab, "Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
    (OUT / name).write_bytes(b64decode(image))


with TemporaryDirectory(ignore_cleanup_errors=True) as made, ExitStack() as running:
    (file := Path(made, "archive.csv")).write_text(archive(), encoding="utf-8")
    columns = ["--sender", "sender", "--time", "time", "--lang", "en"]
    subprocess.run(["jingyin", "campaigns", file, f"{made}/campaigns", *columns], check=True)
    for command in (
        ["jingyin", "serve", "--port", str(PORT), "--workers", "1"],
        ["chromium", "--headless", "--no-sandbox", "--accept-lang=en", f"--window-size={WIDTH},{HEIGHT}",
         f"--user-data-dir={made}/profile", f"--remote-debugging-port={DEBUGGING_PORT}", "about:blank"],
    ):  # fmt: skip
        process = running.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        running.callback(process.terminate)
    answer(f"http://127.0.0.1:{PORT}/readyz")
    tabs = json.loads(answer(f"http://127.0.0.1:{DEBUGGING_PORT}/json"))
    tab = running.enter_context(connect(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")))
    paste = f"find('text').value = {json.dumps(MESSAGES)}; check()"
    photograph(tab, f"http://127.0.0.1:{PORT}/", paste, "document.querySelector('mark')", "page.png")
    report = Path(made, "campaigns", "report.html").as_uri()
    photograph(tab, report, "0", "document.title.startsWith('jingyin')", "campaigns.png")
