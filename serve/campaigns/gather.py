"""The first pass: the rows that are chosen, scored and cleaned, in shards that a run which was ended goes on after."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jingyin.model.errors import ConfigError
from jingyin.serve.campaigns.choose import Chosen, choose
from jingyin.serve.campaigns.times import TIME, check_time, read_times
from jingyin.serve.relabel.block import Block, share_read
from jingyin.serve.relabel.inputs import Kind
from jingyin.serve.relabel.journal import Journal, State
from jingyin.serve.relabel.progress import Progress
from jingyin.serve.relabel.reading import Source, blocks, texts
from jingyin.serve.relabel.rejects import Rejects
from jingyin.serve.relabel.workers import Workers
from jingyin.serve.relabel.writing import aside, writer

SHARD_ROWS = 1 << 18
"""Rows that are read for a shard: what is lost when a run is ended."""
BAD_TIME = "unreadable time"

PARQUET = Kind("parquet", None)
SCHEMA = pa.schema(
    {
        "source": pa.int32(), "row": pa.int64(), "key": pa.uint64(), "text": pa.large_string(),
        "clean": pa.large_string(), "label": pa.int8(), "risk": pa.float64(), "disguises": pa.uint8(),
        "reasons": pa.list_(pa.large_string()), "time": TIME, "sender": pa.large_string(),
        "receiver": pa.large_string(),
    }
)  # fmt: skip
"""The columns of a shard; `source` counts the input files, `row` the rows of one as relabel does."""

_Items = Iterator[tuple[tuple[int, Block], Chosen]]


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read, None for those that there are not; `form` is how times are written."""

    text: str
    sender: str | None
    receiver: str | None
    time: str | None
    form: str | None


@dataclass(frozen=True)
class Job:
    """What stays the same through the pass. `sizes` are the bytes of the input files."""

    out: Path
    sources: list[Source]
    sizes: list[int]
    columns: Columns


def check_columns(columns: Columns, schema: pa.Schema) -> None:
    """Raise ConfigError when a column that is named is not there, or can't hold what it should."""
    if columns.form and not columns.time:
        raise ConfigError("a time format needs a column of times: --time COLUMN")
    for option, name in (("sender", columns.sender), ("receiver", columns.receiver), ("time", columns.time)):
        if name is not None and name not in schema.names:
            raise ConfigError(f"there is no column {name!r} for --{option}; there are: {', '.join(schema.names)}")
        if name is not None and option != "time" and pa.types.is_nested(schema.field(name).type):
            raise ConfigError(f"column {name!r} is {schema.field(name).type}, wanted text or numbers; name another")
    if columns.time:
        check_time(schema.field(columns.time).type, columns.time, columns.form)


def gather(job: Job, journal: Journal, pool: Workers, *, every: bool, progress: bool) -> None:
    """Write the chosen rows of what has not been read yet to shards of SCHEMA, in input order."""
    read = blocks(job.sources, tuple(journal.last.position), job.columns.text)
    stream = ((item, texts(item[1], job.columns.text)) for item in read)
    items = pool.map(partial(choose, every=every), stream)
    bar = Progress(journal.last.rows, journal.last.share, shown=progress)
    for first in items:
        _Shard(job, journal, bar).write(chain([first], items))
    bar.close()


class _Shard:
    """Counts while a shard is written; begins from the state after the one before."""

    def __init__(self, job: Job, journal: Journal, bar: Progress) -> None:
        self._job = job
        self._journal = journal
        self._bar = bar
        self._rows = journal.last.rows
        self._rejects = Rejects(journal)

    def write(self, items: _Items) -> None:
        path = self._job.out / f"part-{len(self._journal.states):05d}.parquet"
        with aside(path) as file:
            with writer(PARQUET, file, SCHEMA) as sink:
                for (source, block), chosen in self._up_to_a_shard(items):
                    sink.write(self._add(source, block, chosen))
            lengths = {"_rejects.csv": self._rejects.write()}
        self._journal.commit(
            State(
                file=path.name, size=path.stat().st_size, position=(source, *block.next),
                share=share_read(self._job.sizes, source, block), rows=self._rows, rejects=self._rejects.counts,
                lengths=lengths,
            )
        )  # fmt: skip

    def _up_to_a_shard(self, items: _Items) -> _Items:
        read = 0
        for item in items:
            yield item
            source, block = item[0]
            self._bar.show(self._rows, share_read(self._job.sizes, source, block))
            read += block.records
            if read >= SHARD_ROWS:
                return

    def _add(self, source: int, block: Block, chosen: Chosen) -> pa.RecordBatch:
        """Count a block and return its chosen rows."""
        for row, reason in block.rejects:
            self._rejects.add(self._job.sources[source].path, row, reason)
        self._rows += block.batch.num_rows
        indices = pa.array(chosen.indices)
        numbers = np.asarray(block.numbers, np.int64)[chosen.indices]
        there = block.batch.take(indices)
        return pa.record_batch(
            [
                pa.array(np.full(len(indices), source, np.int32)), pa.array(numbers), pa.array(chosen.keys),
                texts(block, self._job.columns.text).take(indices).cast(pa.large_string()),
                pa.array(chosen.cleaned, pa.large_string()), pa.array(chosen.labels), pa.array(chosen.risks),
                pa.array(chosen.disguises), pa.array(chosen.reasons, pa.list_(pa.large_string())),
                self._times(source, there, numbers),
                _names(there, self._job.columns.sender), _names(there, self._job.columns.receiver),
            ],
            SCHEMA,
        )  # fmt: skip

    def _times(self, source: int, there: pa.RecordBatch, numbers: NDArray[np.int64]) -> pa.Array:
        if self._job.columns.time is None:
            return pa.nulls(there.num_rows, TIME)
        given = there.column(self._job.columns.time)
        found = read_times(given, self._job.columns.form)
        for row in pc.indices_nonzero(pc.and_(given.is_valid(), found.is_null())).to_pylist():
            self._rejects.add(self._job.sources[source].path, int(numbers[row]), BAD_TIME)
        return found


def _names(there: pa.RecordBatch, column: str | None) -> pa.Array:
    """Return senders or receivers as text."""
    if column is None:
        return pa.nulls(there.num_rows, pa.large_string())
    given = there.column(column)
    return (given.dictionary_decode() if pa.types.is_dictionary(given.type) else given).cast(pa.large_string())
