"""Label Studio tasks from rows worth a look; `jingyin audit` reads the export."""

import heapq
import json
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

from jingyin.serve.label_studio import task, with_signs
from jingyin.serve.relabel.writing import as_json, aside

DEFAULT_SAMPLE = 1000


def write_tasks(path: Path, rows: Iterable[bytes], sample: int, bundle: str) -> int:
    """Write a JSON array of tasks for `sample` of `rows` (lines of JSON), in their order; return how many."""
    count = 0
    with aside(path) as file:
        for count, row in enumerate(_pick(rows, sample), 1):
            file.write((b",\n" if count > 1 else b"[\n") + as_json(_task(json.loads(row), bundle)).encode())
        file.write(b"\n]\n" if count else b"[]\n")
    return count


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
