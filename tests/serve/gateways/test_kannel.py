import shutil
import socket
import subprocess
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.error import HTTPError
from urllib.parse import quote, unquote_to_bytes, urlencode
from urllib.request import urlopen

import pytest
from tests.serve.free_ports import free_ports
from tests.serve.http.http_fakes import InThread

from jingyin.serve.gateways import kannel as program
from jingyin.serve.gateways.kannel import make_server, question

pytestmark = pytest.mark.service

THREAT = "有人出钱让我们呼死你，转300元就停，不给就一直打到你关机"
GREETING = "妈，今晚回家吃饭，七点到"


# ---- the filter alone


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        (urlencode({"text": "你好"}), {"text": "你好"}),
        (urlencode({"text": "你好", "coding": "2", "charset": "utf-8"}), {"text": "你好"}),
        ("text=%C4%E3&charset=windows-936&coding=2", {"text": "你"}),
        ("text=%60O&charset=ucs-2le", {"text": "你"}),
        ("text=%fe%ff%4f%60&charset=ucs2", {"text": "你"}),
        ("text=%ff%fe%60%4f&charset=unicode", {"text": "你"}),
        ("text=%ff&charset=utf-8", {"text": "\ufffd"}),
        ("text=a&text=b&text=", {"text": "a"}),
        ("text=&text=b", {"text": ""}),
        ("text=a;b", {"text": "a;b"}),
        ("", {"text": ""}),
    ],
)
def test_text(query: str, wanted: dict[str, str]) -> None:
    if "windows-936" in query:
        query = query.replace("windows-936", "cp936")
    assert question(query) == wanted


@pytest.mark.parametrize(
    ("query", "payload", "coding", "udh"),
    [
        ("text=O%60Y%7D&coding=2&udh=%05%00%03%07%02%01", b"O`Y}", "ucs2", b"\x05\x00\x03\x07\x02\x01"),
        ("text=%4f%60&charset=UCS-2BE", b"O`", "ucs2", b""),
        ("text=%4f%60&charset=utf16be", b"O`", "ucs2", b""),
        ("text=%4f%60&charset=UnicodeBig", b"O`", "ucs2", b""),
        ("text=%c4%e3&charset=GBK&coding=2", b"\xc4\xe3", "gbk", b""),
        ("text=%00%ff&coding=1", b"\x00\xff", "latin1", b""),
    ],
)
def test_payload(query: str, payload: bytes, coding: str, udh: bytes) -> None:
    asked = question(query)
    assert (b64decode(asked["payload"]), asked["coding"], b64decode(asked["udh"])) == (payload, coding, udh)


UNREADABLE = ("no-such", "hex", "undefined", "%00", "EUC-TW", "UTF-8//IGNORE")


@pytest.mark.parametrize("charset", UNREADABLE)
def test_a_charset_that_cannot_be_read_here_is_not_taken_for_another(charset: str) -> None:
    with pytest.raises((LookupError, ValueError)):
        question(f"text=%4f%60&charset={charset}")


class _Smsbox(BaseHTTPRequestHandler):
    taken: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.taken.append(self.path)
        self.send_response(202)
        self.send_header("Content-Length", "24")
        self.end_headers()
        self.wfile.write(b"0: Accepted for delivery")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def _running(server: ThreadingHTTPServer) -> Iterator[str]:
    """Run a server in one thread and yield its URL.

    The thread ends before the socket closes: one that polled on would keep the next socket of that number open.
    """
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    with server:
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _get(url: str) -> tuple[int, bytes]:
    try:
        with urlopen(url, timeout=10) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.fixture
def smsbox() -> Iterator[str]:
    """Stands for smsbox at this URL; _Smsbox.taken holds what it was asked."""
    _Smsbox.taken.clear()
    with _running(ThreadingHTTPServer(("127.0.0.1", 0), _Smsbox)) as url:
        yield url


def test_blocks_hands_on_and_fails_open(smsbox: str, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        InThread(deadline_ms=3_000) as jingyin,
        _running(make_server(0, smsbox, f"http://127.0.0.1:{jingyin.port}", seconds=5)) as served,
        _running(make_server(0, smsbox, "http://127.0.0.1:1", seconds=5)) as alone,
    ):
        assert _get(f"{served}/cgi-bin/sendsms?text={quote(GREETING)}") == (202, b"0: Accepted for delivery")
        assert _get(f"{served}/cgi-bin/sendsms?text={quote(THREAT)}") == (403, b"Blocked")
        assert _get(f"{alone}/cgi-bin/sendsms?text={quote(THREAT)}") == (202, b"0: Accepted for delivery")
    assert _Smsbox.taken == [f"/cgi-bin/sendsms?text={quote(text)}" for text in (GREETING, THREAT)]
    log = capfd.readouterr().err
    assert '{"event": "sendsms", "action": "block", "reason": "scored"}' in log
    assert "呼" not in log
    assert quote("呼") not in log


@contextmanager
def _filter(smsbox: str, jingyin: int, on_failure: str = "pass") -> Iterator[Callable[[bytes], bytes]]:
    """Run a filter; yield a function that sends it raw bytes and returns all that it answers."""
    server = make_server(0, smsbox, f"http://127.0.0.1:{jingyin}", seconds=5, on_failure=on_failure)

    def send(request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65_536), b""))

    with _running(server):
        yield send


def _raw(target: bytes) -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n"


PASSED, STOPPED, REFUSED = b"HTTP/1.1 202 ", b"HTTP/1.1 403 ", b"HTTP/1.1 400 "


def test_bytes_of_any_charset_in_a_url_are_judged_and_handed_on_escaped(smsbox: str) -> None:
    text = "你全家都好吗"  # its UTF-8 holds 0xA0 and 0x85, which are white space in Latin-1
    with InThread(deadline_ms=3_000) as jingyin, _filter(smsbox, jingyin.port) as send:
        assert send(_raw(b"/cgi-bin/sendsms?text=" + text.encode())).startswith(PASSED)
        assert send(_raw(b"/cgi-bin/sendsms?text=" + THREAT.encode())).startswith(STOPPED)
        assert send(_raw(b"/cgi-bin/sendsms?charset=gbk&text=" + THREAT.encode("gbk"))).startswith(STOPPED)
    assert _Smsbox.taken == [f"/cgi-bin/sendsms?text={quote(text)}"]


@pytest.mark.parametrize(("on_failure", "status"), [("pass", PASSED), ("block", STOPPED)])
@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\n\r\n[]",
        b'HTTP/1.1 200 OK\r\n\r\n{"action": ["pass"], "reason": "scored"}',
        b'HTTP/1.1 200 OK\r\n\r\n{"action": "pass", "reason": "password"}',
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000,
        b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["nothing", "no HTTP", "cut off", "a list", "another action", "another reason", "deep", "a refusal"],
)
def test_without_a_verdict_a_message_passes_or_is_stopped_as_told(
    smsbox: str, reply: bytes, on_failure: str, status: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def jingyin() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(reply)

    thread = threading.Thread(target=jingyin)
    thread.start()
    with listener, _filter(smsbox, listener.getsockname()[1], on_failure) as send:
        assert send(_raw(b"/cgi-bin/sendsms?password=secret&text=hello")).startswith(status)
        thread.join()
    log = capfd.readouterr().err
    assert f'"action": "{on_failure}"' in log
    assert "secret" not in log
    assert "password" not in log
    assert "hello" not in log


@pytest.mark.parametrize(("on_failure", "status"), [("pass", PASSED), ("block", STOPPED)])
def test_a_message_in_an_unknown_charset_passes_or_is_stopped_as_told(
    smsbox: str, on_failure: str, status: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with InThread(deadline_ms=3_000) as jingyin, _filter(smsbox, jingyin.port, on_failure) as send:
        for charset in UNREADABLE:
            assert send(_raw(f"/sendsms?text=hello&charset={charset}".encode())).startswith(status), charset
        assert send(_raw(b"/sendsms?charset=UCS-2BE&text=" + quote(THREAT.encode("utf-16-be")).encode())).startswith(
            STOPPED
        )
    assert len(_Smsbox.taken) == (len(UNREADABLE) if on_failure == "pass" else 0)
    assert capfd.readouterr().err.count(f'"action": "{on_failure}", "reason": "LookupError"') >= 3


def test_the_command_listens_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(*given: Any, **options: Any) -> Any:
        with make_server(*given, **options) as server:
            made.append(str(server.server_address[0]))
        return SimpleNamespace(serve_forever=lambda: None)

    monkeypatch.setattr(program, "make_server", make)
    for host in ([], ["--host", "127.0.0.2"]):
        monkeypatch.setattr("sys.argv", ["kannel", *host, "--port", "0"])
        program.main()
    assert made == ["127.0.0.1", "127.0.0.2"]


def test_control_bytes_in_a_url_are_handed_on_escaped_and_never_printed(
    smsbox: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with InThread(deadline_ms=3_000) as jingyin, _filter(smsbox, jingyin.port) as send:
        for byte in (b"\x00", b"\x01", b"\t", b"\x0b", b"\x1f", b"\x7f", b"\xff"):
            assert send(_raw(b"/sendsms?password=secret&text=hello" + byte + b"you")).startswith(PASSED)
        assert send(_raw(b"/sendsms?password=secret&text=hello you")).startswith(REFUSED)
        assert b"secret" not in send(b"secret\r\n\r\n")
    assert [each.rpartition("hello")[2] for each in _Smsbox.taken] == [
        f"%{number}you" for number in ("00", "01", "09", "0B", "1F", "7F", "FF")
    ]
    log = capfd.readouterr().err
    assert "secret" not in log
    assert "Traceback" not in log


def test_smsbox_is_the_only_host_that_is_asked_and_the_whole_of_a_url_is_judged(smsbox: str) -> None:
    threat = quote(THREAT).encode()
    with InThread(deadline_ms=3_000) as jingyin, _filter(smsbox, jingyin.port) as send:
        for target in (b"@127.0.0.1:1/x", b".example.org/x", b"x", b"*", b"ftp://127.0.0.1:1/x", b"http://127.0.0.1:1"):
            assert send(_raw(target)).startswith(REFUSED), target
        assert send(_raw(b"http://127.0.0.1:1/sendsms?text=hello")).startswith(PASSED)
        assert send(_raw(b"/sendsms?text=hello#" + threat)).startswith(STOPPED)  # to Kannel a part of the text
        form = b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s"
        post = b"POST /sendsms%s HTTP/1.1\r\n" + form
        assert send(post % (b"", 5 + len(threat), b"text=" + threat)).startswith(STOPPED)
        assert send(post % (b"?text=" + threat, 5, b"to=20")).startswith(STOPPED)
        assert send(post % (b"", 9, b"text=a")).startswith(REFUSED)
    assert _Smsbox.taken == ["/sendsms?text=hello"]


# ---- Kannel itself

_CONFIG = """
group = core
admin-port = {admin}
admin-password = secret
smsbox-port = {smsbox}
log-file = "{folder}/bearerbox.log"
box-allow-ip = 127.0.0.1

group = smsc
smsc = fake
smsc-id = fake
port = {smsc}
connect-allow-ip = 127.0.0.1

group = smsbox
bearerbox-host = 127.0.0.1
sendsms-port = {sendsms}
log-file = "{folder}/smsbox.log"
http-request-retry = 0

group = sendsms-user
username = user
password = secret
max-messages = 10

group = sms-service
keyword = default
catch-all = true
max-messages = 0
get-url = "{filter}/cgi-bin/sendsms?username=user&password=secret&from=%p&to=%P&coding=%c&udh=%u&text=%b"
"""


def _until(ready: Callable[[], Any], what: str) -> Any:
    for _ in range(200):
        try:
            if found := ready():
                return found
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"no {what} in 20 s")


class Kannel:
    """bearerbox and smsbox with a fake SMSC: `phone` sends and receives lines "from to type text"."""

    def __init__(self, folder: Path, ports: dict[str, int], filtering: str) -> None:
        self.sendsms = f"{filtering}/cgi-bin/sendsms?username=user&password=secret&"
        config = folder / "kannel.conf"
        config.write_text(_CONFIG.format(folder=folder, filter=filtering, **ports))
        self.boxes = [self._start("bearerbox", config)]
        self.phone = _until(lambda: socket.create_connection(("127.0.0.1", ports["smsc"])), "fake SMSC")
        self.boxes.append(self._start("smsbox", config))
        _until(lambda: socket.create_connection(("127.0.0.1", ports["sendsms"])).close() is None, "smsbox")
        self.received = b""

    def _start(self, box: str, config: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([box, "-v", "4", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def delivered(self, seconds: float) -> list[str]:
        """Return the texts that phones received within some seconds."""
        self.phone.settimeout(seconds)
        try:
            while True:
                self.received += self.phone.recv(65_536)
        except TimeoutError:
            pass
        lines, self.received = self.received.splitlines(), b""
        return [unquote_to_bytes(line.split(b" ", 3)[3].replace(b"+", b" ")).decode("utf-16-be") for line in lines]

    def stop(self) -> None:
        self.phone.close()
        for box in reversed(self.boxes):
            box.terminate()
        for box in self.boxes:
            box.wait(20)


@pytest.fixture
def kannel(tmp_path: Path) -> Iterator[Kannel]:
    if not (shutil.which("bearerbox") and shutil.which("smsbox")):
        pytest.skip("Kannel is not installed (Debian package kannel)")
    ports: dict[str, int] = dict(zip(("admin", "smsbox", "smsc", "sendsms"), free_ports(4), strict=True))
    with (
        InThread(deadline_ms=3_000) as jingyin,
        _running(
            make_server(0, f"http://127.0.0.1:{ports['sendsms']}", f"http://127.0.0.1:{jingyin.port}", seconds=5)
        ) as filtering,
    ):
        started = Kannel(tmp_path, ports, filtering)
        yield started
        started.stop()


@pytest.mark.external
def test_sent_by_an_application(kannel: Kannel) -> None:
    for text, status in ((THREAT, 403), (GREETING, 202)):
        for fields in ({"text": text, "charset": "UTF-8"}, {"text": text.encode("utf-16-be")}):
            assert _get(kannel.sendsms + urlencode({"from": "100", "to": "200", "coding": 2, **fields}))[0] == status
    assert kannel.delivered(1.5) == [GREETING, GREETING]


@pytest.mark.external
def test_sent_from_phone_to_phone(kannel: Kannel) -> None:
    for text in (THREAT, GREETING):
        kannel.phone.sendall(f"100 200 ucs2 {quote(text.encode('utf-16-be'))}\n".encode())
    assert kannel.delivered(2.5) == [GREETING]  # max-messages = 0: the sender of the blocked one hears nothing


@pytest.mark.external
def test_what_kannel_takes_for_the_text_is_what_was_judged(kannel: Kannel) -> None:
    head, hello, threat = "from=100&to=200&coding=2&charset=UTF-8", quote(GREETING), quote(THREAT)
    assert _get(f"{kannel.sendsms}{head}&text={hello}&text={threat}")[0] == 202
    assert _get(f"{kannel.sendsms}{head}&text={threat}&text={hello}")[0] == 403
    assert _get(f"{kannel.sendsms}{head}&text=&text={threat}")[0] == 202
    assert kannel.delivered(1.5) == [GREETING, ""]
