"""The worker's end of the pipe to its supervisor."""

import os
import signal
from multiprocessing import Pipe
from queue import SimpleQueue
from threading import Thread

import pytest
from tests.serve.http.http_fakes import load

from jingyin.model.errors import BundleError
from jingyin.serve.http.deployment import Deployment
from jingyin.serve.http.observe import Metrics
from jingyin.serve.http.process import Link


def test_who_waits_for_a_reload_is_told_that_the_supervisor_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: SimpleQueue[tuple[int, int]] = SimpleQueue()
    monkeypatch.setattr(os, "kill", lambda *given: killed.put(given))
    ours, theirs = Pipe()
    link = Link(theirs, Deployment(load, Metrics()), load)  # type: ignore[arg-type]
    link.start()
    found: SimpleQueue[str] = SimpleQueue()

    def ask() -> None:
        try:
            link.reload()
        except BundleError as error:
            found.put(str(error))

    Thread(target=ask, daemon=True).start()
    assert ours.recv() == ("reload", None)
    ours.close()
    assert killed.get(timeout=30) == (os.getpid(), signal.SIGTERM)
    assert found.get(timeout=30) == "the service is ending; ask again"
    link.join(30)
    theirs.close()
