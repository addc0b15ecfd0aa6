"""campaigns.parquet, members.parquet, labels and report.html from the rows of the first pass, by SQL in DuckDB.

DuckDB spills to disk, so memory stays bounded; grouping alone holds all distinct texts, 220 bytes each (groups.py).
Distinct texts are numbered by their keys, so neither the order of the input nor its division into files changes a group
or its id, which is the key of its most common text.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from jingyin.model.errors import InputError
from jingyin.model.files import atomic_file
from jingyin.model.labels import LABELS
from jingyin.model.signs import Language, name_of
from jingyin.serve.archive.groups import HASHES, LENGTH, MEMBERS, groups, signatures, template, written
from jingyin.serve.archive.times import TIME
from jingyin.serve.archive.writers import FileKind, as_json, writer
from jingyin.serve.label_studio import read_annotations, task, with_signs
from jingyin.serve.terminal import printable

CAMPAIGNS, MEMBERS_FILE, REPORT = "campaigns.parquet", "members.parquet", "report.html"
FINAL = (CAMPAIGNS, MEMBERS_FILE, REPORT, "labels.parquet", "finetune.jsonl")
PARQUET = FileKind("parquet", None)
EXAMPLES = 3
MEMORY = "1GB"
"""Memory that DuckDB uses before it spills to disk."""
_BATCH = 1 << 13

_COUNTS = pa.list_(pa.struct({"start": TIME, "rows": pa.int64(), "disguised": pa.int64()}))
_DISGUISES = pa.list_(pa.struct({"kind": pa.string(), "rows": pa.int64(), "first": TIME, "last": TIME}))
SCHEMA = pa.schema(
    {
        "campaign": pa.string(), "rows": pa.int64(), "texts": pa.int64(), "senders": pa.int64(),
        "receivers": pa.int64(), "first_seen": TIME, "last_seen": TIME, "label": pa.string(),
        "label_share": pa.float64(), "risk": pa.float64(), "risk_min": pa.float64(), "risk_max": pa.float64(),
        "template": pa.string(), "pieces": pa.list_(pa.struct({"text": pa.string(), "slot": pa.bool_()})),
        "examples": pa.list_(pa.string()), "timeline": _COUNTS, "disguises": _DISGUISES,
        "reasons": pa.list_(pa.struct({"sign": pa.string(), "rows": pa.int64()})),
    }
)  # fmt: skip
"""Rows by size, largest first. `texts` counts distinct clean texts; `senders`, `receivers` and the times are null if no
column names them. `label` is that of most rows, `label_share` their share; `risk` is the mean. `pieces` is the template
split into fixed text and slots. `examples` are the most common messages, uncleaned. `timeline` counts by the hour, or
by the day if the campaign lasted over three. `reasons` counts the rows whose verdict gives a sign."""

_COMMENTS = {
    "file": "the input file",
    "row": "number of the row in its file, from 1; in DuckDB file_row_number + 1, which counts from 0",
    "id": "the value of --id-column",
    "campaign": "campaign in campaigns.parquet",
}
MEMBER = pa.schema(
    [
        pa.field(name, pa.int64() if name == "row" else pa.string(), metadata={"comment": comment})
        for name, comment in _COMMENTS.items()
    ]
)
"""In input order; in JSON lines a row is a line."""

_TABLES = """
create view rows as
  select *, (source::bigint << 40) + row as place from read_parquet($parts, hive_partitioning = false);
create temp table texts as
  select key, count(*) as copies, any_value(clean) as clean, arg_min(text, place) as text from rows group by key;
"""
_MEMBERS = """
create temp table member as
  select place, campaign, key, label, risk, disguises, reasons, time, sender, receiver
  from rows join grouped using (key)
"""
_CAMPAIGNS = f"""
with counted as (
  select campaign, count(*) as rows, count(distinct key) as texts,
    nullif(count(distinct sender), 0) as senders, nullif(count(distinct receiver), 0) as receivers,
    min(time) as first_seen, max(time) as last_seen,
    round(avg(risk), 12) as risk, min(risk) as risk_min, max(risk) as risk_max
  from member group by campaign),
labelled as (
  select campaign, first(label order by rows desc, label) as label, max(rows) / sum(rows) as label_share
  from (select campaign, label, count(*) as rows from member group by all) group by campaign),
timed as (
  select campaign, list({{start: start, rows: rows, disguised: disguised}} order by start) as timeline
  from (
    select campaign, case when last_seen - first_seen <= interval 3 days then date_trunc('hour', time)
        else date_trunc('day', time) end as start,
      count(*) as rows, count(*) filter (len(disguises) > 0) as disguised
    from member join counted using (campaign) where time is not null group by all)
  group by campaign),
disguised as (
  select campaign, list({{kind: kind, rows: rows, first: first, last: last}} order by rows desc, kind) as disguises
  from (
    select campaign, kind, count(*) as rows, min(time) as first, max(time) as last
    from (select campaign, time, unnest(disguises) as kind from member) group by all)
  group by campaign),
reasoned as (
  select campaign, list({{sign: sign, rows: rows}} order by rows desc, sign) as reasons
  from (
    select campaign, sign, count(*) as rows
    from (select campaign, unnest(reasons) as sign from member) group by all)
  group by campaign),
worded as (
  select campaign, list(clean order by place) as cleaned, list(text order by place) as texts_as_came
  from (
    select campaign, clean[:{LENGTH}] as clean, case when place <= {EXAMPLES} then text end as text, place
    from (
      select *, row_number() over (partition by campaign order by copies desc, key) as place
      from texts join grouped using (key))
    where place <= {MEMBERS})
  group by campaign)
select id as campaign, counted.* exclude (campaign), $labels[label + 1] as label, label_share, timeline, disguises,
  reasons, cleaned, texts_as_came
from counted join labelled using (campaign) join worded using (campaign) join ids using (campaign)
  left join timed using (campaign) left join disguised using (campaign) left join reasoned using (campaign)
order by counted.campaign
"""


@contextmanager
def _database(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    # One thread, so that sums of floats, and the bytes of the tables, don't depend on scheduling.
    limits: dict[str, Any] = {"threads": 1, "memory_limit": MEMORY, "temp_directory": str(folder / "_spill")}
    with duckdb.connect(config=limits) as db:
        yield db


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def write_tables(out: Path, parts: Sequence[Path], inputs: Sequence[Path], min_rows: int) -> dict[str, int]:
    """Group the rows of all parts and write both files; return the numbers of chosen rows, members and campaigns."""
    with _database(out) as db:
        db.execute(_TABLES.replace("$parts", f"[{', '.join(map(_quoted, parts))}]"))
        grouped, ids = _group(db, min_rows)
        db.register("grouped", grouped)
        db.register("ids", ids)
        db.execute(_MEMBERS)
        db.register("inputs", pa.table({"source": np.arange(len(inputs)), "file": [str(path) for path in inputs]}))
        members = db.sql("select file, row, rows.id, ids.id as campaign from rows join grouped using (key) join ids "
                         "using (campaign) join inputs using (source) order by place")  # fmt: skip
        count = _copy(members, out / MEMBERS_FILE, MEMBER)
        found = db.sql(_CAMPAIGNS.replace("$labels", repr(list(LABELS))))
        with atomic_file(out / CAMPAIGNS) as file, writer(PARQUET, file, SCHEMA) as sink:
            for batch in found.to_arrow_reader(_BATCH):
                sink.write(_worded(batch))
        ((chosen,),) = db.sql("select count(*) from rows").fetchall()
    return {"chosen": chosen, "members": count, "campaigns": len(ids)}


def _group(db: duckdb.DuckDBPyConnection, min_rows: int) -> tuple[pa.Table, pa.Table]:
    """Return the campaign of each key, numbered by size, largest first, and the id of each campaign.

    Groups of fewer than `min_rows` rows are left out.
    """
    numbers = db.sql("select key, copies from texts order by key").fetchnumpy()
    keys, copies = np.asarray(numbers["key"], np.uint64), np.asarray(numbers["copies"], np.int64)
    signed = np.empty((len(keys), HASHES), np.uint16)
    at = 0
    for batch in db.sql("select clean from texts order by key").to_arrow_reader(_BATCH):
        signed[at : at + len(batch)] = signatures(batch.column(0).to_pylist())
        at += len(batch)
    representatives = groups(signed, copies)
    rows = np.bincount(representatives, copies, minlength=len(representatives)).astype(np.int64)
    large = np.flatnonzero(rows >= min_rows)
    large = large[np.lexsort((large, -rows[large]))]
    numbers_of = np.full(len(representatives), -1, np.int32)
    numbers_of[large] = np.arange(len(large), dtype=np.int32)
    of_text: NDArray[np.int32] = numbers_of[representatives]
    grouped = of_text >= 0
    ids = [f"{key:016x}" for key in keys[large].tolist()]
    return (
        pa.table({"key": keys[grouped], "campaign": of_text[grouped]}),
        pa.table({"campaign": np.arange(len(ids), dtype=np.int32), "id": pa.array(ids, pa.string())}),
    )


def _copy(found: duckdb.DuckDBPyRelation, path: Path, schema: pa.Schema) -> int:
    """Write rows as Parquet; return their number."""
    count = 0
    with atomic_file(path) as file, writer(PARQUET, file, schema) as sink:
        for batch in found.to_arrow_reader(_BATCH):
            sink.write(pa.record_batch([batch.column(field.name).cast(field.type) for field in schema], schema))
            count += len(batch)
    return count


def _worded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Add templates and examples, made from the most common texts, to campaigns."""
    examples = [[text for text in texts if text is not None] for texts in batch.column("texts_as_came").to_pylist()]
    cleaned = batch.column("cleaned").to_pylist()
    templates = [template(texts, shown[0]) for texts, shown in zip(cleaned, examples, strict=True)]
    made = {
        "template": [written(each) for each in templates],
        "pieces": [[piece._asdict() for piece in each] for each in templates],
        "examples": examples,
    }
    columns = {name: pa.array(values, SCHEMA.field(name).type) for name, values in made.items()}
    for name in ("timeline", "disguises", "reasons"):
        columns[name] = pa.array([each or [] for each in batch.column(name).to_pylist()], SCHEMA.field(name).type)
    rest = {field.name: batch.column(field.name).cast(field.type) for field in SCHEMA if field.name not in columns}
    return pa.record_batch([{**rest, **columns}[name] for name in SCHEMA.names], SCHEMA)


# Label once: one Label Studio task per campaign, whose answer applies to all rows of the campaign.
#
# labels.parquet   the members of each answered campaign, with its label
# finetune.jsonl   text, label, campaign, rows: for `jingyin finetune`, one message per campaign, so that ten thousand
#                  copies count as one situation


LONGEST = 1_000
"""Most characters of a message in finetune.jsonl."""

_SHOWN = ("campaign", "rows", "texts", "senders", "receivers", "template")


class LabelCounts(NamedTuple):
    """Results of labelling: campaigns and rows with a label, tasks with two labels, tasks without one."""

    campaigns: int
    rows: int
    disputed: int
    open: int


def tasks_of(out: Path, bundle: str) -> Iterator[dict[str, Any]]:
    """Yield a task for each campaign of the folder `out`, the largest first.

    Its text occurs in no other campaign: answers are matched by it.
    """
    for row in _campaigns(out, *_SHOWN, "label", "label_share", "risk", "examples", "reasons"):
        named = (f"{row[name]:,} {name}" for name in _SHOWN[1:5] if row[name] is not None)
        others = "".join(f"\n{text}" for text in row["examples"][1:])
        reasons = [each["sign"] for each in row["reasons"]]
        reason = with_signs(f"{', '.join(named)}; risk {row['risk']:.0%}", reasons) + f"\n{row['template']}{others}"
        shown = {name: row[name] for name in _SHOWN}
        data = {"text": row["examples"][0], "reason": reason, **shown, "reasons": reasons}
        yield task(data, row["label"], row["label_share"], f"jingyin {bundle}")


def _campaigns(out: Path, *columns: str) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(out / CAMPAIGNS) as file:
        for batch in file.iter_batches(1024, columns=columns):
            yield from batch.to_pylist()


def take_answers(export: Path, out: Path) -> LabelCounts:
    """Write labels.parquet and finetune.jsonl to the folder `out` by the answers of a Label Studio export.

    Raises InputError if the file isn't an export, or answers tasks of other campaigns.
    """
    annotations = read_annotations(export)
    labels: dict[str, str] = {}
    with atomic_file(out / "finetune.jsonl") as file:
        for row in _campaigns(out, "campaign", "rows", "examples"):
            text = row["examples"][0]
            if (label := annotations.labels.get(text)) is not None:
                labels[row["campaign"]] = label
                line = {"text": text[:LONGEST], "label": label, "campaign": row["campaign"], "rows": row["rows"]}
                file.write(as_json(line).encode() + b"\n")
        if strangers := len(annotations.labels) - len(labels):
            raise InputError(f"{strangers} answers of {export} match no campaign of {out}; name the folder that "
                             "the tasks came from")  # fmt: skip
    with _database(out) as db:
        db.register("answers", pa.table({"campaign": list(labels), "label": list(labels.values())}))
        members = f"read_parquet({_quoted(out / MEMBERS_FILE)}, hive_partitioning = false)"
        labelled = db.sql(f"select * from {members} join answers using (campaign)")
        rows = _copy(labelled, out / "labels.parquet", MEMBER.append(pa.field("label", pa.string())))
    return LabelCounts(len(labels), rows, annotations.disputed, annotations.open)


# report.html: the largest campaigns and the riskiest, for people. All inserted values are escaped.


SHOWN = 100
"""Campaigns in each of the two tables."""
_REASONS = 6  # shown per campaign
_LENGTH = 400  # characters shown of an example
_WIDTH, _HEIGHT = 640, 60  # of a timeline, in pixels


def write_report(out: Path, facts: dict[str, Any], *, every: bool, language: Language) -> None:
    """Write report.html from campaigns.parquet in folder `out`; `facts` are those of the run."""
    order = "select * from campaigns order by {} desc, rows desc, campaign limit " + str(SHOWN)
    with _database(out) as db:
        source = f"read_parquet({_quoted(out / CAMPAIGNS)}, hive_partitioning = false)"
        db.execute(f"create view campaigns as select * from {source}")
        tables = {
            by: [_shown(row, language) for row in db.sql(order.format(by)).to_arrow_table().to_pylist()]
            for by in ("rows", "risk")
        }
    details = {row["campaign"]: row for rows in tables.values() for row in rows}
    text = files("jingyin.serve.archive").joinpath("report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(text)
    content = page.render(tables=tables, details=details.values(), facts=facts, every=every, lang=language,
                          width=_WIDTH, height=_HEIGHT)  # fmt: skip
    with atomic_file(out / REPORT) as file:
        file.write(content.lstrip().encode("utf-8", "replace"))


def _shown(row: dict[str, Any], language: Language) -> dict[str, Any]:
    shown = partial(printable, kept="\n\u3000", other="\ufffd")  # invisible characters too, which are disguises
    examples = [shown(text[:_LENGTH]) + ("…" if len(text) > _LENGTH else "") for text in row["examples"]]
    pieces = [{"text": shown(piece["text"]), "slot": piece["slot"]} for piece in row["pieces"]]
    reasons = [{"name": name_of(each["sign"], language), "rows": each["rows"]} for each in row["reasons"][:_REASONS]]
    timeline = row["timeline"]
    daily = len(timeline) > 1 and row["last_seen"] - row["first_seen"] > timedelta(days=3)
    return {
        **row, "examples": examples, "pieces": pieces, "reasons": reasons, "daily": daily,
        "bars": bars(timeline, timedelta(days=1) if daily else timedelta(hours=1)),
        "peak": max((each["rows"] for each in timeline), default=0),
        "form": "%Y-%m-%d" if daily else "%Y-%m-%d %H:00",
    }  # fmt: skip


def bars(timeline: Sequence[dict[str, Any]], unit: timedelta) -> list[tuple[float, float, float, float]]:
    """Return a bar for each hour or day of a timeline: left, width, height, height of the disguised part, in pixels."""
    if not timeline:
        return []
    first: datetime = timeline[0]["start"]
    places = [(each["start"] - first) // unit for each in timeline]
    width, scale = min(24.0, _WIDTH / (places[-1] + 1)), _HEIGHT / max(each["rows"] for each in timeline)
    return [
        (round(place * width, 2), round(max(width * 0.9, 0.5), 2), round(each["rows"] * scale, 2),
         round(each["disguised"] * scale, 2))
        for place, each in zip(places, timeline, strict=True)
    ]  # fmt: skip
