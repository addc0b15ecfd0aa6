"""`jingyin relabel`: writes every row of an archive with its verdict, and on request the changes."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa

from jingyin.model.errors import ConfigError, InputError
from jingyin.model.labels import ACTIONS, LABELS
from jingyin.serve.archive.blocks import Block, ReadOptions
from jingyin.serve.archive.changes import Changes, review
from jingyin.serve.archive.columns import FIELDS, NAMES, array_of, decision_columns
from jingyin.serve.archive.decisions import decide_packed
from jingyin.serve.archive.job import Job
from jingyin.serve.archive.readers import blocks
from jingyin.serve.archive.shards import ScoredBlock, Shards, check_tasks, counted, reject_lines, sweep
from jingyin.serve.archive.workers import Workers
from jingyin.serve.archive.writers import FileKind, kind_of, suffix_of, writer

FIRST_ROWS, MOST_ROWS = 1 << 12, 1 << 19
"""The first part is one block, so that output appears soon: with empty caches the networks read half of it. Each part
is twice the one before, up to MOST_ROWS."""

REPLACED = pa.field("jingyin_replaced", pa.int32())
"""Undecodable bytes of the row; each became U+FFFD."""
OLDER = "older_"
"""Prefix of the column that keeps an older verdict for comparison, because the new one takes its name."""


@dataclass(frozen=True)
class RelabelResult:
    """Results of a run: rows written, rows with bytes replaced, rejects by reason, the bundle, the changes.

    `changes` holds "moved", "table" (older label -> new label -> rows) and "families" (name -> [rows, moved]).
    `tasks` counts those written for Label Studio; `resumed` the parts that an earlier run had finished; `signs` the
    signs that the bundle knows: if 0, no row has reasons.
    """

    rows: int
    replaced: int
    rejects: dict[str, int]
    bundle: str
    signs: int
    changes: dict[str, Any] = field(default_factory=dict)
    tasks: int = 0
    resumed: int = 0


def relabel(
    inputs: Iterable[str | Path],
    output: str | Path,
    *,
    text_column: str = "text",
    id_column: str | None = None,
    bundle: str | Path | None = None,
    encoding: str | None = None,
    delimiter: str = ",",
    errors: str = "replace",
    keep_rejected: bool = False,
    compare: str | None = None,
    label_map: Mapping[str, str] | None = None,
    label_studio: str | Path | None = None,
    sample: int | None = None,
    strict: bool = False,
    fresh: bool = False,
    processes: int | None = None,
    progress: bool = False,
) -> RelabelResult:
    """Score all rows of `inputs` (files, folders, patterns) into the folder `output`, whose suffix names the format.

    The folder holds complete parts in input order, and bookkeeping files whose names start with "_". Rerun the same
    call to resume after the last finished part: the output is the same, byte for byte. After completion a rerun only
    does what `compare` and `label_studio` ask. Rows that can't be scored go to _rejects.csv with the value of
    `id_column` (with `keep_rejected` the whole row), or with `strict` raise InputError. Undecodable bytes become
    U+FFFD, or with `errors="strict"` reject their row. `encoding` is UTF-8 by default; a file that looks otherwise
    raises InputError.

    `compare` names a column of older labels, `label_map` gives their meaning: the changes are in the result and
    _moved.jsonl. `label_studio` gets `sample` tasks (1,000) of the moved rows, or without `compare` of those to review.
    `processes` is one per core by default, if there are enough rows.

    Raises ConfigError for a wrong call, InputError for input that can't be used or was changed since the run began,
    JingyinError when another run writes to `output` or it can't be written. Scripts need `if __name__ == "__main__":`
    around the call, as with all of multiprocessing.
    """
    out, tasks = Path(output), Path(label_studio) if label_studio else None
    kind_of(out)
    check_tasks(tasks, out)
    if sample is not None and (tasks is None or sample < 1):
        raise ConfigError(f"--sample needs --label-studio FILE and must be at least 1, got {sample}")
    if errors not in ("replace", "strict"):
        raise ConfigError(f"errors {errors!r} is unknown; known are replace and strict")
    if unknown := sorted(set((label_map or {}).values()) - {*LABELS, *ACTIONS}):
        raise ConfigError(f"--label-map gives {', '.join(unknown)}; known labels: {', '.join(LABELS)}")
    how = ReadOptions(text_column, id_column, encoding, delimiter, errors == "strict", keep_rejected)
    job = Job.open(inputs, out, how, bundle, tasks)
    older = compare if compare in NAMES else None
    schema = _schema(out, job.sources[0].schema, compare, older)
    facts = {
        "text column": text_column, "id column": id_column, "encoding": encoding, "delimiter": delimiter,
        "errors": errors, "rejected rows": keep_rejected, "verdict to compare": older, "output format": suffix_of(out),
    }  # fmt: skip
    manifest = job.bundle.manifest

    def score(pool: Workers, source: int, row: int) -> Iterator[ScoredBlock]:
        stream = ((item, decide_packed, item[1].texts) for item in blocks(job.sources, source, row))
        for (number, block), decisions in pool.map(stream):
            verdicts = decision_columns(decisions, manifest.id)
            yield ScoredBlock(number, block, _rows(block, verdicts, schema, older))

    with job.run(facts, "onnxruntime", "pyarrow", "tokenizers", fresh=fresh) as run:
        resumed = 0
        if run.result is None:
            shards = Shards(run, job.sources, suffix_of(out), schema, strict=strict)
            resumed = shards.resumed
            job.write(
                shards, score, lambda number: min(FIRST_ROWS << number, MOST_ROWS), processes=processes,
                progress=progress,
            )  # fmt: skip
            if not shards.done:
                raise InputError("the input holds no rows; there is nothing to relabel")
            run.finish({
                **{kind: shards.total(kind) for kind in ("rows", "replaced")}, "rejects": shards.rejects,
                "bundle": manifest.id, "signs": len(manifest.signs),
            })  # fmt: skip
        result = run.result
        if strict and result["rejects"]:
            raise InputError(f"{sum(result['rejects'].values())} rows were rejected by this run before --strict was "
                             "asked for; see _rejects.csv in the output")  # fmt: skip
        sweep(out, "_part-*")
        column = OLDER + older if older else compare
        changes, written = review(out, how, column, label_map or {}, tasks, sample, manifest.id)
        return RelabelResult(**result, changes=changes, tasks=written, resumed=resumed)


def _schema(out: Path, source: pa.Schema, compare: str | None, older: str | None) -> pa.Schema:
    """Return the columns of the output."""
    if compare is not None and compare not in source.names:
        raise ConfigError(f"there is no column {compare!r} to compare; there are: {', '.join(source.names)}")
    added = (*NAMES, REPLACED.name, *([OLDER + older] if older else []))
    columns = [column for column in source if column.name not in added]
    if older:
        columns.append(source.field(older).with_name(OLDER + older))
    schema = pa.schema([*columns, *FIELDS, REPLACED])
    try:
        with writer(FileKind(kind_of(out).format, None), BytesIO(), schema):
            pass
    except (pa.ArrowException, TypeError):
        raise ConfigError(f"the columns can't be written as {suffix_of(out)}; name an output .parquet") from None
    return schema


def _rows(block: Block, verdicts: list[pa.Array], schema: pa.Schema, older: str | None) -> pa.RecordBatch:
    columns = {**dict(zip(NAMES, verdicts, strict=True)), REPLACED.name: array_of(block.replaced, REPLACED.type)}
    if older:
        columns[OLDER + older] = block.batch.column(older)
    return pa.record_batch([columns[n] if n in columns else block.batch.column(n) for n in schema.names], schema)


def lines(result: RelabelResult, output: Path) -> Iterator[str]:
    """Yield the lines of a run's report."""
    resumed = f", {counted(result.resumed, 'part')} of them from an earlier run" if result.resumed else ""
    unreasoned = "" if result.signs else ", which has no signs, so no row has reasons"
    yield f"{counted(result.rows, 'row')} in {output}, bundle {result.bundle}{unreasoned}{resumed}"
    yield from reject_lines(result.rejects, result.replaced, output)
    if result.changes:
        changes = Changes(result.changes["table"], result.changes["families"])
        yield f"{counted(changes.moved, 'row')} moved; see {output / '_moved.jsonl'}"
        yield from changes.lines()
    if result.tasks:
        yield f"{counted(result.tasks, 'task')} for Label Studio"
