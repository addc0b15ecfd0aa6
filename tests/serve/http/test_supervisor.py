"""The supervisor without its workers; with them in test_workers.py."""

import os
import socket
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from tests.serve.http.http_fakes import load

from jingyin.serve.http import process as supervisor
from jingyin.serve.http.process import Supervisor, _Worker
from jingyin.serve.http.settings import load_settings


class WaitingProcess:
    """Ends with its pipe, as a worker does where a request waits for the outcome of a reload."""

    def __init__(self, pipe: Connection) -> None:
        self.calls: list[str] = []
        self.sentinel = pipe.fileno()
        self._pipe = pipe

    def is_alive(self) -> bool:
        return not self._pipe.poll()

    def terminate(self) -> None:
        self.calls.append("terminate")

    def kill(self) -> None:
        self.calls.append("kill")


@pytest.fixture
def minder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """A supervisor of no workers, whose bundle is the folder `bundle` with one file, and that copies into `copies`."""
    monkeypatch.setattr(supervisor, "read_bundle", lambda _: None)
    for folder in ("bundle", "copies"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bundle/a").write_text("weights")
    settings = load_settings(bundle=tmp_path / "bundle", drain_seconds=0)
    with socket.socket() as listener:
        yield Supervisor(settings, listener, load, tmp_path / "copies")  # type: ignore[arg-type]


def test_at_the_end_nobody_waits_for_a_reload(minder: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "END_SECONDS", 0.5)
    ours, theirs = Pipe()
    process = WaitingProcess(theirs)
    minder._workers = [_Worker(process, ours, ready=True)]  # type: ignore[arg-type]
    theirs.send(("reload", None))
    read, write = os.pipe()
    try:
        minder._end(read)
    finally:
        os.close(read)
        os.close(write)
        theirs.close()
    assert process.calls == ["terminate"]


def test_of_a_copy_that_fails_half_way_nothing_stays(minder: Supervisor, tmp_path: Path) -> None:
    (tmp_path / "bundle/b").symlink_to(tmp_path / "nothing")  # can't be copied
    assert minder._reload_all() == ("refused", "the bundle can't be copied")
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["0"]  # that of the start
