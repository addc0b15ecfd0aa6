"""`jingyin mine`: picks the messages of an archive that are worth a person's time, and draws ordinary ones.

mined.jsonl             the picks: all columns of the input, the verdict, evidence, and why a row was picked
mined-ordinary.jsonl    random messages of low risk, which `jingyin finetune` takes as ordinary without a look
mined.run/              bookkeeping; while it runs, the parts: rows that networks read, and those that were drawn

Three rules take turns: the highest risk, the least distance from a threshold, the most disagreement of the networks.
Each rule groups the near-copies among its best POOL texts for every row to pick.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jingyin.model.bundle import Bundle
from jingyin.model.errors import ConfigError, InputError
from jingyin.model.files import atomic_file
from jingyin.model.text import clean
from jingyin.serve.archive.blocks import ReadOptions, fit
from jingyin.serve.archive.changes import write_tasks
from jingyin.serve.archive.decisions import is_drawn, sift
from jingyin.serve.archive.groups import HASHES, groups, signatures
from jingyin.serve.archive.job import Job
from jingyin.serve.archive.readers import blocks, find, fingerprint, open_sources
from jingyin.serve.archive.shards import ScoredBlock, Shards, check_tasks, counted, reject_lines, sweep
from jingyin.serve.archive.workers import Workers
from jingyin.serve.archive.writers import CODECS, FORMATS, as_json, rows_of
from jingyin.serve.label_studio import task, with_signs
from jingyin.serve.scorer import ScorerArguments, scorer_of

KEEP, ORDINARY = 200, 5_000
"""Rows that are picked, and ordinary ones that are drawn, by default."""
ORDINARY_RISK = 0.05
"""Risk below which a message is taken as ordinary without a look."""
MOST_SHARE = 0.1
"""Most of the picks that come from one file or sender, or twice its even share where there are few of them."""
POOL = 50
SHARD_ROWS = 1 << 18
RULES = ("riskiest", "threshold", "disagreement")
"""Values of `why`."""

_VERDICT = pa.schema({
    "risk": pa.float64(), "label": pa.string(), "action": pa.string(), "reasons": pa.list_(pa.string()),
    "disagreement": pa.float64(),
})  # fmt: skip
_OURS = pa.schema({
    "jingyin_key": pa.uint64(), "jingyin_clean": pa.large_string(), "jingyin_file": pa.int32(),
    "jingyin_read": pa.bool_(),
})  # fmt: skip
_ADDED = (*_VERDICT.names, "why", "evidence")
_DRAWN, _ALL = 10, 1 << 17
# Ten times as many are drawn as wanted, because copies of one text count once, and of so few rows all.
_BATCH = 1 << 13


@dataclass(frozen=True)
class MineResult:
    """Results of a run: rows read, rows picked by rule, ordinary ones drawn, rows repaired, rejects by reason."""

    rows: int
    picked: dict[str, int]
    ordinary: int
    replaced: int
    rejects: dict[str, int]
    bundle: str
    tasks: int = 0


def mine(
    inputs: Iterable[str | Path],
    out: str | Path,
    *,
    keep: int = KEEP,
    ordinary: int = ORDINARY,
    text_column: str = "text",
    id_column: str | None = None,
    sender: str | None = None,
    decided: Sequence[str | Path] = (),
    bundle: str | Path | None = None,
    encoding: str | None = None,
    delimiter: str = ",",
    label_studio: str | Path | None = None,
    fresh: bool = False,
    processes: int | None = None,
    progress: bool = False,
) -> MineResult:
    """Score all rows of `inputs` and write at most `keep` of them to `out`, JSON lines, most useful first.

    No two of them are near-copies, nor is one a near-copy of a message in the files `decided`; `sender` names a column
    of senders or other origins, none of which gives more than MOST_SHARE. Input columns that have the name of an added
    one are kept as older_NAME. At most `ordinary` rows of low risk go to a second file. `label_studio` gets the picks
    as tasks. Inputs, rejects and resuming are those of `relabel`; after completion a rerun only writes tasks.

    Raises ConfigError for a wrong call, InputError for input that can't be used, JingyinError as `relabel`.
    """
    out, tasks = Path(out), Path(label_studio) if label_studio else None
    folder, second = out.with_suffix(".run"), out.with_name(f"{out.stem}-ordinary.jsonl")
    check_tasks(tasks, folder)
    if FORMATS.get(out.suffix, "json") != "json" or out.suffix in CODECS:
        raise ConfigError(f"the picks are JSON lines, and can't be written as {out.suffix}; name an output .jsonl")
    if out.is_dir() or not out.resolve().parent.is_dir():
        raise ConfigError(f"--out {out} must name a file in a folder that exists")
    if keep < 1 or ordinary < 0:
        raise ConfigError(f"--keep must be at least 1 and --ordinary at least 0, got {keep} and {ordinary}")
    how = ReadOptions(text_column, id_column, encoding, delimiter)
    job = Job.open(inputs, folder, how, bundle, out, second, tasks)
    names = list(dict.fromkeys(name for source in job.sources for name in source.names))
    if sender is not None and sender not in names:
        raise ConfigError(f"there is no column {sender!r} for --sender; there are: {', '.join(names)}")
    known = find(decided, folder, out, second, tasks) if decided else []
    facts = {
        "keep": keep, "ordinary": ordinary, "columns": [text_column, id_column, sender], "decided": fingerprint(known),
        "encoding": encoding, "delimiter": delimiter,
    }  # fmt: skip
    share = min(1.0, max(_DRAWN * ordinary, _ALL) / max(1, sum(source.rows for source in job.sources)))
    kept = _kept(job.sources[0].schema)
    schema = pa.schema([*(field.with_name(name) for field, name in kept), *_VERDICT, *_OURS])
    manifest = job.bundle.manifest
    with job.run(facts, "numpy", "onnxruntime", "pyarrow", fresh=fresh) as run:
        if run.result is None:
            shards = Shards(run, job.sources, ".parquet", schema, strict=False)
            score = partial(_sifted, job, [field.name for field, _ in kept], schema, share)
            job.write(shards, score, lambda _: SHARD_ROWS, processes=processes, progress=progress)
            if not shards.total("rows"):
                raise InputError("the input holds no rows that can be scored; there is nothing to mine")
            older = {field.name: name for field, name in kept}
            messages = blocks(open_sources(known, ReadOptions(columns=("text",))))
            texts = [text for _, block in messages for text in block.texts.to_pylist()]
            picks, drawn = _chosen(shards.parts, job.bundle, (keep, ordinary), share, older.get(sender or ""), texts)
            _write(out, _described(shards.parts, picks, job.bundle, older[text_column]))
            _write(second, _ordinary(shards.parts, drawn, older[text_column]))
            run.finish({
                **{kind: shards.total(kind) for kind in ("rows", "replaced")}, "rejects": shards.rejects,
                "picked": {rule: count for rule in RULES if (count := Counter(picks.values())[rule])},
                "ordinary": len(drawn), "bundle": manifest.id,
            })  # fmt: skip
        sweep(folder, "part-*", "_part-*")
        if not out.is_file():
            raise InputError(f"{out} is missing, though this run wrote it; run again with --fresh")
        written = write_tasks(tasks, _tasks(out, text_column, manifest.id)) if tasks else 0
        return MineResult(**run.result, tasks=written)


def _kept(schema: pa.Schema) -> list[tuple[pa.Field, str]]:
    """Return the columns of the input that are kept, each with its name in the output."""
    taken = {*schema.names, *_ADDED}
    kept = []
    for field in schema:
        name = field.name
        while name in _ADDED or (name != field.name and name in taken):
            name = f"older_{name}"
        taken.add(name)
        if field.name not in _OURS.names:
            kept.append((field, name))
    return kept


def _sifted(
    job: Job, columns: Sequence[str], schema: pa.Schema, share: float, pool: Workers, source: int, row: int
) -> Iterator[ScoredBlock]:
    stream = (
        (item, partial(sift, share=share), item[1].texts) for item in blocks(job.sources, source, row)
    )  # fmt: skip
    for (number, block), (indices, decisions, cleaned) in pool.map(stream):
        rows = block.batch.take(pa.array(indices.astype(np.int64)))
        ours: list[Any] = [
            *([getattr(each, name) for each in decisions] for name in ("risk", "label", "action")),
            [[reason.sign for reason in each.reasons] for each in decisions],
            [each.disagreement for each in decisions], cleaned.keys, cleaned.texts, [number] * len(decisions),
            [each.stage == "network" for each in decisions],
        ]  # fmt: skip
        fields = [*_VERDICT, *_OURS]
        arrays = [pa.array(values, field.type) for values, field in zip(ours, fields, strict=True)]
        yield ScoredBlock(number, block, pa.record_batch([*(rows.column(name) for name in columns), *arrays], schema))


def _chosen(
    parts: Sequence[Path], bundle: Bundle, wanted: tuple[int, int], share: float, sender: str | None,
    decided: Sequence[str],
) -> tuple[dict[int, str], list[int]]:  # fmt: skip
    """Return the picks, each with its rule, and the ordinary rows, as places in all parts together."""
    keep, ordinary = wanted
    columns = ["jingyin_key", "jingyin_file", "jingyin_read", "risk", "disagreement", *([sender] if sender else [])]
    table = pa.concat_tables([pq.read_table(part, columns=columns, partitioning=None) for part in parts])
    # The first of equal texts; its place is that in the input's order.
    places = np.sort(np.unique(table["jingyin_key"].to_numpy(), return_index=True)[1])
    table = table.take(pa.array(places))
    keys, risks = table["jingyin_key"].to_numpy(), table["risk"].to_numpy()
    odds, bounds = _odds(risks), _odds(np.array([bundle.manifest.review.risk, bundle.manifest.block.risk]))
    apart, is_read = table["disagreement"].to_numpy(), table["jingyin_read"].to_numpy()
    scores = {"riskiest": risks, "threshold": -np.abs(odds[:, None] - bounds).min(1), "disagreement": apart}
    ranked: dict[str, list[int]] = {}
    for rule, score in scores.items():
        order = np.argsort(-score, kind="stable")  # the first of equals first
        ranked[rule] = order[is_read[order]][: POOL * keep].tolist()
    ranked["disagreement"] = [i for i in ranked["disagreement"] if apart[i]]  # one network alone never disagrees
    low = np.flatnonzero((risks < ORDINARY_RISK) & is_drawn(keys, share))
    low = low[np.argsort(keys[low], kind="stable")][: _DRAWN * ordinary]  # the keys are hashes: the least are random
    pool = np.unique([*low.tolist(), *(i for ranking in ranked.values() for i in ranking)]).astype(np.int64)
    cleaned = _rows_at(parts, places[pool], ["jingyin_clean"])["jingyin_clean"].to_pylist()
    signed = signatures([*cleaned, *(clean(text).text for text in decided)]).reshape(-1, HASHES)
    grouped = groups(signed, np.ones(len(signed), np.int64))
    group_of = dict(zip(pool.tolist(), grouped.tolist(), strict=False))
    origins = [table["jingyin_file"].to_pylist()]
    if sender:
        origins.append(fit(table[sender].combine_chunks(), pa.large_string()).to_pylist())
    used = set(grouped[len(pool) :].tolist())
    picks = take_turns(ranked, group_of, origins, keep, used)
    drawn: list[int] = []
    for i in low.tolist():
        if group_of[i] not in used and len(drawn) < ordinary:
            used.add(group_of[i])
            drawn.append(int(places[i]))
    return {int(places[i]): rule for i, rule in picks.items()}, sorted(drawn)


def _odds(risks: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(risks, 1e-12, 1 - 1e-12)
    return np.asarray(np.log(clipped / (1 - clipped)))


def take_turns(
    ranked: Mapping[str, Sequence[int]], group_of: Mapping[int, int], origins: Sequence[Sequence[object]], keep: int,
    used: set[int],
) -> dict[int, str]:  # fmt: skip
    """Let rules in turn take the next row of their ranking, until `keep` are taken; return each row with its rule.

    A row is passed over if its group is in `used`, to which the groups of taken rows are added, or if its origin, such
    as its sender, has given its share; a missing origin has no limit.
    """
    queues = {rule: iter(ranking) for rule, ranking in ranked.items()}
    mosts = [ceil(keep * max(MOST_SHARE, 2 / max(1, len(set(each))))) for each in origins]
    given: Counter[tuple[int, object]] = Counter()
    picks: dict[int, str] = {}
    while queues:
        for rule, queue in list(queues.items()):
            if len(picks) == keep:
                return picks
            for i in queue:
                froms = [(number, each[i]) for number, each in enumerate(origins) if each[i] is not None]
                if group_of[i] not in used and all(given[origin] < mosts[origin[0]] for origin in froms):
                    picks[i] = rule
                    used.add(group_of[i])
                    given.update(froms)
                    break
            else:
                del queues[rule]
    return picks


def _rows_at(parts: Sequence[Path], places: NDArray[np.int64], columns: list[str] | None = None) -> pa.Table:
    """Return the rows at ascending `places` of all parts together."""
    start, found = 0, []
    for part in parts:
        with pq.ParquetFile(part) as file:
            schema = file.schema_arrow if columns is None else pa.schema([file.schema_arrow.field(n) for n in columns])
            for batch in file.iter_batches(_BATCH, columns=columns):
                inside = places[np.searchsorted(places, start) : np.searchsorted(places, start + len(batch))] - start
                found.append(batch.take(pa.array(inside)))
                start += len(batch)
    return pa.Table.from_batches(found, schema)


def _described(
    parts: Sequence[Path], picks: Mapping[int, str], bundle: Bundle, text_column: str
) -> Iterator[dict[str, Any]]:
    """Yield the picked rows in their order, with evidence."""
    places = sorted(picks)
    rows = dict(zip(places, rows_of(_rows_at(parts, np.array(places, np.int64)).drop(_OURS.names)), strict=True))
    scorer = scorer_of(ScorerArguments(bundle.path, bundle.manifest.id))
    for place, why in picks.items():
        spans = scorer.explanation(str(rows[place][text_column])).risk
        yield {**rows[place], "why": why, "evidence": [asdict(span) for span in spans]}


def _ordinary(parts: Sequence[Path], places: Sequence[int], text_column: str) -> Iterator[dict[str, Any]]:
    table = _rows_at(parts, np.array(places, np.int64), [text_column, "risk"])
    for text, risk in zip(table[text_column].to_pylist(), table["risk"].to_pylist(), strict=True):
        yield {"text": text, "label": "ordinary", "risk": risk, "source": "mined"}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_file(path) as file:
        file.writelines(as_json(row).encode() + b"\n" for row in rows)


def _tasks(out: Path, text_column: str, bundle: str) -> Iterator[dict[str, Any]]:
    with out.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            reason = with_signs(f"{row['why']}, risk {row['risk']:.0%}", row["reasons"])
            shown = {"text": row[text_column], "reason": reason}
            yield task({**row, **shown}, row["label"], row["risk"], f"jingyin {bundle}")


def lines(result: MineResult, out: Path) -> Iterator[str]:
    """Yield the lines of a run's report."""
    rules = ", ".join(f"{count} {rule}" for rule, count in result.picked.items())
    yield f"{counted(sum(result.picked.values()), 'message')} of {result.rows:,} picked ({rules}): {out}"
    second = out.with_name(f"{out.stem}-ordinary.jsonl")
    yield f"{counted(result.ordinary, 'message')} drawn as ordinary: {second}; bundle {result.bundle}"
    yield from reject_lines(result.rejects, result.replaced, out.with_suffix(".run"))
    if result.tasks:
        yield f"{counted(result.tasks, 'task')} for Label Studio"
