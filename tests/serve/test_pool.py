"""Processes that score for one parent, and end with it."""

import gc
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from itertools import repeat
from multiprocessing import active_children
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest
from tests.serve.processes import children, runs

from jingyin import Scorer
from jingyin.model.errors import BundleError, JingyinError
from jingyin.model.labels import LABELS
from jingyin.serve import pool

START_SECONDS = 300
"""For three processes that load the bundle: 1 s on a calm machine, minutes on one that is busy with other things."""
END_SECONDS = 20

STREAM = """
from itertools import repeat
from jingyin import Scorer
from jingyin.serve import scorer

if __name__ == "__main__":
    scorer._ALONE_SECONDS = 0.0
    for verdict in Scorer.load().score_many(repeat("明天下午三点老地方见"), processes=2):
        print(verdict.label, flush=True)
"""


@pytest.mark.exhaustive
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "stream.py"
    script.write_text(STREAM, encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment) as process:
        overdue = threading.Timer(START_SECONDS, process.kill)
        overdue.start()
        assert process.stdout
        for line in process.stdout:
            assert line.decode().strip() in LABELS
            if len(workers := children(process.pid)) >= 2:
                break
        overdue.cancel()
        process.send_signal(signal.SIGKILL)
    assert len(workers) >= 2
    deadline = time.monotonic() + END_SECONDS
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(filter(runs, workers))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes after the first chunk."""
    monkeypatch.setattr("jingyin.serve.scorer._ALONE_SECONDS", 0.0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"id": "0123456789abcdef"}, r"the bundle changed from 0123456789abcdef to [0-9a-f]{16} .*; start again"),
        ({"bundle": Path("/none/gone")}, "/none/gone"),
    ],
)
def test_workers_refuse_another_bundle_than_their_parent_read(
    signed_bundle: Path, changed: dict[str, object], message: str
) -> None:
    scorer = Scorer.load(signed_bundle)
    scorer.arguments = scorer.arguments._replace(**changed)
    with pytest.raises(BundleError, match=message):
        deque(scorer.score_many(["你好"] * 600, processes=2), maxlen=0)


def test_a_short_stream_starts_no_process(signed: Scorer) -> None:
    assert len(list(signed.score_many(["你好"] * 600, processes=2))) == 600
    assert not active_children()


def dies_while_it_answers() -> None:
    """Leave half a result in the pipe, and its lock taken."""
    (results,) = (each for each in gc.get_objects() if isinstance(each, SimpleQueue))
    results._wlock.acquire()
    os.write(results._writer.fileno(), struct.pack("!i", 1_000) + b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_while_it_answers_is_said_too() -> None:
    with pytest.raises(JingyinError, match="a scoring process was killed"), pool.unbroken(""):  # noqa: SIM117
        with pool.process_pool(2) as processes:
            processes.submit(dies_while_it_answers).result(60)


@pytest.mark.usefixtures("at_once")
def test_a_killed_worker_is_said(scorer: Scorer) -> None:
    stream = scorer.score_many(repeat("你好"), processes=2)
    while not active_children():
        next(stream)
    for child in active_children():
        child.kill()
    with pytest.raises(JingyinError, match=r"a scoring process was killed, .*; score again in fewer processes"):
        deque(stream, maxlen=0)
