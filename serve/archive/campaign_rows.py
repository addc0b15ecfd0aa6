"""The first pass: the rows that are chosen, scored and cleaned, in shards that a run which was ended goes on after."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jingyin.model.errors import ConfigError
from jingyin.serve.archive.decisions import Chosen, choose
from jingyin.serve.archive.groups import HASHES, groups, signatures
from jingyin.serve.archive.inputs import Kind, Source, blocks, texts
from jingyin.serve.archive.readers import Block, share_read
from jingyin.serve.archive.shards import Journal, Progress, Rejects, State
from jingyin.serve.archive.workers import Workers
from jingyin.serve.archive.writers import aside, writer

# When a message was sent, however a column holds it.


TIME = pa.timestamp("us")
"""Times as they are kept: as written, without a zone; those with a zone in UTC."""

_MILLISECONDS = 100_000_000_000  # numbers from here on count milliseconds since 1970, lower ones seconds
_EARLIEST, _LATEST = datetime(1970, 1, 1), datetime(2100, 1, 1)  # other times are none of a message


def check_time(kind: pa.DataType, column: str, form: str | None) -> None:
    """Raise ConfigError when a column can't hold times, or a form is given that would not be used."""
    if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise ConfigError(
            f"column {column!r} is {kind}, wanted times: text, timestamps, dates or seconds; name another"
        )
    if form and not _is_text(kind):
        raise ConfigError(f"column {column!r} is {kind}, which needs no time format; leave --time-format out")


def read_times(column: pa.Array, form: str | None) -> pa.Array:
    """Return times of type TIME, null where a value is missing or no time.

    Text is ISO 8601, or of `form` (strptime). Integers are seconds, or milliseconds, since 1970.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        return _each(column, _from_number)
    if not _is_text(column.type):
        return _likely(column.cast(TIME, safe=False))
    if form is None:
        try:
            return _likely(column.cast(TIME))
        except pa.ArrowInvalid:  # one value is enough: look at each
            return _each(column, _from_iso)
    return _each(column, lambda value: _utc(datetime.strptime(value, form)))


def _likely(times: pa.Array) -> pa.Array:
    there = pc.and_(pc.greater_equal(times, _EARLIEST), pc.less(times, _LATEST))
    return pc.if_else(there, times, pa.scalar(None, TIME))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))


def _each(column: pa.Array, read: Callable[..., datetime]) -> pa.Array:
    """Read each different value once: times of one second repeat."""
    coded = pc.dictionary_encode(column)
    found = [_or_none(value, read) for value in coded.dictionary.to_pylist()]
    return pa.array(found, TIME).take(coded.indices)


def _or_none(value: object, read: Callable[..., datetime]) -> datetime | None:
    try:
        found = read(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return found if _EARLIEST <= found < _LATEST else None


def _from_iso(value: str) -> datetime:
    return _utc(datetime.fromisoformat(value.strip()))


def _from_number(value: int) -> datetime:
    seconds = value / 1000 if value >= _MILLISECONDS else value
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time


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


# Rows, distinct texts and campaigns as arrays, over the shards of the first pass.
#
# Distinct texts are numbered by their keys, so neither the order of the input nor its cut into files changes a group or
# its id, which is the key of its commonest text. A row takes 12 bytes here, a distinct text 220, mostly its signature.


_BATCH = 1 << 14


@dataclass(frozen=True)
class Members:
    """n rows, d distinct texts, c campaigns; the campaigns by size, largest first.

    `campaigns` (n,) and `campaign_of_text` (d,) count campaigns, -1 for none; `first` (d,) is the row in which a text
    is first, `counts` (d,) its rows, `keys` (d,) its key; `ids` name the campaigns.
    """

    campaigns: NDArray[np.int32]
    campaign_of_text: NDArray[np.int32]
    first: NDArray[np.int64]
    counts: NDArray[np.int64]
    keys: NDArray[np.uint64]
    ids: list[str]


def find_members(parts: Sequence[Path], min_rows: int) -> Members:
    """Group the rows of all shards; what has fewer than `min_rows` alike is no campaign."""
    keys, first, text, counts = np.unique(
        read_column(parts, "key").to_numpy(), return_index=True, return_inverse=True, return_counts=True
    )
    text = text.astype(np.int32)
    stands = groups(_signed(parts, first), counts)
    rows = np.bincount(stands, counts, minlength=len(stands)).astype(np.int64)
    kept = np.flatnonzero(rows >= min_rows)
    kept = kept[np.lexsort((kept, -rows[kept]))]
    numbers = np.full(len(stands), -1, np.int32)
    numbers[kept] = np.arange(len(kept), dtype=np.int32)
    of_text = numbers[stands]
    return Members(of_text[text], of_text, first, counts, keys, [f"{key:016x}" for key in keys[kept].tolist()])


def _signed(parts: Sequence[Path], first: NDArray[np.int64]) -> NDArray[np.uint16]:
    order = np.argsort(first)
    found = np.empty((len(first), HASHES), np.uint16)
    for part, batch in pick(parts, first[order], ["clean"]):
        found[order[part]] = signatures(batch.column("clean").to_pylist())
    return found


def read_column(parts: Sequence[Path], name: str) -> pa.ChunkedArray:
    """Return one column of all shards."""
    return pa.concat_tables(pq.read_table(part, columns=[name]) for part in parts)[name]


def pick(parts: Sequence[Path], rows: NDArray[np.int64], columns: list[str]) -> Iterator[tuple[slice, pa.RecordBatch]]:
    """Yield the `rows` (ascending, counted through all shards) in batches, each with its place among `rows`."""
    start = 0
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(_BATCH, columns=columns):
                low, high = np.searchsorted(rows, (start, start + batch.num_rows))
                if low < high:
                    yield slice(low, high), batch.take(pa.array(rows[low:high] - start))
                start += batch.num_rows
