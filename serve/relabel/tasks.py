"""Label Studio tasks from rows worth a look; `jingyin audit` reads the export."""

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from jingyin.model.errors import ConfigError
from jingyin.serve.label_studio import task, with_signs
from jingyin.serve.relabel.writing import as_json, aside

DEFAULT_SAMPLE = 1000


def check_place(path: Path, out: Path) -> None:
    """Raise ConfigError when tasks can't be written to `path`, or it lies in the output folder `out`."""
    if not path.resolve().parent.is_dir() or out.resolve() in path.resolve().parents:
        raise ConfigError(f"the file for Label Studio, {path}, must lie in a folder that exists, and not in the output")


def write_tasks(path: Path, tasks: Iterable[Mapping[str, Any]]) -> int:
    """Write a JSON array of tasks; return how many."""
    count = 0
    with aside(path) as file:
        for count, each in enumerate(tasks, 1):
            file.write((b",\n" if count > 1 else b"[\n") + as_json(each).encode())
        file.write(b"\n]\n" if count else b"[]\n")
    return count


def sampled(rows: Iterable[bytes], sample: int, bundle: str) -> Iterator[dict[str, Any]]:
    """Yield tasks for `sample` of `rows` (lines of JSON), in their order."""
    for row in _pick(rows, sample):
        yield _task(json.loads(row), bundle)


def _pick(rows: Iterable[bytes], sample: int) -> Iterator[bytes]:
    """Yield the `sample` rows with the smallest hash: at random, but the same ones each time (bottom-k sampling)."""
    hashed = ((blake2b(row, digest_size=8).digest(), order, row) for order, row in enumerate(rows))
    for _, _, row in sorted(heapq.nsmallest(sample, hashed), key=lambda each: each[1]):
        yield row


def _task(row: dict[str, Any], bundle: str) -> dict[str, Any]:
    reason = f"was {row['before']}, is {row['label']}" if "before" in row else "near a threshold"
    shown = {"row": f"{row['input']}:{row['row']}", "reason": with_signs(reason, row["reasons"])}
    data = {**row, **shown, "label": row.get("before")}
    return task(data, row["label"], row["sure"], f"jingyin {bundle}")
