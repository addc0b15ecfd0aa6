"""Several worker processes behind one socket."""

import json
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.serve.http.http_fakes import Process, post, until

pytestmark = pytest.mark.service

GET = "GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def workers(server: Process) -> set[int]:
    command = ["pgrep", "-P", str(server.process.pid), "-f", "spawn_main"]
    return set(map(int, subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()))


def body(answer: bytes) -> dict[str, object]:
    return json.loads(answer.partition(b"\r\n\r\n")[2])  # type: ignore[no-any-return]


def bundles(server: Process, requests: int = 40) -> Counter[object]:
    """Ask over connections of their own, and count the bundles that answer."""
    asked = [post({"text": f"死{number}"}, close=True) for number in range(requests)]
    with ThreadPoolExecutor(8) as threads:
        return Counter(body(answer)["bundle"] for answer in threads.map(server.send, asked))


def metrics(server: Process) -> str:
    return server.send(GET.format("/metrics").encode()).decode()


@pytest.fixture
def name(tmp_path: Path) -> Path:
    """A file with the name of the bundle that is loaded."""
    (tmp_path / "name").write_text("first")
    return tmp_path / "name"


def test_one_set_of_metrics_and_a_killed_worker_is_replaced_and_counted(name: Path) -> None:
    with Process({"NAME": str(name)}, workers=2) as server:
        before = workers(server)
        assert len(before) == 2
        assert bundles(server) == {"first": 40}
        found = metrics(server)
        assert 'jingyin_messages_total{action="block",stage="network"} 40.0' in found
        assert 'jingyin_requests_total{route="/v1/score",status="200"} 40.0' in found
        assert 'jingyin_bundle_info{id="first",role="deployed"} 2.0' in found
        assert 'jingyin_cache{what="budget"} 8.0' in found
        assert "jingyin_workers_replaced_total 0.0" in found
        subprocess.run(["kill", "-9", str(min(before))], check=True)
        until(lambda: min(before) not in workers(server))
        assert bundles(server) == {"first": 40}  # by the other
        until(lambda: "jingyin_workers_replaced_total 1.0" in metrics(server))
        assert len(workers(server) - before) == 1
        found = metrics(server)
        assert 'jingyin_messages_total{action="block",stage="network"} 80.0' in found  # the dead one's too
        assert 'jingyin_bundle_info{id="first",role="deployed"} 2.0' in found
    assert server.process.returncode == 0
    assert '"event":"worker_died","status":-9,"ready":true' in server.log


def test_all_workers_reload_or_none(name: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with Process({"NAME": str(name), "BROKEN": str(broken)}, workers=2) as server:
        name.write_text("second")
        reload = b"POST /admin/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        assert body(server.send(reload)) == {"bundle": "second"}
        assert bundles(server) == {"second": 40}
        found = metrics(server)
        assert 'jingyin_bundle_info{id="second",role="deployed"} 2.0' in found
        assert 'jingyin_bundle_info{id="first",role="deployed"} 0.0' in found

        name.write_text("third")
        broken.write_text(str(max(workers(server))))  # refused by one of them
        refused = server.send(reload)
        assert refused.startswith(b"HTTP/1.1 500 ")
        assert body(refused)["error"] == "golden message 0 is off; export the bundle anew"
        server.process.send_signal(signal.SIGHUP)
        until(lambda: 'jingyin_reloads_total{outcome="failed"} 4.0' in metrics(server))  # twice in two workers
        assert bundles(server) == {"second": 40}

        broken.unlink()
        server.process.send_signal(signal.SIGHUP)
        until(lambda: 'jingyin_bundle_info{id="third",role="deployed"} 2.0' in metrics(server))
        assert bundles(server) == {"third": 40}
    events = [json.loads(line)["event"] for line in server.log.splitlines()]
    assert (events.count("reloaded"), events.count("reload_failed"), events[-1]) == (2, 2, "ended")


def test_a_bundle_that_fails_its_checks_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    server = Process({"BROKEN": str(tmp_path / "broken")}, workers=2)
    log = server.process.communicate(timeout=200)[1].decode()
    assert server.process.returncode == 1
    assert log.endswith("BundleError: golden message 0 is off; export the bundle anew\n")
    assert '"event":"serving"' not in log


def test_workers_end_when_the_supervisor_is_killed() -> None:
    with Process(workers=2) as server:
        left = workers(server)
        server.process.kill()
        until(lambda: not any(map(_runs, left)))


def _runs(process: int) -> bool:
    """Whether a process is there and no zombie: in a container nobody may reap an orphan."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
