"""Counts by campaign: labels, risk, reasons, senders and receivers, times, disguises."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jingyin.model.labels import LABELS
from jingyin.model.prefilter import DISGUISES
from jingyin.serve.campaigns.members import Members, read_column
from jingyin.serve.campaigns.times import TIME

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
