"""campaigns.parquet, a row a campaign, and members.parquet, a row a message of one."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jingyin.serve.campaigns.figures import DISGUISE, REASON, TIMELINE, figures
from jingyin.serve.campaigns.gather import PARQUET
from jingyin.serve.campaigns.members import Members, pick
from jingyin.serve.campaigns.template import LENGTH, MEMBERS, template, written
from jingyin.serve.campaigns.times import TIME
from jingyin.serve.relabel.writing import aside, writer

CAMPAIGNS, MEMBERS_FILE = "campaigns.parquet", "members.parquet"
EXAMPLES = 3
_BLOCK = 1 << 13  # campaigns whose templates are in memory at a time: as Python objects they take kilobytes each

SCHEMA = pa.schema(
    {
        "campaign": pa.string(), "rows": pa.int64(), "texts": pa.int64(), "senders": pa.int64(),
        "receivers": pa.int64(), "first_seen": TIME, "last_seen": TIME, "label": pa.string(),
        "label_share": pa.float64(), "risk": pa.float64(), "risk_min": pa.float64(), "risk_max": pa.float64(),
        "template": pa.string(), "pieces": pa.list_(pa.struct({"text": pa.string(), "slot": pa.bool_()})),
        "examples": pa.list_(pa.string()), "timeline": pa.list_(TIMELINE), "disguises": pa.list_(DISGUISE),
        "reasons": pa.list_(REASON),
    }
)  # fmt: skip
"""Rows by size, largest first. `texts` are different clean texts; `senders`, `receivers` and the times are null where
no column names them. `label` is that of most rows, `label_share` their share; `risk` is the mean. `pieces` is the
template cut into fixed text and slots. `examples` are the commonest messages as they came. `reasons` count the rows
whose verdict gives a sign, the commonest sign first."""

MEMBER = pa.schema(
    {
        "file": pa.dictionary(pa.int32(), pa.string()),
        "row": pa.int64(),
        "campaign": pa.string(),  # a dictionary of millions of ids would be written anew with each group of rows
    }
)
"""In input order; `row` counts from 1 in its file, lines in JSON."""


def write_tables(out: Path, parts: Sequence[Path], files: Sequence[Path], members: Members) -> None:
    """Write both files to the folder `out`, each whole or not at all."""
    _write_members(out / MEMBERS_FILE, parts, files, members)
    columns = figures(parts, members)
    columns["campaign"] = pa.array(members.ids, pa.string())
    start = 0
    with aside(out / CAMPAIGNS) as file, writer(PARQUET, file, SCHEMA) as sink:
        for wordings in _wordings(parts, members):
            count = len(wordings["template"])
            here = {name: column.slice(start, count) for name, column in columns.items()} | wordings
            sink.write(pa.record_batch([_one(here[field.name], field.type) for field in SCHEMA], SCHEMA))
            start += count


def _one(column: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return column.cast(kind)


def _write_members(path: Path, parts: Sequence[Path], files: Sequence[Path], members: Members) -> None:
    rows = np.flatnonzero(members.campaigns >= 0)
    names, ids = pa.array([str(file) for file in files], pa.string()), pa.array(members.ids, pa.string())
    with aside(path) as file, writer(PARQUET, file, MEMBER) as sink:
        for part, batch in pick(parts, rows, ["source", "row"]):
            columns = [
                pa.DictionaryArray.from_arrays(batch.column("source"), names),
                batch.column("row"),
                ids.take(pa.array(members.campaigns[rows[part]])),
            ]
            sink.write(pa.record_batch(columns, MEMBER))


def _wordings(parts: Sequence[Path], members: Members) -> Iterator[dict[str, pa.Array]]:
    """Yield template, pieces and examples of campaigns in order, from their commonest texts: a dictionary a block."""
    order = np.lexsort((members.keys, -members.counts, members.campaign_of_text))
    order = order[members.campaign_of_text[order] >= 0]
    starts = np.searchsorted(members.campaign_of_text[order], np.arange(len(members.ids) + 1))
    rank = np.arange(len(order)) - np.repeat(starts[:-1], np.diff(starts))
    chosen = order[rank < MEMBERS]
    texts, at = _texts(parts, members.first[chosen], rank[rank < MEMBERS] < EXAMPLES)
    ends = np.searchsorted(members.campaign_of_text[chosen], np.arange(len(members.ids) + 1))
    for start in range(0, len(members.ids), _BLOCK):
        here = ends[start : start + _BLOCK + 1]
        rows = texts.take(pa.array(at[here[0] : here[-1]]))
        yield _block(rows["text"].to_pylist(), rows["clean"].to_pylist(), (here - here[0]).tolist())


def _block(texts: list[str], cleaned: list[str], ends: list[int]) -> dict[str, pa.Array]:
    columns: dict[str, list[Any]] = {"template": [], "pieces": [], "examples": []}
    for start, end in pairwise(ends):
        pieces = template(cleaned[start:end])
        columns["template"].append(written(pieces))
        columns["pieces"].append([piece._asdict() for piece in pieces])
        columns["examples"].append(texts[start : min(end, start + EXAMPLES)])
    return {name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}


def _texts(
    parts: Sequence[Path], rows: NDArray[np.int64], shown: NDArray[np.bool_]
) -> tuple[pa.Table, NDArray[np.int64]]:
    """Return the messages, those `shown`, and clean texts, as far as they are aligned; and where each row is."""
    order = np.argsort(rows)
    schema = pa.schema({"text": pa.large_string(), "clean": pa.large_string()})
    batches = []
    for part, batch in pick(parts, rows[order], schema.names):
        text = pc.if_else(pa.array(shown[order[part]]), batch.column("text"), None)
        batches.append(pa.record_batch([text, pc.utf8_slice_codeunits(batch.column("clean"), 0, LENGTH)], schema))
    return pa.Table.from_batches(batches, schema).combine_chunks(), np.argsort(order)
