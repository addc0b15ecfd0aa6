"""Trains the tiny network in as many processes as run this file: what test_processes.py compares.

Fails if any process but the first one writes.
"""

import json
import shutil
import sys
from pathlib import Path

from accelerate import PartialState

from jingyin.model.errors import JingyinError
from jingyin.train.pipeline import train


def refuse(*_: object, **__: object) -> None:
    raise JingyinError("only the first process may write")


if __name__ == "__main__":
    processes = PartialState(cpu=True)
    if not processes.is_main_process:
        Path.write_text = Path.write_bytes = shutil.copyfile = shutil.rmtree = refuse  # type: ignore[assignment]
    run = train([Path(sys.argv[1])], Path(sys.argv[2]))
    found = json.loads((run / "run.json").read_text(encoding="utf-8"))["processes"]
    if found != processes.num_processes:
        raise JingyinError(f"run.json tells of {found} processes, not {processes.num_processes}")
