"""`jingyin cases report`: sends a list of reports, as 12321 or a complaint desk has it, to a running service."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, get_args

import pyarrow as pa

from jingyin.model.errors import InputError
from jingyin.model.text import clean
from jingyin.serve.analyst import AnswerError, ask
from jingyin.serve.archive.blocks import ReadOptions
from jingyin.serve.archive.readers import blocks, find, open_sources
from jingyin.serve.cases.cases import TEXT, ReportKind

THREADS = 8
FIELDS = ("sender", "receiver", "time", "kind")


class Reported(NamedTuple):
    """Rows of a block: how many were sent, how many have no text, and why the service refused the others."""

    sent: int
    empty: int
    refusals: list[str]


def report_files(
    url: str, inputs: Sequence[str], text_column: str, kind: str, encoding: str | None
) -> Iterator[Reported]:
    """Send each row of the files as a report; yield the outcome of each block.

    The columns `sender`, `receiver`, `time` and `kind` are used where a file has them. A row that the service can't
    read, such as one of another kind, costs no other. Raises InputError if there is no such `kind`, ConfigError if a
    file has no column of texts, JingyinError if the service takes no reports.
    """
    if kind not in (kinds := get_args(ReportKind)):
        raise InputError(f"there is no kind {kind!r} of reports; wanted {' or '.join(kinds)}")
    sources = open_sources(find(inputs), ReadOptions(text=text_column, encoding=encoding))
    with ThreadPoolExecutor(THREADS) as threads:
        for _, block in blocks(sources):
            columns = [_values(block.batch, name) for name in FIELDS]
            bodies = [
                {**{name: value for name, value in zip(FIELDS, row, strict=True) if value}, "text": text}
                for text, *row in zip(block.texts.to_pylist(), *columns, strict=True)
            ]
            sent = [body for body in bodies if clean(str(body["text"])[:TEXT]).text]
            refusals = [*filter(None, threads.map(partial(_send, url, kind), sent))]
            yield Reported(len(sent) - len(refusals), len(bodies) - len(sent) + len(block.rejects), refusals)


def _values(rows: pa.RecordBatch, name: str) -> list[Any]:
    """Return the values of a column, None without it; points in time as text, since Python has no year 10,000."""
    if name not in rows.schema.names:
        return [None] * len(rows)
    column = rows[name]
    values: list[Any] = (column.cast(pa.string()) if pa.types.is_temporal(column.type) else column).to_pylist()
    return values


def _send(url: str, kind: str, body: dict[str, Any]) -> str:
    """Send a report, of this kind if it names none; return why the service can't read it, or ""."""
    plain = {name: value if name == "time" and isinstance(value, float) else str(value) for name, value in body.items()}
    try:
        ask(url, "POST", "/v1/report", {"kind": kind, **plain})
    except AnswerError as error:
        if error.code != 422:
            raise
        return str(error)
    return ""
