"""report.html: the largest campaigns and the riskiest, for people. Whatever is filled in is escaped."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from jingyin.model.signs import LANGUAGES, name_of
from jingyin.serve.campaigns.figures import DAY, HOUR
from jingyin.serve.campaigns.members import pick
from jingyin.serve.campaigns.table import CAMPAIGNS, SCHEMA
from jingyin.serve.relabel.writing import aside

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
    template = files("jingyin.serve.campaigns").joinpath("report.html").read_text(encoding="utf-8")
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
