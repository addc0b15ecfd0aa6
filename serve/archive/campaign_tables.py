"""campaigns.parquet, a row a campaign, and members.parquet, a row a message of one."""

from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.model.prefilter import DISGUISES
from jingyin.model.signs import LANGUAGES, name_of
from jingyin.serve.archive.campaign_rows import PARQUET, TIME, Members, pick, read_column
from jingyin.serve.archive.groups import LENGTH, MEMBERS, template, written
from jingyin.serve.archive.writers import as_json, aside, writer
from jingyin.serve.label_studio import read_annotations, task, with_signs

# Counts by campaign: labels, risk, reasons, senders and receivers, times, disguises.


HOUR, DAY = 3_600_000_000, 86_400_000_000
"""Microseconds."""
_HOURLY = 3 * DAY  # a campaign of at most so long is counted by the hour, a longer one by the day

TIMELINE = pa.struct({"start": TIME, "rows": pa.int64(), "disguised": pa.int64()})
DISGUISE = pa.struct({"kind": pa.string(), "rows": pa.int64(), "first": TIME, "last": TIME})
REASON = pa.struct({"sign": pa.string(), "rows": pa.int64()})


def figures(parts: Sequence[Path], members: Members) -> dict[str, pa.Array]:
    """Return columns of campaigns (c,), by name; one column of the rows is in memory at a time, and the times."""
    campaign = members.campaigns
    count = len(members.ids)
    times = read_column(parts, "time").combine_chunks()
    disguises = read_column(parts, "disguises").to_numpy()
    span = _by_campaign(campaign, times, [("value", "min"), ("value", "max")], count)
    return {
        "rows": pa.array(np.bincount(campaign[campaign >= 0], minlength=count)),
        "texts": pa.array(np.bincount(members.campaign_of_text[members.campaign_of_text >= 0], minlength=count)),
        **{name: _different(parts, name[:-1], campaign, count) for name in ("senders", "receivers")},
        "first_seen": span[0],
        "last_seen": span[1],
        **_labels(campaign, read_column(parts, "label").to_numpy(), count),
        **_risks(campaign, read_column(parts, "risk").combine_chunks(), count),
        "timeline": _timeline(campaign, times, disguises, span, count),
        "disguises": _disguises(campaign, times, disguises, count),
        "reasons": _reasons(campaign, read_column(parts, "reasons").combine_chunks(), count),
    }


def _by_campaign(
    campaign: NDArray[np.int32], values: pa.Array, wanted: list[Any], count: int
) -> list[pa.ChunkedArray | pa.Array]:
    """Return a column of campaigns (c,) for each aggregation in `wanted`, null where there is none."""
    table = pa.table({"campaign": campaign, "value": values})
    found = table.filter(pc.greater_equal(table["campaign"], 0)).group_by("campaign").aggregate(wanted)
    at = np.full(count, -1)
    at[found["campaign"].to_numpy()] = np.arange(len(found))
    take = pa.array(at, mask=at < 0)
    return [found[name].combine_chunks().take(take) for name in found.column_names if name != "campaign"]


def _different(parts: Sequence[Path], name: str, campaign: NDArray[np.int32], count: int) -> pa.Array:
    values = read_column(parts, name)
    if values.null_count == len(values):
        return pa.nulls(count, pa.int64())
    return _by_campaign(campaign, values, [("value", "count_distinct", pc.CountOptions("only_valid"))], count)[0]


def _labels(campaign: NDArray[np.int32], labels: NDArray[np.int8], count: int) -> dict[str, pa.Array]:
    """Return the label of most rows, the first of LABELS among equals, and its share of them."""
    kept = campaign >= 0
    table = np.bincount(campaign[kept].astype(np.int64) * len(LABELS) + labels[kept], minlength=count * len(LABELS))
    table = table.reshape(count, len(LABELS))
    most = table.argmax(1) if count else np.zeros(0, np.int64)
    share = table.max(1, initial=0) / table.sum(1).clip(1)
    return {"label": pa.array(LABELS).take(pa.array(most)), "label_share": pa.array(share)}


def _risks(campaign: NDArray[np.int32], risks: pa.Array, count: int) -> dict[str, pa.Array]:
    wanted = ["mean", "min", "max"]
    found = _by_campaign(campaign, risks, [("value", each) for each in wanted], count)
    return dict(zip(("risk", "risk_min", "risk_max"), found, strict=True))


def _timeline(
    campaign: NDArray[np.int32], times: pa.Array, disguises: NDArray[np.uint8], span: Sequence[pa.Array], count: int
) -> pa.Array:
    """Count rows, and those with disguises among them, by the hour or day."""
    kept = (campaign >= 0) & times.is_valid().to_numpy(zero_copy_only=False)
    first, last = (each.fill_null(0).cast(pa.int64()).to_numpy() for each in span)
    unit = np.where(last - first <= _HOURLY, HOUR, DAY)[campaign[kept]]
    start = times.fill_null(0).cast(pa.int64()).to_numpy()[kept] // unit * unit
    rows = pa.table({"campaign": campaign[kept], "start": start, "disguised": (disguises[kept] > 0).astype(np.int64)})
    found = rows.group_by(["campaign", "start"]).aggregate([([], "count_all"), ("disguised", "sum")])
    found = found.sort_by([("campaign", "ascending"), ("start", "ascending")]).combine_chunks()
    fields = (found["start"].cast(TIME), found["count_all"], found["disguised_sum"])
    return _lists(found["campaign"].to_numpy(), fields, TIMELINE, count)


def _disguises(campaign: NDArray[np.int32], times: pa.Array, disguises: NDArray[np.uint8], count: int) -> pa.Array:
    """Count the rows of each kind of disguise, and say when it was first and last seen."""
    numbers = pa.array(np.arange(len(campaign)))
    tables = []
    for bit, kind in enumerate(DISGUISES):
        there = numbers.filter(pa.array((disguises >> bit & 1 > 0) & (campaign >= 0)))
        rows = pa.table({"campaign": pa.array(campaign).take(there), "time": times.take(there)})
        found = rows.group_by("campaign").aggregate([([], "count_all"), ("time", "min"), ("time", "max")])
        tables.append(found.append_column("kind", pa.array([kind] * len(found), pa.string())))
    found = pa.concat_tables(tables).sort_by([("campaign", "ascending"), ("count_all", "descending")])
    fields = [found[name] for name in ("kind", "count_all", "time_min", "time_max")]
    return _lists(found["campaign"].to_numpy(), fields, DISGUISE, count)


def _reasons(campaign: NDArray[np.int32], reasons: pa.Array, count: int) -> pa.Array:
    """Count the rows whose verdict gives a sign as a reason, the commonest sign first."""
    of_row = pa.array(campaign).take(pc.list_parent_indices(reasons))
    rows = pa.table({"campaign": of_row, "sign": pc.list_flatten(reasons)})
    found = rows.filter(pc.greater_equal(of_row, 0)).group_by(["campaign", "sign"]).aggregate([([], "count_all")])
    found = found.sort_by([("campaign", "ascending"), ("count_all", "descending"), ("sign", "ascending")])
    return _lists(found["campaign"].to_numpy(), (found["sign"], found["count_all"]), REASON, count)


def _lists(campaign: NDArray[np.int32], fields: Sequence[Any], kind: pa.StructType, count: int) -> pa.Array:
    """Return a list of structs for each campaign (c,) from rows that are sorted by it."""
    arrays = [
        pa.chunked_array(each).combine_chunks().cast(field.type) for each, field in zip(fields, kind, strict=True)
    ]
    offsets = np.searchsorted(campaign, np.arange(count + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.StructArray.from_arrays(arrays, fields=list(kind)))


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


# Label once: a task for Label Studio a campaign, and its answer for all rows of the campaign.
#
# labels.parquet   file, row, campaign, label: every row of a campaign that has an answer
# finetune.jsonl   text, label, campaign, rows: for `jingyin finetune`, one message a campaign, so that ten thousand
# copies weigh as one situation


LONGEST = 1_000
"""Characters of a message that finetune takes."""

_SHOWN = ("campaign", "rows", "texts", "senders", "receivers", "template")
_COLUMNS = [*_SHOWN, "label", "label_share", "risk", "examples", "reasons"]


class Answers(NamedTuple):
    """What people said: campaigns and rows that have a label now, tasks that got two labels, and that got none."""

    campaigns: int
    rows: int
    disputed: int
    open: int


def tasks_of(out: Path, bundle: str) -> Iterator[dict[str, Any]]:
    """Yield a task for each campaign of the folder `out`, the largest first."""
    for row in _campaigns(out):
        yield _task(row, bundle)


def _campaigns(out: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(out / CAMPAIGNS) as file:
        for batch in file.iter_batches(1024, columns=_COLUMNS):
            yield from batch.to_pylist()


def _task(row: dict[str, Any], bundle: str) -> dict[str, Any]:
    """Return the task of a campaign. Its text is a message of no other campaign: that is how the answer finds it."""
    counts = [
        (row["rows"], "rows"),
        (row["texts"], "texts"),
        (row["senders"], "senders"),
        (row["receivers"], "receivers"),
    ]
    numbers = ", ".join(f"{number:,} {name}" for number, name in counts if number is not None)
    others = "".join(f"\n{text}" for text in row["examples"][1:])
    reasons = [each["sign"] for each in row["reasons"]]
    data = {
        "text": row["examples"][0],
        "reason": with_signs(f"{numbers}; risk {row['risk']:.0%}", reasons) + f"\n{row['template']}{others}",
        **{name: row[name] for name in _SHOWN},
        "reasons": reasons,
    }
    return task(data, row["label"], row["label_share"], f"jingyin {bundle}")


def take_answers(export: Path, out: Path) -> Answers:
    """Write labels.parquet and finetune.jsonl to the folder `out` by the answers of a Label Studio export.

    Raises InputError when it is none, or answers tasks of other campaigns.
    """
    found = read_annotations(export)
    labels: dict[str, str] = {}
    with aside(out / "finetune.jsonl") as file:
        for row in _campaigns(out):
            text = row["examples"][0]
            if (label := found.labels.get(text)) is not None:
                labels[row["campaign"]] = label
                line = {"text": text[:LONGEST], "label": label, "campaign": row["campaign"], "rows": row["rows"]}
                file.write(as_json(line).encode() + b"\n")
        if strangers := len(found.labels) - len(labels):
            raise InputError(
                f"{strangers} answers of {export} are about no campaign of {out}; "
                "name the folder that the tasks came from"
            )
    rows = _write_labels(out, labels)
    return Answers(len(labels), rows, found.disputed, found.open)


def _write_labels(out: Path, labels: dict[str, str]) -> int:
    schema = MEMBER.append(pa.field("label", pa.string()))
    names, answers = pa.array(list(labels), pa.string()), pa.array(list(labels.values()), pa.string())
    count = 0
    with (
        pq.ParquetFile(out / MEMBERS_FILE, read_dictionary=["file"]) as members,
        aside(out / "labels.parquet") as file,
        writer(PARQUET, file, schema) as sink,
    ):
        for batch in members.iter_batches():
            answer = answers.take(pc.index_in(batch.column("campaign"), names))
            kept = batch.append_column("label", answer).filter(answer.is_valid())
            count += kept.num_rows
            sink.write(pa.record_batch([kept[field.name].cast(field.type) for field in schema], schema))
    return count


# report.html: the largest campaigns and the riskiest, for people. Whatever is filled in is escaped.


SHOWN = 100
"""Campaigns in each of the two tables."""
_REASONS = 6  # of a campaign that are shown
_LENGTH = 400  # characters of an example that are shown
_WIDTH, _HEIGHT = 640, 60  # of a timeline, in pixels


def write_report(out: Path, facts: dict[str, Any]) -> None:
    """Write report.html from campaigns.parquet in folder `out`; `facts` are rows read and chosen, and the bundle."""
    ranks = pq.read_table(out / CAMPAIGNS, columns=["risk", "rows"])
    largest = range(min(SHOWN, len(ranks)))
    riskiest = pc.sort_indices(ranks, [("risk", "descending"), ("rows", "descending")])[:SHOWN].to_pylist()
    wanted = np.union1d(largest, riskiest).astype(np.int64)
    details: dict[int, dict[str, Any]] = {}
    for part, batch in pick([out / CAMPAIGNS], wanted, SCHEMA.names):
        details |= zip(wanted[part].tolist(), map(_shown, batch.to_pylist()), strict=True)
    template = files("jingyin.serve.archive").joinpath("report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(template)
    content = page.render(
        tables=[(by, [details[i] for i in rows]) for by, rows in (("size", largest), ("risk", riskiest))],
        details=details.values(), campaigns=len(ranks), members=pc.sum(ranks["rows"]).as_py() or 0, facts=facts,
        width=_WIDTH, height=_HEIGHT,
    )  # fmt: skip
    with aside(out / "report.html") as file:
        file.write(content.encode("utf-8", "replace"))


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    examples = [_printable(text[:_LENGTH]) + ("…" if len(text) > _LENGTH else "") for text in row["examples"]]
    pieces = [{**piece, "text": _printable(piece["text"])} for piece in row["pieces"]]
    reasons = [{**reason, **{each: name_of(reason["sign"], each) for each in LANGUAGES}} for reason in row["reasons"]]
    timeline = row["timeline"]
    return {
        **row, "examples": examples, "pieces": pieces, "reasons": reasons[:_REASONS], "bars": bars(timeline),
        "daily": _unit(_starts(timeline)) == DAY, "peak": max((each["rows"] for each in timeline), default=0),
    }  # fmt: skip


def _printable(text: str) -> str:
    """Replace what a page can't hold by U+FFFD; what is invisible is shown as such too, for it is a disguise."""
    return "".join(c if c.isprintable() or c in "\n\u3000" else "\ufffd" for c in text)


def bars(timeline: list[dict[str, Any]]) -> list[tuple[float, float, float, float]]:
    """Return a bar per hour or day of a timeline: left, width, height, height of the disguised part, in pixels."""
    if not timeline:
        return []
    starts = _starts(timeline)
    places = (starts - starts[0]) // _unit(starts)
    width = min(24.0, _WIDTH / (places[-1] + 1))
    scale = _HEIGHT / max(each["rows"] for each in timeline)
    return [
        (round(place * width, 2), round(max(width * 0.9, 0.5), 2), round(each["rows"] * scale, 2),
         round(each["disguised"] * scale, 2))
        for place, each in zip(places.tolist(), timeline, strict=True)
    ]  # fmt: skip


def _starts(timeline: list[dict[str, Any]]) -> NDArray[np.int64]:
    """Return when the hours or days of a timeline begin, in microseconds since 1970."""
    return np.array([each["start"] for each in timeline], "datetime64[us]").astype(np.int64)


def _unit(starts: NDArray[np.int64]) -> int:
    return DAY if not (starts % DAY).any() and len(starts) > 1 else HOUR
