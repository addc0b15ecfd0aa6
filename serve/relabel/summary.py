"""A run's report for people, or as JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from jingyin.serve.relabel.changes import Changes
from jingyin.serve.relabel.job import Report


def lines(report: Report, output: Path, *, as_json: bool) -> Iterator[str]:
    """Yield the lines to print."""
    if as_json:
        yield json.dumps(asdict(report), ensure_ascii=False)
        return
    resumed = f", {report.resumed} shards of them from an earlier run" if report.resumed else ""
    unreasoned = "" if report.signs else ", which has no signs, so no row has reasons"
    yield f"{report.rows:,} rows in {output}, bundle {report.bundle}{unreasoned}{resumed}"
    for reason, rows in sorted(report.rejects.items()):
        yield f"{rows:,} rows rejected: {reason}; see {output / '_rejects.csv'}"
    if report.changes:
        changes = Changes.from_dict(report.changes)
        yield f"{changes.moved:,} rows moved; see {output / '_moved.jsonl'}"
        yield from changes.lines()
    if report.tasks:
        yield f"{report.tasks:,} tasks for Label Studio"
