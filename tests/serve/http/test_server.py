import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from select import select

import pytest
from tests.serve.http.http_fakes import SECRET, FakeScorer, InThread, Process, exchange, post, read_all, receive

from jingyin.model.bundle import default_path
from jingyin.model.errors import ConfigError
from jingyin.serve.http import connection
from jingyin.serve.http.deployment import load_scorers
from jingyin.serve.http.process import address, bind, listening
from jingyin.serve.settings import load_settings


@pytest.mark.exhaustive
def test_sigterm_under_load_loses_no_request() -> None:
    def send(number: int) -> list[bytes]:
        """Send the next message, for the network, on each answer, until one says that the connection closes."""
        responses = [b""]
        with server.connect() as client:
            while b"connection: close" not in responses[-1]:
                # From 0x7000 on there is no character that the fake scorer heeds, such as 坏, on which it fails.
                sign = chr(0x7000 + 999 * number + len(responses) % 999)
                client.sendall(post({"text": f"呼死你{sign}"}))
                responses.append(receive(client))
                assert responses[-1], "the connection was closed before an answer"
        return responses[1:]

    with Process(workers=2) as server, ThreadPoolExecutor(8) as threads:
        clients = [threads.submit(send, number) for number in range(8)]
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        responses = [response for each in clients for response in each.result(30)]
        assert server.process.wait(60) == 0
    assert len(responses) > 8
    unscored = [each for each in responses if not each.startswith(b"HTTP/1.1 200 ") or b'"reason":"scored"' not in each]
    assert not unscored
    assert '"event":"ended"' in server.log


@pytest.mark.exhaustive
def test_the_very_first_request_is_a_threat_and_read_and_sigterm_just_after_the_start_loses_nothing() -> None:
    with Process(fake=False, deadline_ms=50) as server, server.connect() as client:
        client.sendall(post({"text": "有人出钱让我们呼死你，转300元就停"}))
        server.process.send_signal(signal.SIGTERM)
        assert b'"action":"pass"' not in receive(client)
        assert server.process.wait(60) == 0


def test_what_is_loaded_is_warm(tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to(default_path())
    scorer, _ = load_scorers(load_settings(), tmp_path)
    for length in (1, 5, 30):
        start = time.process_time()
        list(scorer.scored(["有人出钱让我们呼死你，转300元就停" * length]))
        assert time.process_time() - start < 0.05


METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.exhaustive
def test_slow_clients_get_408_and_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "READ_SECONDS", 0.3)
    head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    with InThread() as server:
        for beginning in (head + b'{"text"', head[:30], b""):
            assert server.send(beginning).startswith(b"HTTP/1.1 408 ")
        with server.connect() as client:  # a second request is as slow
            exchange(client, post({"text": "a"}))
            client.sendall(head[:30])
            assert read_all(client).startswith(b"HTTP/1.1 408 ")
        metrics = server.send(METRICS)
    assert b'jingyin_refused_total{reason="slow"} 4.0' in metrics


def test_an_analyst_who_leaves_before_the_end_is_no_fault(capfd: pytest.CaptureFixture[str]) -> None:
    head = b"POST /admin/trial HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    with InThread() as server:
        with server.connect() as client:
            client.sendall(head + b'{"text"')
            time.sleep(0.1)
        time.sleep(0.1)
    assert '"status":408' in (log := capfd.readouterr().err)
    assert '"event":"fault"' not in log


def test_an_offered_upgrade_is_ignored_and_the_body_read() -> None:
    request = post({"text": "死"}).replace(
        b"Host: x\r\n",  # as Java's HttpClient asks
        b"Connection: Upgrade, HTTP2-Settings\r\nHost: x\r\nHTTP2-Settings: AAEAAEAA\r\nUpgrade: h2c\r\n",
    )
    with InThread() as server, server.connect() as client:
        for pieces in ([request], [request[:-10], request[-10:]], [request[:-90], request[-90:]]):
            client.sendall(post({}, "/nothing"))  # answered early: nobody reads its body
            assert receive(client).startswith(b"HTTP/1.1 404 ")
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.05)
            assert b'"action":"block"' in receive(client)


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_a_chunk_of_a_body_that_looks_like_an_upgrade_stays_as_it_is(cut: int) -> None:
    head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = [b'{"text":"', 'upgrade: 死"}'.encode(), b""]
    request = head + b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in chunks)
    scorer = FakeScorer(mark="upgrade")
    with InThread(lambda *_: (scorer, None)) as server, server.connect() as client:
        for piece in (request[: len(head) - cut], request[len(head) - cut :]):
            client.sendall(piece)
            time.sleep(0.05)
        assert b'"action":"block"' in receive(client)


GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
LONG = b"X-Long: " + b"a" * 8_192 + b"\r\n"


@pytest.mark.parametrize(
    "pieces",
    [[GET + b"X-Endless: ", *[b"a" * 1_024] * 9], [b"GET /" + b"a" * 9_000]],
    ids=["a header without end", "a URL without end"],
)
def test_headers_that_do_not_end_in_8_kib_get_431(pieces: list[bytes]) -> None:
    with InThread() as server:
        with server.connect() as client:
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.01)
            answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert b"connection: close" in answer
        assert b'jingyin_refused_total{reason="headers"} 1.0' in server.send(METRICS)


def test_headers_without_end_after_an_early_answer_are_refused_too(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(f"gateway {'0' * 64}\n")
    with InThread(keys=keys) as server, server.connect() as client:
        assert exchange(client, post({"text": "a"})).startswith(b"HTTP/1.1 401 ")
        client.sendall(GET)
        with pytest.raises(ConnectionError):
            client.sendall(LONG * 10_000)
        assert b'jingyin_refused_total{reason="headers"} 1.0' in server.send(METRICS)


def test_headers_of_8_kib_and_many_requests_at_once_are_fine() -> None:
    large = GET + LONG[:-200] + b"\r\n\r\n"
    with InThread() as server:
        closing = GET + b"Connection: close\r\n\r\n"
        assert server.send(large * 20 + closing).count(b"HTTP/1.1 200 ") == 21
        with server.connect() as client:  # the body before it does not count
            assert exchange(client, post({"text": "a" * 60_000}) + GET).startswith(b"HTTP/1.1 200 ")
            assert exchange(client, b"\r\n").startswith(b"HTTP/1.1 200 ")


def test_nonsense_and_a_large_body() -> None:
    with InThread() as server:
        assert server.send(b"\x16\x03\x01 nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        assert b'jingyin_refused_total{reason="malformed"} 1.0' in server.send(METRICS)
        with server.connect() as client:
            client.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n")
            for _ in range(10):
                client.sendall(b"a" * 1_000_000)
            assert receive(client).startswith(b"HTTP/1.1 413 ")
            client.sendall(post({"text": "死"}))  # the connection goes on after it
            assert b'"block"' in receive(client)


def test_beyond_its_share_of_requests_a_client_gets_503_at_once_and_others_are_served() -> None:
    with InThread(max_requests=4, deadline_ms=5_000) as server, ExitStack() as opened:
        slow = [opened.enter_context(server.connect()) for _ in range(2)]
        for client in slow:
            client.sendall(post({"text": "慢" * 300}))
        time.sleep(0.1)
        third = opened.enter_context(server.connect())
        answer = exchange(third, post({"text": "a"}))
        assert select(slow, [], [], 0)[0] == []  # those before it are not answered yet
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        third.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")  # else the orchestrator ends a busy service
        assert receive(third).startswith(b"HTTP/1.1 200 ")
        address = ("127.0.0.1", server.port)
        other = opened.enter_context(socket.create_connection(address, 10, source_address=("127.0.0.2", 0)))
        assert exchange(other, post({"text": "快"})).startswith(b"HTTP/1.1 200 ")
        for client in slow:
            assert receive(client).startswith(b"HTTP/1.1 200 ")
        assert exchange(third, post({"text": "a"})).startswith(b"HTTP/1.1 200 ")


def test_connections_have_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 1)
    with InThread() as server, server.connect() as first:
        exchange(first, post({"text": "a"}))
        with server.connect() as second:
            assert read_all(second).startswith(b"HTTP/1.1 503 ")
        assert b'jingyin_refused_total{reason="connections"} 1.0' in exchange(first, METRICS)


def test_an_answered_request_holds_no_place() -> None:
    with InThread(max_requests=1) as server, server.connect() as one, server.connect() as other:
        for client in (one, other) * 100:
            assert exchange(client, post({"text": "a"})).startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_answered_in_order() -> None:
    with InThread(max_requests=1) as server, server.connect() as client:
        for name in ("a", "b", "c"):
            client.sendall(post({"text": "慢" * 5, "request_id": name}))
        data = b""
        while data.count(b'"request_id"') < 3:
            data += client.recv(65_536)
        places = [data.index(f'"request_id":"{name}"'.encode()) for name in "abc"]
        assert places == sorted(places)


def test_no_text_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    with InThread(log_requests="all") as server:
        server.send(post({"text": SECRET}, close=True))
        server.send(post({"text": f"坏{SECRET}"}, close=True))
        server.send(post({SECRET: 1}, close=True))
        server.send(f"GET /{SECRET} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        server.send(SECRET.encode() + b" / HTTP/1.1\r\n\r\n")
    log = capfd.readouterr().err
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"request", "message_failed"} <= {line["event"] for line in lines}
    assert SECRET not in log
    assert "13800138000" not in log
    assert "Traceback" not in log


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    with InThread(uds=str(path)), socket.socket(socket.AF_UNIX) as client:
        assert oct(path.stat().st_mode & 0o777) == "0o660"
        client.connect(str(path))
        assert b'"block"' in exchange(client, post({"text": "死"}))
        with pytest.raises(ConfigError, match=r"can't listen on .*: Address already in use"):
            bind(load_settings(uds=path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as of_another_kind:  # in use, though it can't be connected to
        of_another_kind.bind(str(tmp_path / "d"))
        with pytest.raises(ConfigError, match="can't listen on"):
            bind(load_settings(uds=tmp_path / "d"))
        assert (tmp_path / "d").is_socket()
    with pytest.raises(ConfigError, match=r"can't listen on .*/none/s: there is no folder .*/none; create it"):
        bind(load_settings(uds=tmp_path / "none" / "s"))


def test_tls(tmp_path: Path) -> None:
    import ssl

    key, certificate = tmp_path / "k.pem", tmp_path / "c.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x"
    try:
        subprocess.run([*command.split(), "-keyout", key, "-out", certificate], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    with (
        InThread(tls_certificate=str(certificate), tls_key=str(key)) as server,
        context.wrap_socket(server.connect()) as client,
    ):
        assert b'"block"' in exchange(client, post({"text": "死"}))


def test_a_taken_address_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^can't listen on 127.0.0.1:{port}: Address already in use"):
            bind(load_settings(port=port))


def test_an_address_that_can_not_be_a_name_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^can't listen on a\.\.b:0: .*label"):
        bind(load_settings(host="a..b", port=0, allow_open=True))


def test_an_ipv6_address_is_bracketed() -> None:
    class Listener:
        def getsockname(self) -> tuple[str, int, int, int]:
            return "::1", 8080, 0, 0

    assert address(load_settings(host="::1"), Listener()) == "http://[::1]:8080"  # type: ignore[arg-type]


def test_a_unix_socket_is_removed_at_the_end_and_that_of_a_successor_stays(tmp_path: Path) -> None:
    settings = load_settings(uds=tmp_path / "s")
    with listening(settings):
        assert settings.uds.is_socket()
    assert not settings.uds.exists()
    with listening(settings):
        settings.uds.unlink()
        successor = bind(settings)
    with successor, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(settings.uds))


def test_the_base_package_needs_none_of_this() -> None:
    code = (
        "import sys; sys.modules['starlette'] = sys.modules['uvicorn'] = None; "
        "import importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda n, *a: None if n in ('starlette', 'uvicorn') else find(n, *a); "
        "import jingyin, jingyin.serve.sms\n"
        "try:\n import jingyin.serve.http\nexcept jingyin.ConfigError as error:\n print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "the HTTP service needs starlette, uvicorn; run: pip install 'jingyin[serve]'\n"
