"""The filters as processes of their own: signals, command line, metrics, and Kannel's bearerbox as ESME."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from tests.serve.free_ports import free_ports
from tests.serve.gateways.boxes import kannel
from tests.serve.gateways.dialects import RESPONSE, SMPP, Dialect
from tests.serve.gateways.fakes import GREETING, SLOW, THREAT, Gateway, Peer, Scoring, World, play, until
from tests.serve.gateways.threats import ORDINARY, THREATS
from tests.serve.http.http_fakes import InThread, Process

from jingyin.serve.gateways import program, proxy
from jingyin.serve.gateways.client import SECONDS_TO_WAIT, Http, VerdictClient
from jingyin.serve.gateways.kannel import main as kannel_main
from jingyin.serve.gateways.smpp import Smpp


def command(name: str, gateway: int, jingyin: str) -> list[str]:
    name = name.rstrip("23")  # cmpp2 and cmpp3 are one program
    option = {"smpp": "--smsc", "kannel": "--smsbox"}.get(name, "--gateway")
    target = f"http://127.0.0.1:{gateway}" if name == "kannel" else f"127.0.0.1:{gateway}"
    return [sys.executable, "-m", f"jingyin.serve.gateways.{name}", "--port", "0", option, target, *jingyin.split()]


@contextmanager
def started(name: str, gateway: int, jingyin: str, *more: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    process = subprocess.Popen([*command(name, gateway, jingyin), "--seconds", "20", *more], stderr=subprocess.PIPE)
    try:
        yield process, json.loads(process.stderr.readline())["port"]
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=20)


@SLOW
def test_sigterm_loses_nothing(dialect: Dialect) -> None:
    async def run() -> None:
        gateway, scoring = Gateway(dialect), Scoring()
        answer, answers = gateway.answer, {}
        gateway.answer = lambda data: b"" if dialect.read(data)[2] == 101 else answer(data)  # until 200 is answered
        jingyin = f"--jingyin http://127.0.0.1:{await scoring.start()}"
        program = started(dialect.name, await gateway.start(), jingyin)
        with ExitStack() as running:  # in a thread, for the service must answer meanwhile
            process, port = await asyncio.to_thread(running.enter_context, program)
            peer = Peer(dialect, *await asyncio.open_connection("127.0.0.1", port))
            peer.send(dialect.login())
            await peer.read()
            peer.send(*(dialect.submit("慢" * 5, i, to=(str(13800000000 + i),)) for i in range(2, 102)))
            await until(lambda: len(gateway.submitted()) >= 10)
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.05)
            peer.send(dialect.submit(GREETING, 200))
            while (data := await peer.read()) and dialect.read(data)[0] != dialect.command["close"]:
                code, status, sequence = dialect.read(data)
                assert code == dialect.command["submit"] | RESPONSE
                answers[sequence] = status
                if sequence == 200:
                    await until(lambda: 101 in gateway.submitted())
                    gateway.writers[0].write(answer(dialect.submit("", 101)))
            peer.send(dialect.answer(data))
            assert await peer.read() == b""
            assert await asyncio.to_thread(process.wait, 20) == 0
            # each is answered: by the gateway that has it, or as busy, on which a client sends it again
            assert set(answers) == {*range(2, 102), 200}
            assert sorted(gateway.submitted()) == sorted(each for each, status in answers.items() if status == 0)
            assert {answers[each] for each in answers if each not in gateway.submitted()} <= {dialect.busy}
            peer.writer.close()
            await asyncio.to_thread(running.close)
        await scoring.runner.cleanup()
        gateway.stop()

    asyncio.run(run())


@pytest.mark.parametrize("name", ["kannel", "smpp"])
def test_a_unix_socket_and_metrics(name: str, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    socket = tmp_path / "socket"
    with (
        InThread(uds=str(socket)),
        started(name, 1, f"--uds {socket}", "--metrics", f"127.0.0.1:{port}"),
        urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer,
        urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as health,
    ):
        metrics = answer.read()
        assert b"jingyin_gateway_sessions 0.0" in metrics
        assert (
            b'jingyin_gateway_mode{dry_run="false",on_failure="pass",review="forward",unread="refuse"} 1.0' in metrics
        )
        assert json.load(health) == {"ready": True, "jingyin": "answers"}


def refuses(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """Run a filter that does not start; return what it says."""
    monkeypatch.setattr("sys.argv", [name, *arguments])
    with pytest.raises(SystemExit, match="2"):
        kannel_main() if name == "kannel" else proxy.main(Smpp, "smpp", 2776, "--smsc")
    said = capfd.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("jingyin", "wanted"),
    [
        ("--jingyin unix:/run/jingyin", "'unix:/run/jingyin' is not an address; write http://HOST:PORT"),
        ("--jingyin http://127.0.0.1:99999", "not a number from 1 to 65535"),
    ],
)
@pytest.mark.parametrize("name", ["kannel", "smpp"])
def test_a_filter_that_can_not_ask_does_not_start(
    name: str, jingyin: str, wanted: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert wanted in refuses(name, command(name, 1, jingyin)[3:], monkeypatch, capfd)


@pytest.mark.parametrize("name", ["kannel", "smpp"])
def test_a_filter_waits_for_the_service_and_ends_when_told_to(name: str) -> None:
    port, health = free_ports(2)
    call = [*command(name, 1, f"--jingyin http://127.0.0.1:{port}"), "--on-failure", "block"]
    call += ["--metrics", f"127.0.0.1:{health}"]
    process = subprocess.Popen(call, stderr=subprocess.PIPE)
    line = json.loads(process.stderr.readline())
    assert line["event"] == "waits_for_jingyin"
    assert f"no verdict at http://127.0.0.1:{port} (ConnectionRefusedError)" in line["error"]
    with pytest.raises(HTTPError, match="503"):
        urlopen(f"http://127.0.0.1:{health}/healthz", timeout=10)
    with InThread(port=port):
        assert json.loads(process.stderr.readline())["event"] == "serving"
    process.send_signal(signal.SIGHUP)  # as SIGTERM: it drains
    rest = process.communicate(timeout=20)[1].decode()
    assert (process.returncode, json.loads(rest.splitlines()[-1])["event"]) == (0, "ended")


def test_a_filter_that_forwards_without_a_verdict_starts_without_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "START_SECONDS", 0.0)

    async def run() -> bool:
        away = VerdictClient(Http("http://127.0.0.1:1"))
        return await program._wait_for_jingyin(away, "pass", asyncio.Event())

    assert asyncio.run(run())


def test_a_wrong_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(f"gateway {'0' * 64}\n")
    with InThread(keys=keys) as closed:
        call = command("smpp", 1, f"--jingyin http://127.0.0.1:{closed.port}")[3:]
        assert "(status 401)" in refuses("smpp", call, monkeypatch, capfd)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--smsc", "nowhere"], "HOST:PORT is wanted"),
        (["--smsc", "host:0"], "HOST:PORT is wanted"),
        ([], "--smsc"),
        (["--smsc", "host:1", "--coding", "0=utf7"], "NUMBER=NAME is wanted"),
        (["--smsc", "host:1", "--block-status", "-1"], "--block-status -1 does not fit into a response"),
        (["--smsc", "host:2775", "--host", "203.0.113.1"], "can't listen on 203.0.113.1:2776"),
        (["--smsc", "host:1", "--block-status", "0"], "--block-status 0 accepts a message"),
        (["--smsc", "host:1", "--block-status", "0x58"], "--block-status 88 accepts a message, or asks for it again"),
        (["--smsc", "host:1", "--hold", "-1"], "at least 0 is wanted, got -1"),
        (["--smsc", "host:1", "--remember", "-1"], "at least 0 is wanted, got -1"),
        (["--smsc", "host:1", "--part-memory", "-1"], "at least 0 is wanted, got -1"),
        (["--smsc", "host:1", "--seconds", "0"], "more than 0 and at most 60 seconds are wanted"),
        (["--smsc", "host:2775", "--port", "70000"], "can't listen on 127.0.0.1:70000"),
    ],
)
def test_a_wrong_call_ends_with_one_sentence(
    arguments: list[str], wanted: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with InThread() as jingyin:
        call = ["--jingyin", f"http://127.0.0.1:{jingyin.port}", *arguments]
        assert wanted in refuses("smpp", call, monkeypatch, capfd)


@pytest.mark.exhaustive
def test_a_burst_of_different_threats_is_stopped_on_defaults() -> None:
    """`jingyin serve` with two workers: on a slow machine the rest is refused for now, and nothing is forwarded."""

    async def scenario(world: World) -> None:
        peer = await world.bound()
        messages = [*THREATS, *ORDINARY]
        peer.send(*(SMPP.submit(text, i, to=(str(13_000_000_000 + i),)) for i, text in enumerate(messages, 2)))
        answers = await peer.answers(len(messages))
        forwarded = [messages[i - 2] for i, status in answers.items() if status == 0]
        assert len(set(forwarded) & set(THREATS)) <= 3
        assert set(answers.values()) <= {0, SMPP.blocked, SMPP.busy}
        assert set(ORDINARY) <= set(forwarded)

    with Process(fake=False, workers=2, deadline_ms=50) as jingyin:
        play(scenario, SMPP, jingyin=jingyin.port, seconds=SECONDS_TO_WAIT)


# ---- Kannel as ESME

_SMPP = """
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
"""


@pytest.mark.external
@pytest.mark.exhaustive
@pytest.mark.skipif(not shutil.which("bearerbox"), reason="Kannel is not installed (Debian package kannel)")
def test_kannel_as_esme(tmp_path: Path) -> None:
    """Kannel cuts long messages by itself: a threat is stopped whole."""
    texts = THREAT, GREETING, "早" * 100 + THREAT, "早" * 150  # of one, one, two and three parts
    submit, alive = SMPP.command["submit"], SMPP.command["alive"]

    ports = dict(zip(("admin", "smsbox", "sendsms"), free_ports(3), strict=True))
    user = {"username": "user", "password": "secret", "from": 100, "to": 200, "coding": 2, "charset": "UTF-8"}

    def send(url: str) -> None:
        for text in texts:
            with urlopen(url + urlencode({**user, "text": text}), timeout=20) as answer:
                assert answer.status == 202

    async def run(jingyin: int) -> None:
        smsc = Gateway(SMPP)
        with ExitStack() as running:
            process = started("smpp", await smsc.start(), f"--jingyin http://127.0.0.1:{jingyin}", "--hold", "2")
            _, port = running.enter_context(process)
            boxes = kannel(tmp_path, _SMPP, "concatenation = true\n", proxy=port, **ports)
            await asyncio.to_thread(lambda: send(running.enter_context(boxes)))  # the SMSC must answer meanwhile
            async with asyncio.timeout(30):
                while len(smsc.submitted()) < 4 or not any(SMPP.read(each)[0] == alive for each in smsc.received):
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            submitted = [each for each in smsc.received if SMPP.read(each)[0] == submit]
            await asyncio.to_thread(running.close)
        content = b"".join(submitted)
        assert len(submitted) == 4
        assert content.count("早".encode("utf-16-be")) == 150
        assert GREETING.encode("utf-16-be") in content
        assert "死".encode("utf-16-be") not in content
        smsc.stop()

    with InThread(deadline_ms=5_000) as jingyin:
        asyncio.run(run(jingyin.port))
