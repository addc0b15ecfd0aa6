"""Looks at processes from outside."""

import subprocess
from pathlib import Path


def children(process: int) -> list[int]:
    """Return the processes that one has spawned to work; multiprocessing's own tracker isn't one."""
    command = ["pgrep", "-P", str(process), "-f", "spawn_main"]
    return list(map(int, subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()))


def runs(process: int) -> bool:
    """Whether a process is there and no zombie: in a container nobody may reap an orphan."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
