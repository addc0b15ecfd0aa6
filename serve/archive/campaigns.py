"""`jingyin campaigns`: treats near-duplicates in an archive as one case.

part-*.parquet                       first pass: the chosen rows with their clean texts; deleted at the end
campaigns.parquet, members.parquet   second pass, over these alone (campaign_tables.py)
report.html                          for people
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jingyin.model.errors import ConfigError, InputError
from jingyin.model.labels import LABELS
from jingyin.model.signs import Language
from jingyin.serve.archive.blocks import Block, InputFile, ReadOptions, Reject, fit
from jingyin.serve.archive.campaign_tables import FINAL, LabelCounts, take_answers, tasks_of, write_report, write_tables
from jingyin.serve.archive.changes import write_tasks
from jingyin.serve.archive.decisions import Chosen, Cleaned, choose, clean_packed
from jingyin.serve.archive.job import Job
from jingyin.serve.archive.readers import blocks
from jingyin.serve.archive.shards import ScoredBlock, Shards, check_tasks, counted, reject_lines, sweep
from jingyin.serve.archive.times import TIME, check_form, check_time, read_times
from jingyin.serve.archive.workers import Work, Workers

SHARD_ROWS = 1 << 18
"""Rows read for each part, and the most work that an interruption loses."""
BAD_TIME = "unreadable time"
VERDICT = ("jingyin_label", "jingyin_risk", "jingyin_action", "jingyin_reasons", "jingyin_bundle")

ROWS = pa.schema(
    {
        "source": pa.int32(), "row": pa.int64(), "id": pa.large_string(), "key": pa.uint64(), "text": pa.large_string(),
        "clean": pa.large_string(), "label": pa.int8(), "risk": pa.float64(), "disguises": pa.list_(pa.string()),
        "reasons": pa.list_(pa.string()), "time": TIME, "sender": pa.large_string(), "receiver": pa.large_string(),
    }
)  # fmt: skip
"""The columns of a part: `source` is the number of the input file, `row` that of the row in it, from 1, `label` an
index into LABELS."""


@dataclass(frozen=True)
class CampaignResult:
    """Results of a run.

    `rows` were read: `reused` of them had verdicts of this bundle, `stale` of another. `chosen` rows were grouped, and
    `members` of them are in `campaigns`. `replaced` rows had undecodable bytes; `rejects` counts rows by reason.
    `signs` is the number of signs that `bundle` knows: if 0, no campaign has reasons. `tasks` were written for Label
    Studio; `answers` were read from its export.
    """

    rows: int
    reused: int
    stale: int
    chosen: int
    members: int
    campaigns: int
    replaced: int
    rejects: dict[str, int]
    bundle: str
    signs: int
    tasks: int = 0
    answers: LabelCounts | None = None


def campaigns(
    inputs: Iterable[str | Path],
    output: str | Path,
    *,
    text_column: str = "text",
    id_column: str | None = None,
    sender: str | None = None,
    receiver: str | None = None,
    time: str | None = None,
    time_format: str | None = None,
    every: bool = False,
    min_rows: int = 2,
    bundle: str | Path | None = None,
    encoding: str | None = None,
    delimiter: str = ",",
    label_studio: str | Path | None = None,
    answers: str | Path | None = None,
    language: Language = "en",
    fresh: bool = False,
    processes: int | None = None,
    progress: bool = False,
) -> CampaignResult:
    """Group near-duplicates among the flagged rows of `inputs`, or with `every` among all, into the folder `output`.

    Rows in which `relabel` wrote verdicts of this bundle are not scored again. `sender`, `receiver` and `time` name
    columns to count by; `time_format` (strptime) is the format of times in text, by default ISO 8601. Groups of fewer
    than `min_rows` rows are left out. Rows without a text are left out, rows with an unreadable time become members
    without a time; both are counted in `rejects` and listed in _rejects.csv with the value of `id_column`.
    `label_studio` gets one task per campaign; from `answers`, an export of these tasks, labels.parquet and
    finetune.jsonl are written. `language` is that of report.html.

    Rerun the same call to resume; after completion a rerun only does what `label_studio` and `answers` ask. Raises
    ConfigError for invalid arguments, InputError for input that can't be used or has changed since the run began,
    JingyinError if another run is writing to `output` or it can't be written.
    """
    out, tasks = Path(output), Path(label_studio) if label_studio else None
    check_tasks(tasks, out)
    if min_rows < 1:
        raise ConfigError(f"--min-rows must be at least 1, got {min_rows}")
    if time_format and not time:
        raise ConfigError("a time format needs a column of times: --time COLUMN")
    if tasks and answers and tasks.resolve() == Path(answers).resolve():
        raise ConfigError(f"--label-studio would replace the answers in {answers}; name another file")
    named_columns = {"id-column": id_column, "sender": sender, "receiver": receiver, "time": time}
    columns = tuple(dict.fromkeys([text_column, *(each for each in named_columns.values() if each), *VERDICT]))
    how = ReadOptions(text_column, id_column, encoding, delimiter, columns=columns)
    job = Job.open(inputs, out, how, bundle, tasks)
    manifest = job.bundle.manifest
    if unknown := set(manifest.labels) - set(LABELS):
        raise ConfigError(
            f"bundle {manifest.id} has labels that this jingyin does not know: {', '.join(sorted(unknown))}; "
            "campaigns need the jingyin that wrote it, or a bundle of known labels"
        )
    _check_columns(job.sources, named_columns, time_format)
    facts = {
        "encoding": encoding, "delimiter": delimiter, "all rows": every, "fewest rows": min_rows,
        "columns": [text_column, id_column, sender, receiver, time, time_format],
    }  # fmt: skip
    with job.run(facts, "duckdb", "numpy", "onnxruntime", "pyarrow", fresh=fresh) as run:
        if run.result is None:
            sweep(out, *FINAL)
            shards = Shards(run, job.sources, ".parquet", ROWS, strict=False)
            gathered = _Gathering(named_columns, time_format, manifest.id, every=every)
            job.write(shards, partial(gathered.score, job.sources), lambda _: SHARD_ROWS, processes=processes,
                      progress=progress)  # fmt: skip
            if not shards.total("rows"):
                raise InputError("the input holds no rows that can be scored; there is nothing to group")
            run.finish({
                **{kind: shards.total(kind) for kind in ("rows", "reused", "stale", "replaced")},
                **write_tables(out, shards.parts, job.files, min_rows), "rejects": shards.rejects,
                "bundle": manifest.id, "signs": len(manifest.signs),
            })  # fmt: skip
        write_report(out, run.result, every=every, language=language)
        sweep(out, "part-*", "_part-*")  # after the result is written: until then resuming needs them
        written = write_tasks(tasks, tasks_of(out, manifest.id)) if tasks else 0
        taken = take_answers(Path(answers), out) if answers else None
        return CampaignResult(**run.result, tasks=written, answers=taken)


def _check_columns(sources: Sequence[InputFile], named_columns: dict[str, str | None], form: str | None) -> None:
    """Raise ConfigError when a named column is missing or can't hold the expected values."""
    schema, names = sources[0].schema, list(dict.fromkeys(name for source in sources for name in source.names))
    for option, name in named_columns.items():
        if name is not None and name not in names:
            raise ConfigError(f"there is no column {name!r} for --{option}; there are: {', '.join(names)}")
        if name is not None and option != "time" and pa.types.is_nested(schema.field(name).type):
            raise ConfigError(f"column {name!r} is {schema.field(name).type}, wanted text or numbers; name another")
    if name := named_columns["time"]:
        check_time(schema.field(name).type, name, form)
        _, first = next(blocks(sources), (0, None))
        if first is not None:
            check_form(first.batch.column(name).slice(0, 1000), name, form)


class _Gathering:
    """The first pass: makes the output rows of a block from its chosen rows."""

    def __init__(self, named: dict[str, str | None], form: str | None, bundle: str, *, every: bool) -> None:
        self._named, self._form, self._bundle, self._every = named, form, bundle, every

    def score(self, sources: Sequence[InputFile], pool: Workers, source: int, row: int) -> Iterator[ScoredBlock]:
        """Yield the blocks after a row of an input, each with its chosen rows."""
        for (number, block, flagged), result in pool.map(map(self._work, blocks(sources, source, row))):
            if isinstance(result, Chosen):
                indices, cleaned = result.indices.astype(np.int64), result.cleaned
                labels = [LABELS.index(decision.label) for decision in result.decisions]
                risks = [decision.risk for decision in result.decisions]
                reasons = [[reason.sign for reason in decision.reasons] for decision in result.decisions]
            else:
                indices, cleaned = flagged, result
                labels, risks, reasons = _stored(block.batch.take(pa.array(flagged)), sources[number].path)
            chosen = block.batch.take(pa.array(indices))
            numbers = block.numbers[indices]
            ids = _texts(chosen, self._named["id-column"])
            times, rejects = self._times(chosen, numbers, ids)
            rows = [
                pa.array(np.full(len(indices), number, np.int32)), pa.array(numbers), ids, pa.array(cleaned.keys),
                block.texts.take(pa.array(indices)), cleaned.texts, labels, risks, cleaned.disguises, reasons, times,
                _texts(chosen, self._named["sender"]), _texts(chosen, self._named["receiver"]),
            ]  # fmt: skip
            arrays = [pa.array(column, field.type) if isinstance(column, list) else column.cast(field.type)
                      for column, field in zip(rows, ROWS, strict=True)]  # fmt: skip
            reused = len(block.numbers) * (not isinstance(result, Chosen))
            names = block.batch.schema.names
            older = "jingyin_bundle" in names and block.batch.column("jingyin_bundle").null_count == 0
            stale = (len(block.numbers) - reused) * older
            yield ScoredBlock(number, block, pa.record_batch(arrays, ROWS), rejects, reused, stale)

    def _work(
        self, item: tuple[int, Block]
    ) -> tuple[tuple[int, Block, NDArray[np.int64]], Work[Chosen | Cleaned], pa.Array]:
        """Return the work for a process: score and choose, or clean the chosen rows if all have verdicts already."""
        number, block = item
        scored = all(name in block.batch.schema.names for name in VERDICT)
        if scored:
            bundles = fit(block.batch.column("jingyin_bundle"), pa.string())
            scored = pc.equal(bundles, self._bundle).true_count == len(block.numbers)
        if not scored:
            return (number, block, np.zeros(0, np.int64)), partial(choose, every=self._every), block.texts
        actions = block.batch.column("jingyin_action")
        chosen = np.flatnonzero(pc.not_equal(actions, "pass").to_numpy(zero_copy_only=False) | self._every)
        return (number, block, chosen), clean_packed, block.texts.take(pa.array(chosen))

    def _times(
        self, chosen: pa.RecordBatch, numbers: NDArray[np.int64], ids: pa.Array
    ) -> tuple[pa.Array, list[Reject]]:
        if (name := self._named["time"]) is None:
            return pa.nulls(chosen.num_rows, TIME), []
        given = chosen.column(name)
        found = read_times(given, self._form)
        bad = pc.indices_nonzero(pc.and_(given.is_valid(), found.is_null())).to_pylist()
        shown = fit(given.take(pa.array(bad, pa.int64())), pa.string()).to_pylist()
        # An empty field of CSV is a missing time.
        rejected = [i for i, text in zip(bad, shown, strict=True) if text]
        return found, [Reject(int(numbers[i]), BAD_TIME, ids[i].as_py() or "") for i in rejected]


def _stored(batch: pa.RecordBatch, path: Path) -> tuple[list[int], pa.Array, pa.Array]:
    """Return labels, risks and reasons of verdicts; raises InputError if relabel can't have written them."""
    try:
        labels = [LABELS.index(label) for label in batch.column("jingyin_label").to_pylist()]
        reasons = [json.loads(each) if isinstance(each, str) else each for each in batch["jingyin_reasons"].to_pylist()]
        return labels, fit(batch["jingyin_risk"], pa.float64()), pa.array(reasons, ROWS.field("reasons").type)
    except (ValueError, TypeError, pa.ArrowException) as error:  # whose message could quote the data
        raise InputError(f"{path} has verdicts that `jingyin relabel` did not write ({type(error).__name__}); relabel"
                         " it again, or leave out jingyin_bundle to have its rows scored") from None  # fmt: skip


def _texts(rows: pa.RecordBatch, column: str | None) -> pa.Array:
    """Return a column, of senders or the like, as text."""
    return pa.nulls(rows.num_rows, pa.large_string()) if column is None else fit(rows.column(column), pa.large_string())


def lines(result: CampaignResult, output: Path) -> Iterator[str]:
    """Yield the lines of a run's report."""
    chosen, found = counted(result.chosen, "row"), counted(result.campaigns, "campaign")
    yield f"{result.members:,} of {chosen} ({result.rows:,} read) lie in {found}"
    if result.reused:
        yield f"{counted(result.reused, 'row')} had verdicts of this bundle and were not scored again"
    if result.stale:
        yield f"{counted(result.stale, 'row')} had verdicts of another bundle and were scored again"
    unreasoned = "" if result.signs else ", which has no signs, so no campaign has reasons"
    yield f"report: {output / 'report.html'}; bundle {result.bundle}{unreasoned}"
    yield from reject_lines(result.rejects, result.replaced, output)
    if result.tasks:
        yield f"{counted(result.tasks, 'task')} for Label Studio"
    if result.answers:
        labelled, rows, disputed, unanswered = result.answers
        yield f"{counted(labelled, 'campaign')} with {counted(rows, 'row')} have labels now ({disputed} disputed, " \
            f"{unanswered} open); see {output / 'finetune.jsonl'}"  # fmt: skip
