import json
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.serve.http.http_fakes import SECRET, InThread, Process, post, read_all, receive

from jingyin.model.errors import ConfigError
from jingyin.serve.http.process import address, bind
from jingyin.serve.http.settings import load_settings

pytestmark = pytest.mark.service


@pytest.mark.parametrize(
    ("fake", "workers"),
    [(True, 1), (False, 1), (True, 2), (False, 2)],
    ids=["fake scorer", "default bundle", "two workers, fake scorer", "two workers"],
)
def test_sigterm_under_load_loses_no_request(fake: bool, workers: int) -> None:
    def client(number: int) -> list[bytes]:
        """Send the next message, for the network, on each answer, until one says that the connection closes."""
        responses = [b""]
        with server.connect() as connection:
            while b"connection: close" not in responses[-1]:
                # From 0x7000 on there is no character that the fake scorer heeds, such as 坏, on which it fails.
                sign = chr(0x7000 + 999 * number + len(responses) % 999)
                connection.sendall(post({"text": f"呼死你{sign}"}))
                responses.append(receive(connection))
                assert responses[-1], "the connection was closed before an answer"
        return responses[1:]

    with Process(fake=fake, workers=workers) as server, ThreadPoolExecutor(8) as threads:
        clients = [threads.submit(client, number) for number in range(8)]
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        responses = [response for each in clients for response in each.result(30)]
        assert server.process.wait(20) == 0
    assert len(responses) > 8
    unscored = [each for each in responses if not each.startswith(b"HTTP/1.1 200 ") or b'"reason":"scored"' not in each]
    assert not unscored
    assert '"event":"ended"' in server.log


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_just_after_the_start_loses_no_request(workers: int) -> None:
    with Process(workers=workers) as server, server.connect() as connection:
        connection.sendall(post({"text": "死"}))
        server.process.send_signal(signal.SIGTERM)
        assert b'"action":"block","reason":"scored"' in receive(connection)
        assert server.process.wait(20) == 0


def test_sighup_reloads_a_broken_bundle_is_left_and_sigterm_answers_what_was_taken(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with Process({"BROKEN": str(broken)}, deadline_ms=5_000) as server, server.connect() as connection:
        connection.sendall(post({"text": "死"}))
        receive(connection)  # the loop runs, so SIGHUP has its handler
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        broken.touch()
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        connection.sendall(post({"text": "死" + "慢" * 400}))
        time.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        assert b'"action":"block","reason":"scored"' in read_all(connection)
    events = [json.loads(line)["event"] for line in server.log.splitlines()]
    assert {"reloaded", "reload_failed", "sighup_ignored", "ended"} <= set(events)
    assert "golden message 0 is off" in server.log


def test_a_half_closed_client_gets_its_answer() -> None:
    with InThread() as server:
        assert b'"action":"block"' in server.send(post({"text": "死"}), half_close=True)
        assert server.send(b"POST /v1/score HTTP/1.1\r\nContent-Le", half_close=True) == b""


def test_slow_clients_get_408_and_are_closed() -> None:
    head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    with InThread(read_seconds=0.3) as server:
        for beginning in (head + b'{"text"', head[:30]):
            answer = server.send(beginning)
            assert answer.startswith(b"HTTP/1.1 408 ")
        assert server.send(b"").startswith(b"HTTP/1.1 408 ")
        metrics = server.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b'jingyin_refused_total{reason="slow"} 3.0' in metrics


GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
LONG = b"X-Long: " + b"a" * 8_192 + b"\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [GET + LONG + b"\r\n"],
        [b"GET /healthz?" + b"a" * 8_192 + b" HTTP/1.1\r\nHost: x\r\n\r\n"],
        [GET + b"".join(b"X-%d: \r\n" % number for number in range(1_000)) + b"\r\n"],
        [GET + b"X-Endless: ", *[b"a" * 1_024] * 9],
        [b"GET /" + b"a" * 9_000],
        [GET + LONG * 100],
    ],
    ids=["a long header", "a long URL", "many headers", "a header without end", "a URL without end", "800 KB at once"],
)
def test_headers_of_more_than_8_kib_get_431(pieces: list[bytes]) -> None:
    with InThread() as server:
        with server.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.01)
            answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert b"connection: close" in answer
        metrics = server.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b'jingyin_refused_total{reason="headers"} 1.0' in metrics


def test_headers_of_8_kib_and_many_requests_at_once_are_fine() -> None:
    large = GET + LONG[:-200] + b"\r\n\r\n"
    with InThread() as server:
        closing = GET + b"Connection: close\r\n\r\n"
        assert server.send(large * 20 + closing).count(b"HTTP/1.1 200 ") == 21
        with server.connect() as connection:  # the body before it does not count
            connection.sendall(post({"text": "a" * 60_000}) + GET)
            assert receive(connection).startswith(b"HTTP/1.1 200 ")
            connection.sendall(b"\r\n")
            assert receive(connection).startswith(b"HTTP/1.1 200 ")


def test_the_request_before_too_long_headers_gets_its_answer() -> None:
    with InThread() as server:
        answer = server.send(post({"text": "死" + "慢" * 100}) + GET + LONG + b"\r\n")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b'"action":"block"' in answer


def test_nonsense_and_a_large_body() -> None:
    with InThread() as server:
        assert server.send(b"\x16\x03\x01 nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        with server.connect() as connection:
            connection.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n")
            for _ in range(10):
                connection.sendall(b"a" * 1_000_000)
            assert receive(connection).startswith(b"HTTP/1.1 413 ")
            connection.sendall(post({"text": "死"}))  # the connection goes on after it
            assert b'"block"' in receive(connection)


def test_beyond_the_limit_of_requests_503_at_once() -> None:
    with InThread(max_requests=2, deadline_ms=5_000) as server:
        slow = [server.connect() for _ in range(2)]
        for connection in slow:
            connection.sendall(post({"text": "慢" * 300}))
        time.sleep(0.1)
        with server.connect() as connection:
            start = time.perf_counter()
            connection.sendall(post({"text": "a"}))
            answer = receive(connection)
            assert time.perf_counter() - start < 0.15
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in answer
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")  # else the orchestrator ends a busy service
            assert receive(connection).startswith(b"HTTP/1.1 200 ")
            for each in slow:
                assert receive(each).startswith(b"HTTP/1.1 200 ")
            connection.sendall(post({"text": "a"}))
            assert receive(connection).startswith(b"HTTP/1.1 200 ")
        for each in slow:
            each.close()


def test_an_answered_request_holds_no_place() -> None:
    with InThread(max_requests=1) as server, server.connect() as one, server.connect() as other:
        for connection in (one, other) * 100:
            connection.sendall(post({"text": "a"}))
            assert receive(connection).startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_answered_in_order() -> None:
    with InThread(max_requests=1) as server, server.connect() as connection:
        for name in ("a", "b", "c"):
            connection.sendall(post({"text": "慢" * 5, "request_id": name}))
        data = b""
        while data.count(b'"request_id"') < 3:
            data += connection.recv(65_536)
        assert [data.index(f'"request_id":"{name}"'.encode()) for name in "abc"] == sorted(
            data.index(f'"request_id":"{name}"'.encode()) for name in "abc"
        )


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
    with InThread(uds=str(path)), socket.socket(socket.AF_UNIX) as connection:
        assert oct(path.stat().st_mode & 0o777) == "0o660"
        connection.connect(str(path))
        connection.sendall(post({"text": "死"}))
        assert b'"block"' in receive(connection)
        with pytest.raises(ConfigError, match=r"can't listen on .*: Address already in use"):
            bind(load_settings(uds=path))


def test_tls(tmp_path: Path) -> None:
    import ssl

    key, certificate = tmp_path / "k.pem", tmp_path / "c.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    try:
        made = subprocess.run(
            [*command, "-keyout", key, "-out", certificate, "-subj", "/CN=x"], capture_output=True, check=False
        ).returncode
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert made == 0
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    with (
        InThread(tls_certificate=str(certificate), tls_key=str(key)) as server,
        context.wrap_socket(server.connect()) as connection,
    ):
        connection.sendall(post({"text": "死"}))
        assert b'"block"' in receive(connection)


def test_a_taken_address_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^can't listen on 127.0.0.1:{port}: Address already in use"):
            bind(load_settings(port=port))


def test_an_ipv6_address_is_bracketed() -> None:
    class Listener:
        def getsockname(self) -> tuple[str, int, int, int]:
            return "::1", 8080, 0, 0

    assert address(load_settings(host="::1"), Listener()) == "http://[::1]:8080"  # type: ignore[arg-type]


def test_the_base_package_needs_none_of_this() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = sys.modules['uvicorn'] = None; "
        "import importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda n, *a: None if n in ('fastapi', 'uvicorn') else find(n, *a); "
        "import jingyin, jingyin.serve.sms\n"
        "try:\n import jingyin.serve.http\nexcept jingyin.ConfigError as error:\n print(error)"
    )
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout == "the HTTP service needs fastapi, uvicorn; run: pip install 'jingyin[serve]'\n"
