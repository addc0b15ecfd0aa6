"""The service that soak.py tests: its process, its folder, and the small disk that its log is on."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from jingyin.model.bundle import default_path


class SoakedService:
    """`jingyin serve` in a process of its own, which logs to `log`; `port` is known once it serves."""

    def __init__(self, folder: Path, log: Path, workers: int) -> None:
        self.log = log
        flags = ["--port", "0", "--workers", workers, "--keys", folder / "keys", "--bundle", folder / "bundle"]
        command = [Path(sys.executable).with_name("jingyin"), "serve", *flags]
        with log.open("ab") as errors:
            self.process = psutil.Popen([*map(str, command)], stderr=errors)

    async def serving(self) -> bool:
        """Wait until it answers; return whether it does."""
        await until(lambda: not self.runs or self.port, 100)
        if not self.runs:
            return False
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()  # the socket is open before the workers have loaded the bundle
        writer.close()
        return answer.startswith(b"HTTP/1.1 200")

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    @property
    def port(self) -> int:
        """Ask the system, not the log, which may be full."""
        return next((c.laddr.port for c in self.process.net_connections("tcp") if c.status == "LISTEN"), 0)

    def workers(self) -> set[int]:
        return {child.pid for child in self.process.children() if "spawn_main" in _command(child)}

    def megabytes(self) -> float:
        """Return the memory of all processes, where shared pages count once."""
        rollups = [Path(f"/proc/{p.pid}/smaps_rollup") for p in (self.process, *self.process.children(recursive=True))]
        return sum(int(re.findall(r"^Pss: +(\d+)", file.read_text(), re.MULTILINE)[0]) for file in rollups) / 1024

    def events(self, event: str) -> list[float]:
        """Return the times of a kind of log line."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if f'"event":"{event}"' in line]
        return [json.loads(line)["time"] for line in lines if line.startswith("{") and line.endswith("}")]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just died
        return ""


async def until(check: Callable[[], object], seconds: float) -> bool:
    """Return whether `check` came true in time."""
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.01)
    return True


def prepare(folder: Path) -> str:
    """Put bundle and key file into the folder, and return the key."""
    shutil.copytree(default_path(), folder / "bundle")
    (folder / "log").mkdir()
    command = [sys.executable, "-m", "jingyin.serve.http.keys", "soak", "admin"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    (folder / "keys").write_text(made.stdout)
    return made.stderr.strip()


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a tmpfs of 32 MB there if that may be; yield whether it could."""
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    mounted = bool(shutil.which("mount")) and not subprocess.run(command, capture_output=True, check=False).returncode
    try:
        yield mounted
    finally:
        if mounted:  # lazy: after a fault a worker may still be about to end
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path) -> None:
    """Add empty lines, in ever smaller pieces, until not a single byte is free."""
    with file.open("ab", buffering=0) as target:
        size = 1 << 20
        while size:
            try:
                target.write(b"\n" * size)
            except OSError:
                size //= 2
