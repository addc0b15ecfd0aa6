"""A run's report for people, or as JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from jingyin.serve.campaigns.job import Report


def lines(report: Report, output: Path, *, as_json: bool) -> Iterator[str]:
    """Yield the lines to print."""
    if as_json:
        answers = report.answers._asdict() if report.answers else None
        yield json.dumps({**asdict(report), "answers": answers}, ensure_ascii=False)
        return
    yield f"{report.members:,} of {report.chosen:,} rows ({report.rows:,} read) lie in {report.campaigns:,} campaigns"
    unreasoned = "" if report.signs else ", which has no signs, so no campaign has reasons"
    yield f"report: {output / 'report.html'}; bundle {report.bundle}{unreasoned}"
    for reason, rows in sorted(report.rejects.items()):
        yield f"{rows:,} rows rejected: {reason}; see {output / '_rejects.csv'}"
    if report.tasks:
        yield f"{report.tasks:,} tasks for Label Studio"
    if report.answers:
        labelled, rows, disputed, unanswered = report.answers
        yield (
            f"{labelled:,} campaigns with {rows:,} rows have labels now ({disputed} disputed, {unanswered} open); "
            f"see {output / 'finetune.jsonl'}"
        )
