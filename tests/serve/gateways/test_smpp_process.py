"""The proxy as a process of its own: its signals and its command line, and Kannel's bearerbox as ESME."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from tests.serve.free_ports import free_ports
from tests.serve.gateways.smpp_fakes import (
    ENQUIRE,
    GREETING,
    RESPONSE,
    SUBMIT,
    THREAT,
    UNBIND,
    Esme,
    Smsc,
    bind,
    head,
    pdu,
    start_scoring,
    submit,
)
from tests.serve.http.http_fakes import InThread

pytestmark = pytest.mark.service

COMMAND = (sys.executable, "-m", "jingyin.serve.gateways.smpp")


@contextmanager
def proxy(smsc: int, jingyin: int, *more: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    command = [
        *COMMAND,
        "--port",
        "0",
        "--smsc",
        f"127.0.0.1:{smsc}",
        "--jingyin",
        f"http://127.0.0.1:{jingyin}",
        *more,
    ]
    process = subprocess.Popen([*command, "--seconds", "20"], stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        yield process, json.loads(process.stderr.readline())["port"]
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=20)


def until(ready, what: str, seconds: float = 30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := ready():
                return found
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"no {what} in {seconds} s")


def test_sigterm_loses_nothing() -> None:
    async def run() -> None:
        smsc = Smsc()
        answer, answers = smsc.answer, {}
        smsc.answer = lambda data: b"" if head(data)[2] == 101 else answer(data)  # until 200 is answered
        scoring, jingyin = await start_scoring()
        with proxy(await smsc.start(), jingyin) as (process, port):
            esme = Esme(*await asyncio.open_connection("127.0.0.1", port))
            esme.send(bind())
            await esme.read()
            esme.send(*(submit("慢" * 5, i) for i in range(2, 102)))
            while len(smsc.submitted()) < 10:
                await asyncio.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.05)
            esme.send(submit(GREETING, 200))
            while (data := await esme.read(20)) and head(data)[0] != UNBIND:
                assert head(data)[0] == SUBMIT | RESPONSE
                answers[head(data)[2]] = head(data)[1]
                if head(data)[2] == 200:
                    while 101 not in smsc.submitted():
                        await asyncio.sleep(0.01)
                    smsc.writers[0].write(pdu(SUBMIT | RESPONSE, b"id\0", 101))
            esme.send(pdu(UNBIND | RESPONSE, b"", head(data)[2]))
            assert await esme.read() == b""
            assert await asyncio.to_thread(process.wait, 20) == 0
            # each is answered: by the SMSC that has it, or with ESME_RTHROTTLED, on which an ESME sends it again
            assert set(answers) == {*range(2, 102), 200}
            assert sorted(smsc.submitted()) == sorted(each for each, status in answers.items() if status == 0)
            assert {answers[each] for each in answers if each not in smsc.submitted()} <= {0x58}
            esme.writer.close()
        await scoring.cleanup()
        smsc.stop()

    asyncio.run(run())


def test_metrics() -> None:
    (port,) = free_ports(1)
    with (
        proxy(1, 1, "--metrics", f"127.0.0.1:{port}"),
        urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer,
    ):
        assert b"jingyin_smpp_sessions 0.0" in answer.read()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--smsc", "nowhere"], "HOST:PORT is wanted"),
        (["--smsc", "host:0"], "HOST:PORT is wanted"),
        ([], "--smsc"),
        (["--smsc", "host:2775", "--host", "203.0.113.1"], "can't listen on 203.0.113.1:2775"),
    ],
)
def test_a_wrong_call_ends_with_one_sentence(arguments: list[str], wanted: str) -> None:
    ended = subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert wanted in ended.stderr.decode()
    assert "Traceback" not in ended.stderr.decode()


# ---- Kannel as ESME

_KANNEL = """
group = core
admin-port = {admin}
admin-password = secret
smsbox-port = {smsbox}
log-file = "{folder}/bearerbox.log"
box-allow-ip = 127.0.0.1

group = smsc
smsc = smpp
smsc-id = carrier
host = 127.0.0.1
port = {proxy}
transceiver-mode = true
smsc-username = user
smsc-password = secret
system-type = ""
enquire-link-interval = 1
reconnect-delay = 1

group = smsbox
bearerbox-host = 127.0.0.1
sendsms-port = {sendsms}
log-file = "{folder}/smsbox.log"

group = sendsms-user
username = user
password = secret
max-messages = 10
concatenation = true
"""


@contextmanager
def kannel(folder: Path, proxy_port: int) -> Iterator[str]:
    """Run bearerbox and smsbox; yield the URL to send by."""
    ports = dict(zip(("admin", "smsbox", "sendsms"), free_ports(3), strict=True))
    config = folder / "kannel.conf"
    config.write_text(_KANNEL.format(folder=folder, proxy=proxy_port, **ports))
    boxes = []
    try:
        for box, port in (("bearerbox", ports["smsbox"]), ("smsbox", ports["sendsms"])):
            boxes.append(
                subprocess.Popen([box, "-v", "4", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            until(lambda port=port: socket.create_connection(("127.0.0.1", port)).close() is None, box)
        yield (
            f"http://127.0.0.1:{ports['sendsms']}/cgi-bin/sendsms?"
            "username=user&password=secret&from=100&to=200&coding=2&"
        )
    finally:
        for box in reversed(boxes):
            box.terminate()
            box.wait(20)


@pytest.mark.external
@pytest.mark.skipif(not shutil.which("bearerbox"), reason="Kannel is not installed (Debian package kannel)")
def test_kannel_as_esme(tmp_path: Path) -> None:
    """Kannel cuts long messages by itself: a threat is stopped whole."""
    texts = THREAT, GREETING, "早" * 100 + THREAT, "早" * 150  # of one, one, two and three parts

    def send(url: str) -> None:
        for text in texts:
            with urlopen(url + urlencode({"text": text, "charset": "UTF-8"}), timeout=20) as answer:
                assert answer.status == 202

    async def run(jingyin: int) -> None:
        smsc = Smsc()
        with ExitStack() as running:
            _, port = running.enter_context(proxy(await smsc.start(), jingyin, "--hold", "2"))
            # in a thread, for the SMSC must answer meanwhile
            await asyncio.to_thread(lambda: send(running.enter_context(kannel(tmp_path, port))))
            async with asyncio.timeout(30):
                while len(smsc.submitted()) < 4 or not any(head(each)[0] == ENQUIRE for each in smsc.received):
                    await asyncio.sleep(0.05)
            await asyncio.sleep(1)
            submitted = [each for each in smsc.received if head(each)[0] == SUBMIT]
            await asyncio.to_thread(running.close)
        content = b"".join(submitted)
        assert len(submitted) == 4
        assert content.count("早".encode("utf-16-be")) == 150
        assert GREETING.encode("utf-16-be") in content
        assert "死".encode("utf-16-be") not in content
        smsc.stop()

    with InThread(deadline_ms=20_000) as jingyin:
        asyncio.run(run(jingyin.port))
