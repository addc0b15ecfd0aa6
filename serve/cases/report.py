"""`jingyin cases report`: sends a list of reports, as 12321 or a complaint desk has it, to a running service."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from jingyin.model.text import clean
from jingyin.serve.analyst import ask
from jingyin.serve.archive.blocks import ReadOptions
from jingyin.serve.archive.readers import blocks, find, open_sources
from jingyin.serve.cases.writer import TEXT

THREADS = 8
FIELDS = ("sender", "receiver", "time", "kind")


def report_files(
    url: str, inputs: Sequence[str], text_column: str, kind: str, encoding: str | None
) -> Iterator[tuple[int, int]]:
    """Send each row of the files as a report; yield for each block how many were taken, and how many have no text.

    The columns `sender`, `receiver`, `time` and `kind` are used where a file has them. Raises ConfigError if a file has
    no column of texts, JingyinError if the service refuses one.
    """
    sources = open_sources(find(inputs), ReadOptions(text=text_column, encoding=encoding))
    with ThreadPoolExecutor(THREADS) as threads:
        for _, block in blocks(sources):
            rows = block.batch.to_pylist()
            bodies = [
                {**{name: row[name] for name in FIELDS if row.get(name)}, "text": text}
                for row, text in zip(rows, block.texts.to_pylist(), strict=True)
            ]
            sent = [_body(body, kind) for body in bodies if clean(str(body["text"])[:TEXT]).text]
            for _answer in threads.map(partial(ask, url, "POST", "/v1/report"), sent):
                pass
            yield len(sent), len(bodies) - len(sent) + len(block.rejects)


def _body(body: dict[str, Any], kind: str) -> dict[str, Any]:
    plain = {name: value if name == "time" and isinstance(value, float) else str(value) for name, value in body.items()}
    return {"kind": kind, **plain}
