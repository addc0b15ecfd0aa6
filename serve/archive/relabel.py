"""`jingyin relabel`: checks, the loop over shards, the end."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from jingyin.model.bundle import default_path, read_bundle
from jingyin.model.errors import ConfigError, InputError
from jingyin.serve.archive.changes import DEFAULT_SAMPLE, Changes, check_place, merge, sampled, write_tasks
from jingyin.serve.archive.columns import with_verdicts
from jingyin.serve.archive.inputs import (
    Kind,
    Source,
    blocks,
    check_encoding,
    find,
    fingerprint,
    kind_of,
    open_sources,
    suffix_of,
    texts,
)
from jingyin.serve.archive.readers import share_read
from jingyin.serve.archive.shards import Job, Journal, Progress, Scored, Shard, State, open_journal, write_json
from jingyin.serve.archive.workers import Workers, system_memory, workers
from jingyin.serve.archive.writers import aside, no_room, writer

FIRST_ROWS, MOST_ROWS = 1 << 12, 1 << 19
"""The first shard is one block, so that one soon sees something: with empty caches the network reads half of it. Each
is twice the one before, up to the most."""


@dataclass(frozen=True)
class Report:
    """What a run did: rows written, rejects by reason, the bundle; with a comparison, what changed.

    `changes` holds "moved", "table" (older label -> new label -> rows) and "families" (name -> [rows, moved]).
    `tasks` counts those written for Label Studio; `resumed` the shards that an earlier run had finished; `signs` those
    that the bundle knows: with none no row has reasons.
    """

    rows: int
    rejects: dict[str, int]
    bundle: str
    changes: dict[str, Any] = field(default_factory=dict)
    tasks: int = 0
    resumed: int = 0
    signs: int = 0


def relabel(
    inputs: Iterable[str | Path],
    output: str | Path,
    *,
    text_column: str = "text",
    bundle: str | Path | None = None,
    encoding: str = "utf-8",
    compare: str | None = None,
    label_studio: str | Path | None = None,
    sample: int | None = None,
    strict: bool = False,
    fresh: bool = False,
    processes: int | None = None,
    progress: bool = False,
) -> Report:
    """Score all rows of `inputs` (files, folders, globs) into the folder `output`, whose suffix names the format.

    The folder holds shards in input order, each whole, and bookkeeping whose names start with "_". Called again after
    whatever ended it, it goes on after the last finished shard, to the same bytes. Rows that can't be scored go to
    _rejects.csv, or with `strict` raise InputError. `compare` names a column of older labels: what changed is in the
    report and _moved.jsonl. `label_studio` gets `sample` tasks (1,000) of the moved rows, or without `compare` of those
    to review. `processes` is by default the number of cores this process may use.

    Raises ConfigError for a wrong call, InputError for input that can't be used or was changed since the run began,
    JingyinError when another run writes to `output` or it can't be written. Scripts need `if __name__ == "__main__":`
    around the call, as with all of multiprocessing.
    """
    out, tasks = Path(output), Path(label_studio) if label_studio else None
    picked = _check_call(out, tasks, sample, encoding)
    files = find(inputs, out)
    read = read_bundle(Path(bundle) if bundle is not None else default_path())
    sources = open_sources(files, text_column, encoding)
    job = _job(out, sources, text_column, compare, ranks=tasks is not None, strict=strict)
    facts = {
        "inputs": fingerprint(files),
        "bundle": read.manifest.id,
        "text column": text_column,
        "encoding": encoding,
        "compared column": compare,
        "tasks for Label Studio": picked,
        "file for Label Studio": str(tasks.resolve()) if tasks else None,
        "output format": suffix_of(out),
        "versions": {name: version(name) for name in ("jingyin", "onnxruntime", "pyarrow", "tokenizers")},
    }
    with no_room(out), system_memory(), open_journal(out, facts, fresh=fresh) as journal:
        _check_rejects(journal.last, strict=strict)
        finished = journal.report()
        if finished is None:
            journal.rewind()
            with workers(processes or len(os.sched_getaffinity(0)), read) as pool:
                _write_shards(job, journal, _scored(job, pool, sources, journal.last), progress=progress)
            finished = _finish(job, journal, tasks, picked, read.manifest.id)
        elif tasks and not tasks.exists():
            raise InputError(f"{tasks} is gone, and {out} is finished: its rows are not ranked again; run with --fresh")
        (out / "_ranked").unlink(missing_ok=True)
        return Report(**finished, resumed=journal.resumed, signs=len(read.manifest.signs))


def _check_call(out: Path, tasks: Path | None, sample: int | None, encoding: str) -> int:
    """Refuse what can't be meant, and return how many tasks are wanted."""
    kind_of(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"output {out} is a file; a folder is wanted, in which the shards will lie")
    if sample is not None and (tasks is None or sample < 1):
        raise ConfigError("a sample is a number of tasks from 1 on, and needs a file for them: --label-studio FILE")
    if tasks:
        check_place(tasks, out)
    check_encoding(encoding)
    return (sample or DEFAULT_SAMPLE) if tasks else 0


def _job(
    out: Path, sources: Sequence[Source], text_column: str, compare: str | None, *, ranks: bool, strict: bool
) -> Job:
    before = sources[0].schema
    if compare is not None and compare not in before.names:
        raise ConfigError(f"there is no column {compare!r} to compare; there are: {', '.join(before.names)}")
    schema = with_verdicts(before)
    try:
        with writer(Kind(kind_of(out).format, None), BytesIO(), schema):
            pass
    except (pa.ArrowException, TypeError):
        raise ConfigError(f"the columns can't be written as {suffix_of(out)}; name an output .parquet") from None
    files = [source.path for source in sources]
    return Job(out, files, [file.stat().st_size for file in files], schema, text_column, compare, ranks, strict)


def _check_rejects(last: State, *, strict: bool) -> None:
    if strict and last.rejects:
        raise InputError(f"{sum(last.rejects.values())} rows were rejected before this run was resumed with --strict; "
                         "see _rejects.csv in the output")  # fmt: skip


def _scored(job: Job, pool: Workers, sources: Sequence[Source], last: State) -> Iterator[Scored]:
    read = blocks(sources, tuple(last.position), job.text_column)
    for (source, block), verdicts in pool.score((item, texts(item[1], job.text_column)) for item in read):
        yield Scored(source, block, verdicts)


def _write_shards(job: Job, journal: Journal, scored: Iterator[Scored], *, progress: bool) -> None:
    bar = Progress(journal.last.rows, journal.last.share, shown=progress)
    for first in scored:
        shard = Shard(job, journal)
        items = _up_to(min(FIRST_ROWS << len(journal.states), MOST_ROWS), chain([first], scored))
        shard.write(_shown(items, bar, shard, job))
    bar.close()


def _up_to(rows: int, scored: Iterator[Scored]) -> Iterator[Scored]:
    """Yield items until they have so many rows: always the same ones after a given position."""
    for item in scored:
        yield item
        rows -= item.block.records
        if rows <= 0:
            return


def _shown(items: Iterator[Scored], bar: Progress, shard: Shard, job: Job) -> Iterator[Scored]:
    for item in items:
        yield item
        bar.show(shard.rows, share_read(job.sizes, item.source, item.block))


def _finish(job: Job, journal: Journal, tasks: Path | None, picked: int, bundle: str) -> dict[str, Any]:
    """Write what is ordered by risk, and last the report, which says that the run is whole."""
    last = journal.last
    if not last.rows and not last.rejects:
        raise InputError("the input holds no rows; there is nothing to relabel")
    ends = [end for state in journal.states for end in state.runs]
    written = 0
    if job.compare:
        with aside(job.out / "_moved.jsonl") as file:
            file.writelines(line + b"\n" for line in merge(job.out / "_ranked", ends))
    if tasks:
        written = write_tasks(tasks, sampled(merge(job.out / "_ranked", ends), picked, bundle))
    changes = last.changes if job.compare else {}
    report = {"rows": last.rows, "rejects": last.rejects, "bundle": bundle, "changes": changes, "tasks": written}
    write_json(job.out / "_report.json", report)
    return report


# A run's report for people, or as JSON.


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
