"""A reader who follows a page of docs/ in a package whose bundle and messages are toys."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.serve.free_ports import free_ports

from jingyin.model.bundle import read_bundle, write_bundle


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

    def paste(self, commands: str, *codes: int) -> str:
        """Run commands, and return what they print; their exit code is to be 0 or one of `codes`."""
        commands = commands.replace("localhost:8080", f"localhost:{self.port}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands], cwd=self.folder, env=self.environment, capture_output=True,
            text=True, check=False, stdin=subprocess.DEVNULL, timeout=600,
        )  # fmt: skip
        assert done.returncode in (0, *codes), f"{commands}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def metrics(self) -> str:
        try:
            with urlopen(f"http://localhost:{self.port}/metrics", timeout=30) as answer:
                return str(answer.read().decode())
        except URLError:
            return ""

    def events(self, name: str) -> list[dict[str, str]]:
        lines = (self.folder / "serve.log").read_text(encoding="utf-8").splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]


def leave_some_to_review(bundle: Path) -> None:
    """Set the block threshold so high that flagged messages are reviewed: toy messages are too easy to be near one."""
    manifest = read_bundle(bundle).manifest
    block = manifest.block.model_copy(update={"risk": 0.9999})
    parts = manifest.model_copy(update={"block": block}).model_dump(mode="json")
    write_bundle(bundle, {name: part for name, part in parts.items() if name not in ("format_version", "id", "files")})
