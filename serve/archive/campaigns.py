"""`jingyin campaigns`: checks, the passes, the end.

part-*.parquet                       first pass: the chosen rows, in finished shards; gone when the run is done
campaigns.parquet, members.parquet   second pass, over the shards alone
report.html                          for people
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jingyin.model.bundle import default_path, read_bundle
from jingyin.model.errors import ConfigError, InputError
from jingyin.serve.archive.campaign_rows import Columns, Job, check_columns, find_members, gather
from jingyin.serve.archive.campaign_tables import (
    CAMPAIGNS,
    MEMBERS_FILE,
    Answers,
    take_answers,
    tasks_of,
    write_report,
    write_tables,
)
from jingyin.serve.archive.changes import check_place, write_tasks
from jingyin.serve.archive.inputs import check_encoding, find, fingerprint, open_sources
from jingyin.serve.archive.shards import Journal, open_journal, write_json
from jingyin.serve.archive.workers import system_memory, workers
from jingyin.serve.archive.writers import no_room


@dataclass(frozen=True)
class Report:
    """What a run did: rows read, rows chosen, rows in campaigns, campaigns, rejects by reason, the bundle.

    `signs` counts those that the bundle knows: with none no campaign has reasons. `tasks` counts those written for
    Label Studio; `answers` is what an export of it brought, None without one.
    """

    rows: int
    chosen: int
    members: int
    campaigns: int
    rejects: dict[str, int]
    bundle: str
    signs: int
    tasks: int = 0
    answers: Answers | None = None


def campaigns(
    inputs: Iterable[str | Path],
    output: str | Path,
    *,
    text_column: str = "text",
    sender: str | None = None,
    receiver: str | None = None,
    time: str | None = None,
    time_format: str | None = None,
    every: bool = False,
    min_rows: int = 2,
    bundle: str | Path | None = None,
    encoding: str = "utf-8",
    label_studio: str | Path | None = None,
    answers: str | Path | None = None,
    fresh: bool = False,
    processes: int | None = None,
    progress: bool = False,
) -> Report:
    """Group near-duplicates among the flagged rows of `inputs`, or with `every` among all, into the folder `output`.

    `sender`, `receiver` and `time` name columns to count by; `time_format` (strptime) is how text writes times, by
    default ISO 8601. Fewer than `min_rows` rows that are alike are no campaign. Rows that can't be scored are left out,
    rows whose time can't be read are members without a time; both are counted in `rejects` and listed in _rejects.csv.
    `label_studio` gets a task a campaign; `answers`, an export of these tasks, makes labels.parquet and finetune.jsonl.

    Called again after whatever ended it, it goes on; called again when it is done, it does what `label_studio` and
    `answers` ask. Raises ConfigError for a wrong call, InputError for input that can't be used or was changed since the
    run began, JingyinError when another run writes to `output` or it can't be written.
    """
    out = Path(output)
    _check_call(out, label_studio, min_rows, encoding)
    files = find(inputs, out)
    read = read_bundle(Path(bundle) if bundle is not None else default_path())
    sources = open_sources(files, text_column, encoding)
    columns = Columns(text_column, sender, receiver, time, time_format)
    check_columns(columns, sources[0].schema)
    facts = {
        "inputs": fingerprint(files), "bundle": read.manifest.id, "encoding": encoding, "all rows": every,
        "fewest rows": min_rows, "columns": [text_column, sender, receiver, time, time_format],
        "versions": {name: version(name) for name in ("jingyin", "numpy", "onnxruntime", "pyarrow", "tokenizers")},
    }  # fmt: skip
    with no_room(out), system_memory(), open_journal(out, facts, fresh=fresh) as journal:
        finished = journal.report()
        if finished is None:
            _clear(out)
            journal.rewind()
            job = Job(out, sources, [file.stat().st_size for file in files], columns)
            with workers(processes or len(os.sched_getaffinity(0)), read) as pool:
                gather(job, journal, pool, every=every, progress=progress)
            finished = _finish(out, files, journal, every=every, min_rows=min_rows, bundle=read.manifest.id)
        for file in [*out.glob("part-*"), out / "_ranked"]:  # after the report, which says that they have served
            file.unlink(missing_ok=True)
        tasks = write_tasks(Path(label_studio), tasks_of(out, read.manifest.id)) if label_studio else 0
        found = take_answers(Path(answers), out) if answers else None
        return Report(**finished, signs=len(read.manifest.signs), tasks=tasks, answers=found)


def _check_call(out: Path, tasks: str | Path | None, min_rows: int, encoding: str) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"output {out} is a file; a folder is wanted")
    if min_rows < 1:
        raise ConfigError(f"a campaign of {min_rows} rows can't be; name a number from 1 on with --min-rows")
    if tasks:
        check_place(Path(tasks), out)
    check_encoding(encoding)


def _clear(out: Path) -> None:
    """Remove what an older run left under final names: an unfinished run has none."""
    for name in (CAMPAIGNS, MEMBERS_FILE, "report.html", "labels.parquet", "finetune.jsonl"):
        (out / name).unlink(missing_ok=True)


def _finish(
    out: Path, files: list[Path], journal: Journal, *, every: bool, min_rows: int, bundle: str
) -> dict[str, Any]:
    """Group the gathered rows, write all files, and last _report.json, which says that the run is whole."""
    last = journal.last
    if not last.rows:
        raise InputError("the input holds no rows that can be scored; there is nothing to group")
    parts = [out / state.file for state in journal.states]
    chosen = sum(pq.read_metadata(part).num_rows for part in parts)
    members = find_members(parts, min_rows)
    write_tables(out, parts, files, members)
    write_report(out, {"rows": last.rows, "chosen": chosen, "every": every, "bundle": bundle})
    report = {
        "rows": last.rows, "chosen": chosen, "members": int((members.campaigns >= 0).sum()),
        "campaigns": len(members.ids), "rejects": last.rejects, "bundle": bundle,
    }  # fmt: skip
    write_json(out / "_report.json", report)
    return report


# A run's report for people, or as JSON.


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
