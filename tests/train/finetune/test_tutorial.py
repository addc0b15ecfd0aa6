"""Runs docs/retrain.md's tutorial, every command of it, in a package whose bundle and messages are toys."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from tests.serve.free_ports import free_ports
from tests.train.finetune.toy_package import make_package

from jingyin.model.bundle import read_bundle, write_bundle

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


class Reader:
    """Somebody who pastes commands into a shell, in a folder with the repository's configs."""

    def __init__(self, folder: Path, package: Path) -> None:
        self.folder, (self.port,) = folder, free_ports(1)
        (folder / "configs").symlink_to(package / "jingyin" / "configs")
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(package),
            "JINGYIN_SERVE_PORT": str(self.port),
            "JINGYIN_SERVE_DEADLINE_MS": "5000",  # the longest there is: the machine may be busy
        }

    def paste(self, commands: str, *codes: int) -> None:
        """Run commands; their exit code is to be 0 or one of `codes`."""
        commands = commands.replace("localhost:8080", f"localhost:{self.port}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands], cwd=self.folder, env=self.environment, capture_output=True,
            text=True, check=False, stdin=subprocess.DEVNULL, timeout=600,
        )  # fmt: skip
        assert done.returncode in (0, *codes), f"{commands}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"

    def metrics(self) -> str:
        try:
            with urlopen(f"http://localhost:{self.port}/metrics", timeout=30) as answer:
                return str(answer.read().decode())
        except URLError:
            return ""

    def events(self, name: str) -> list[dict[str, str]]:
        lines = (self.folder / "serve.log").read_text(encoding="utf-8").splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader for whom the toy bundle is the one in the package."""
    package = tmp_path_factory.mktemp("package")
    default = make_package(package)
    reader = Reader(tmp_path_factory.mktemp("reader"), package)
    reader.paste("jingyin train configs/tiny.yaml --out toy")
    toy = reader.folder / "toy" / "tiny" / "bundle"
    _leave_some_to_review(toy)
    shutil.move(toy, default)
    yield reader
    if (pid := reader.folder / "serve.pid").is_file():
        subprocess.run(["kill", pid.read_text().strip()], check=False, capture_output=True)


def _leave_some_to_review(bundle: Path) -> None:
    """Set the block threshold so high that flagged messages are reviewed: toy messages are too easy to be near one."""
    manifest = read_bundle(bundle).manifest
    block = manifest.block.model_copy(update={"risk": 0.9999})
    parts = manifest.model_copy(update={"block": block}).model_dump(mode="json")
    write_bundle(bundle, {name: part for name, part in parts.items() if name not in ("format_version", "id", "files")})


def wait(until: Callable[[], object]) -> None:
    limit = time.monotonic() + 120
    while not until():
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.2)


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
                wait(done)
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
