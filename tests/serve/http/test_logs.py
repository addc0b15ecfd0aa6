"""The service's log."""

import asyncio
import json
import logging
import sys
from collections.abc import Iterator

import pytest
from tests.serve.http.http_fakes import SECRET

from jingyin.serve.observe import log, take_over_logging


@pytest.fixture
def _taken_over() -> Iterator[None]:
    """Take the libraries' loggers over, and give them back."""
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.access", "asyncio")]
    before = [(each.handlers, each.level, each.propagate, each.disabled) for each in loggers]
    take_over_logging()
    yield
    for each, (handlers, level, propagate, disabled) in zip(loggers, before, strict=True):
        each.handlers, each.propagate, each.disabled = handlers, propagate, disabled
        each.setLevel(level)


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


def test_what_is_no_json_ends_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    log("serving", address="unix:\udcff")
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("_taken_over")
async def test_what_asyncio_logs_is_one_json_object_without_text(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(text: str) -> None:
        raise RuntimeError(text)

    asyncio.get_running_loop().call_soon(fail, SECRET)
    await asyncio.sleep(0)
    written = capfd.readouterr().err
    line = json.loads(written)
    assert (line["event"], line["level"], line["logger"]) == ("server", "error", "asyncio")
    assert line["error"] == "RuntimeError"
    assert ".fail:" in line["at"]
    assert SECRET not in written


@pytest.mark.usefixtures("_taken_over")
def test_of_what_uvicorn_logs_the_template_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("uvicorn.error").warning("refused %s", SECRET)
    line = json.loads(capfd.readouterr().err)
    assert (line["level"], line["logger"], line["message"]) == ("warning", "uvicorn.error", "refused %s")
