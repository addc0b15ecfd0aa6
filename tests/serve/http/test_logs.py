"""The service's log."""

import json
import sys

import pytest

from jingyin.serve.http.logs import log


def test_a_line_is_one_json_object(capfd: pytest.CaptureFixture[str]) -> None:
    log("reloaded", bundle="b1")
    line = json.loads(capfd.readouterr().err)
    assert (line["event"], line["level"], line["bundle"]) == ("reloaded", "info", "b1")


def test_a_full_disk_loses_the_line_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        log("reloaded", bundle="b1")
        monkeypatch.undo()


def test_a_closed_log_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = open("/dev/null", "w")  # noqa: SIM115  it is to be closed
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    log("reloaded")
