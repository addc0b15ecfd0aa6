"""Runs docs/retrain.md's tutorial, every command of it, in a package whose bundle and messages are toys."""

import json
import re
import shutil
import textwrap
from pathlib import Path

import pytest
from tests.serve.http.http_fakes import until
from tests.train.finetune.reading import Reader

from jingyin.model.bundle import read_bundle

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(shutil.which("curl") is None, reason="the tutorial calls curl"),
]  # fmt: skip

DOCUMENT = Path(__file__).parents[3] / "docs" / "retrain.md"
SECTION = "## The loop, step by step\n"
INDENT = " " * 7  # of a code block in a list


def blocks() -> list[str]:
    """Return the section's code blocks, in order."""
    section = DOCUMENT.read_text(encoding="utf-8").split(SECTION)[1].split("\n## ")[0]
    found: list[list[str]] = [[]]
    for line in section.splitlines():
        if line.startswith(INDENT):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [textwrap.dedent("\n".join(lines)) for lines in found if lines]


def test_every_command_of_the_tutorial(reader: Reader) -> None:
    after = {
        "/v1/score": lambda: "jingyin_shadow_total{" in reader.metrics(),
        "-HUP": lambda: reader.events("reloaded"),
    }
    told = ""
    for block in blocks():
        if block.endswith("kill $(cat serve.pid)"):
            told = reader.metrics()
        reader.paste(block, *([1] if block.startswith("jingyin promote") else []))
        for command, done in after.items():
            if command in block:
                until(done)
    folder = reader.folder
    old, new = (read_bundle(folder / "bundles" / name).manifest.id for name in ("old", "new"))
    assert old != new
    asked = len(json.loads((folder / "tasks.json").read_text(encoding="utf-8")))
    assert asked >= 20
    run = json.loads((folder / "run" / "finetune.json").read_text(encoding="utf-8"))
    # The toy's messages are so alike that they are one group: which of them are held out is chance.
    assert {count["source"] for count in run["counts"]} >= {"own messages trained on", "other messages"}
    assert json.loads((folder / "report" / "evaluation.json").read_text(encoding="utf-8"))["bundle"] == new
    decision = json.loads((folder / "promotion.json").read_text(encoding="utf-8"))
    assert (decision["candidate"], decision["incumbent"], decision["promote"]) == (new, old, run["promote"])
    assert {event["bundle"] for event in reader.events("worker_ready")} == {new}
    for bundle, role in ((new, "deployed"), (old, "shadow")):
        assert re.search(f'jingyin_bundle_info{{id="{bundle}",role="{role}"}} [1-9]', told), told
    drift = json.loads((folder / "drift.json").read_text(encoding="utf-8"))
    assert drift["reference_rows"] > 100
    assert drift["current_rows"] > 100
