"""Several worker processes behind one socket."""

import fcntl
import json
import os
import re
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from threading import Event
from time import sleep

import pytest
from tests.serve.http.http_fakes import SECRET, Process, post, receive, until
from tests.serve.processes import children, runs

GET = "GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def workers(server: Process) -> set[int]:
    return set(children(server.process.pid))


def gauges(folder: Path) -> set[int]:
    """Return the numbers of the workers that have gauges, in one file for each way of merging them."""
    return {int(file.stem.rpartition("_")[2]) for file in folder.glob("jingyin-*/metrics/gauge*.db")}


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


@pytest.mark.exhaustive
def test_dead_workers_are_replaced_and_all_end_with_their_parent(name: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with Process({"NAME": str(name), "TMPDIR": str(tmp_path), "BROKEN": str(broken)}, workers=2) as server:
        before = workers(server)
        assert len(before) == 2
        assert bundles(server) == {"first": 40}
        found = metrics(server)
        assert 'jingyin_messages_total{action="block",stage="network"} 40.0' in found
        assert 'jingyin_requests_total{route="/v1/score",status="200"} 40.0' in found
        assert 'jingyin_bundle_info{id="first",role="deployed"} 2.0' in found
        assert 'jingyin_cache{what="budget"} 8.0' in found
        assert "jingyin_workers_replaced_total 0.0" in found
        for number in (1, 2, 3):
            before, dead = workers(server), min(workers(server))
            os.kill(dead, signal.SIGKILL)
            until(lambda dead=dead: dead not in workers(server))
            assert bundles(server) == {"first": 40}  # by the other
            until(lambda number=number: f"jingyin_workers_replaced_total {number}.0" in metrics(server))
            assert len(workers(server) - before) == 1
            until(lambda: 'jingyin_bundle_info{id="first",role="deployed"} 2.0' in metrics(server))
        assert 'jingyin_messages_total{action="block",stage="network"} 160.0' in metrics(server)  # the dead ones' too

        broken.touch()
        server.process.send_signal(signal.SIGHUP)
        until(lambda: 'jingyin_reloads_total{outcome="failed"} 1.0' in metrics(server))
        broken.unlink()
        for sign in (signal.SIGTTIN, signal.SIGHUP):
            server.process.send_signal(sign)
        until(lambda: 'jingyin_reloads_total{outcome="done"} 2.0' in metrics(server))
        until(lambda: len(gauges(tmp_path)) == len(workers(server)) == 2)
        assert 'jingyin_messages_total{action="block",stage="network"} 160.0' in metrics(server)
        assert len(list(tmp_path.glob("jingyin-*/metrics/*_*.db"))) <= 2 + 3 * 3  # two at work, one more in a reload
        (folder,) = tmp_path.glob("jingyin-*")
        with pytest.raises(BlockingIOError):  # so that systemd-tmpfiles does not clear it
            fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
        left = workers(server)
        server.process.kill()
        until(lambda: not any(map(runs, left)))
    assert '"event":"worker_died","status":-9' in server.log


@pytest.mark.exhaustive
def test_a_reload_replaces_every_worker_under_load_or_none(name: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with Process({"NAME": str(name), "BROKEN": str(broken)}, workers=2) as server, ThreadPoolExecutor(4) as threads:
        name.write_text("second")
        asked = post({}, "/admin/reload", close=True)
        assert body(server.send(asked)) == {"reload": "begun", "bundle": "first"}
        stop = Event()
        clients = [threads.submit(keep_asking, server, stop) for _ in range(4)]
        until(lambda: 'jingyin_bundle_info{id="second",role="deployed"} 2.0' in metrics(server))
        stop.set()
        assert "first" in set().union(*(each.result(20) for each in clients))  # and none was lost
        until(lambda: bundles(server) == {"second": 40})
        assert 'jingyin_reloads_total{outcome="done"} 2.0' in metrics(server)

        name.write_text("third")
        broken.touch()
        server.process.send_signal(signal.SIGHUP)
        until(lambda: 'jingyin_reloads_total{outcome="failed"} 1.0' in metrics(server))
        assert bundles(server) == {"second": 40}
        assert 'jingyin_bundle_info{id="second",role="deployed"} 2.0' in metrics(server)
    events = [json.loads(line)["event"] for line in server.log.splitlines() if line.startswith("{")]
    assert (events.count("reloaded"), events.count("reload_failed"), events[-1]) == (1, 1, "ended")
    assert '"reason":"golden message 0 is off; export the bundle anew"' in server.log


def keep_asking(server: Process, stop: Event) -> set[object]:
    """Ask over connections that are kept until the service closes them; return the bundles that answered."""
    found: set[object] = set()
    while not stop.is_set():
        with server.connect() as connection:
            answer = b""
            while not stop.is_set() and b"connection: close" not in answer:
                connection.sendall(post({"text": "快"}))
                answer = receive(connection)
                assert answer.startswith(b"HTTP/1.1 200 "), answer
                found.add(body(answer)["bundle"])
                sleep(0.02)  # which leaves the processor to the workers that start
    return found


@pytest.mark.exhaustive
def test_a_bundle_that_fails_its_checks_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    server = Process({"BROKEN": str(tmp_path / "broken")})
    log = server.process.communicate(timeout=100)[1].decode()
    server.folder.cleanup()
    assert server.process.returncode == 1
    assert '"event":"worker_failed","reason":"golden message 0 is off; export the bundle anew"' in log
    assert log.endswith("JingyinError: a worker could not start; the lines above say why\n")
    assert '"event":"serving"' not in log


@pytest.mark.exhaustive
def test_while_no_worker_can_start_a_reload_changes_no_secret_and_a_death_ends_the_service(tmp_path: Path) -> None:
    secret, broken = tmp_path / "state_secret", tmp_path / "broken"
    secret.write_text("ab" * 32)
    with Process({"TMPDIR": str(tmp_path), "BROKEN": str(broken)}, state_secret=str(secret)) as server:
        (copy,) = tmp_path.glob("jingyin-*/secret")
        secret.write_text("cd" * 32)
        broken.touch()
        server.process.send_signal(signal.SIGHUP)
        until(lambda: 'jingyin_reloads_total{outcome="failed"} 1.0' in metrics(server))
        until(lambda: copy.read_text() == "ab" * 32, 10)

        (worker,) = workers(server)
        os.kill(worker, signal.SIGSTOP)
        sleep(1)  # until its parent waits for a sign of life
        os.kill(worker, signal.SIGKILL)
        assert server.process.wait(40) == 1
    assert server.log.endswith("JingyinError: a worker could not start; the lines above say why\n")


@pytest.mark.exhaustive
def test_a_reload_that_ends_half_way_is_an_error(name: Path, tmp_path: Path) -> None:
    # Two workers start, and the first of the reload.
    with Process({"NAME": str(name), "STARTS": str(tmp_path / "starts")}, workers=2) as server:
        name.write_text("second")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: 'jingyin_reloads_total{outcome="failed"} 1.0' in metrics(server))
        assert {*bundles(server)} == {"first", "second"}
    events = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    found = [each for each in events if each["event"].startswith("reload")]
    wanted = {"level": "error", "event": "reload_incomplete", "replaced": 1, "workers": 2}
    assert [{key: each[key] for key in each if key != "time"} for each in found] == [wanted]


@pytest.mark.exhaustive
def test_a_server_that_is_told_to_stop_while_it_starts_has_not_failed() -> None:
    server = Process({"SLOW": "3"}, workers=2)
    until(lambda: len(workers(server)) == 2)
    server.process.send_signal(signal.SIGTERM)
    log = server.process.communicate(timeout=60)[1].decode()
    server.folder.cleanup()
    assert (server.process.returncode, '"event":"serving"' in log, '"event":"ended"' in log) == (0, False, True)


@pytest.mark.exhaustive
def test_a_worker_is_replaced_and_reloaded_while_files_are_faulty(tmp_path: Path) -> None:
    policy, keys, broken = (tmp_path / name for name in ("policy", "keys", "broken"))
    policy.write_text('rules: [{name: theirs, sender: ["10690*"], action: block}]')
    keys.write_text(f"gateway {sha256(b'key').hexdigest()} admin\n")
    nowhere = {"XDG_STATE_HOME": "/proc/nowhere", "BROKEN": str(broken)}

    def ask(content: dict[str, str], path: str = "/v1/score") -> dict[str, object]:
        head = b"Host: x\r\nAuthorization: Bearer key\r\nContent-Type: application/json"
        return body(server.send(post(content, path, close=True).replace(b"Host: x", head)))

    def reload(outcome: str) -> None:
        before = outcomes(server)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: outcomes(server) != before and any(outcome in each for each in outcomes(server)))

    def outcomes(server: Process) -> list[str]:
        return re.findall(r"jingyin_reloads_total.*", metrics(server))

    def by_both(content: dict[str, str], field: str) -> set[object]:
        return {ask(content)[field] for _ in range(12)}

    with Process(nowhere, policy=str(policy), keys=str(keys), workers=2) as server:
        text = "今晚不还就死定了你等着"
        assert ask({"text": text, "action": "review"}, "/admin/known")["id"]

        # Someone is still writing the next policy and the next keys when a worker dies.
        policy.write_text("rules: [{name: theirs, sender: 5}]")
        keys.write_text(f"gateway {sha256(b'key').hexdigest()} admin\nother half-writ")
        os.kill(min(workers(server)), signal.SIGKILL)
        until(lambda: 'role="deployed"} 2.0' not in metrics(server))
        until(lambda: 'role="deployed"} 2.0' in metrics(server))
        assert by_both({"text": "a", "sender": "106901"}, "rule") == {"theirs"}
        until(lambda: by_both({"text": text}, "reason") == {"known"})

        reload("failed")
        policy.write_text('rules: [{name: ours, sender: ["10690*"], action: block}]')
        broken.write_text(SECRET)
        reload("failed")
        broken.unlink()
        reload("done")
        until(lambda: by_both({"text": "a", "sender": "106901"}, "rule") == {"ours"})
        until(lambda: by_both({"text": text}, "reason") == {"known"})  # though no secret could be kept
    assert f"policy {policy} is wrong" in server.log
    assert '"event":"worker_failed","error":"RuntimeError","at":"load:' in server.log
    assert SECRET not in server.log
