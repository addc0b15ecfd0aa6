"""campaigns.parquet, a row a campaign, and members.parquet, a row a message of one."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jingyin.serve.campaigns.figures import DISGUISE, TIMELINE, figures
from jingyin.serve.campaigns.gather import PARQUET
from jingyin.serve.campaigns.members import Members, pick
from jingyin.serve.campaigns.template import MEMBERS, template, written
from jingyin.serve.campaigns.times import TIME
from jingyin.serve.relabel.writing import aside, writer

CAMPAIGNS, MEMBERS_FILE = "campaigns.parquet", "members.parquet"
EXAMPLES = 3

SCHEMA = pa.schema(
    {
        "campaign": pa.string(), "rows": pa.int64(), "texts": pa.int64(), "senders": pa.int64(),
        "receivers": pa.int64(), "first_seen": TIME, "last_seen": TIME, "label": pa.string(),
        "label_share": pa.float64(), "risk": pa.float64(), "risk_min": pa.float64(), "risk_max": pa.float64(),
        "template": pa.string(), "pieces": pa.list_(pa.struct({"text": pa.string(), "slot": pa.bool_()})),
        "examples": pa.list_(pa.string()), "timeline": pa.list_(TIMELINE), "disguises": pa.list_(DISGUISE),
    }
)  # fmt: skip
"""Rows by size, largest first. `texts` are different clean texts; `senders`, `receivers` and the times are null where no
column names them. `label` is that of most rows, `label_share` their share; `risk` is the mean. `pieces` is the template
cut into fixed text and slots. `examples` are the commonest messages as they came."""

MEMBER = pa.schema(
    {
        "file": pa.dictionary(pa.int32(), pa.string()),
        "row": pa.int64(),
        "campaign": pa.dictionary(pa.int32(), pa.string()),
    }
)
"""In input order; `row` counts from 1 in its file, lines in JSON."""


def write_tables(out: Path, parts: Sequence[Path], files: Sequence[Path], members: Members) -> None:
    """Write both files to the folder `out`, each whole or not at all."""
    _write_members(out / MEMBERS_FILE, parts, files, members)
    columns = figures(parts, members) | _wordings(parts, members)
    columns["campaign"] = pa.array(members.ids, pa.string())
    arrays = [columns[field.name].cast(field.type) for field in SCHEMA]
    with aside(out / CAMPAIGNS) as file:
        pq.write_table(pa.table(arrays, SCHEMA), file, compression="zstd")


def _write_members(path: Path, parts: Sequence[Path], files: Sequence[Path], members: Members) -> None:
    rows = np.flatnonzero(members.campaigns >= 0)
    names = pa.array([str(file) for file in files], pa.string()), pa.array(members.ids, pa.string())
    with aside(path) as file, writer(PARQUET, file, MEMBER) as sink:
        for part, batch in pick(parts, rows, ["source", "row"]):
            campaign = pa.array(members.campaigns[rows[part]])
            columns = [
                pa.DictionaryArray.from_arrays(batch.column("source"), names[0]),
                batch.column("row"),
                pa.DictionaryArray.from_arrays(campaign, names[1]),
            ]
            sink.write(pa.record_batch(columns, MEMBER))


def _wordings(parts: Sequence[Path], members: Members) -> dict[str, pa.Array]:
    """Return template, pieces and examples of each campaign from its commonest texts."""
    order = np.lexsort((members.keys, -members.counts, members.campaign_of_text))
    order = order[members.campaign_of_text[order] >= 0]
    starts = np.searchsorted(members.campaign_of_text[order], np.arange(len(members.ids) + 1))
    rank = np.arange(len(order)) - np.repeat(starts[:-1], np.diff(starts))
    chosen = order[rank < MEMBERS]
    texts = _texts(parts, members.first[chosen])
    ends = np.searchsorted(members.campaign_of_text[chosen], np.arange(len(members.ids) + 1)).tolist()
    columns: dict[str, list[Any]] = {"template": [], "pieces": [], "examples": []}
    for start, end in pairwise(ends):
        pieces = template(texts["clean"][start:end].to_pylist())
        columns["template"].append(written(pieces))
        columns["pieces"].append([piece._asdict() for piece in pieces])
        columns["examples"].append(texts["text"][start : min(end, start + EXAMPLES)].to_pylist())
    return {name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}


def _texts(parts: Sequence[Path], rows: NDArray[np.int64]) -> pa.Table:
    """Return the messages and clean texts of rows, in the order of `rows`."""
    order = np.argsort(rows)
    batches = [batch for _, batch in pick(parts, rows[order], ["text", "clean"])]
    if not batches:
        return pa.table({"text": pa.array([], pa.large_string()), "clean": pa.array([], pa.large_string())})
    return pa.Table.from_batches(batches).take(pa.array(np.argsort(order)))
