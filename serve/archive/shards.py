"""The loop over shards: writes scored rows in parts, each finished once its marker exists.

    part-00000.parquet         rows; appears complete
    _part-00000.rejects.csv    input rows that could not be scored
    _part-00000.json           the marker, written last: counts, and where the next part begins in the input
    _rejects.csv               all rejects, written at the end of the run

A part without a marker is written again, to the same bytes.
"""

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from itertools import accumulate, chain
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import pyarrow as pa

from jingyin.model.errors import ConfigError, InputError, JingyinError
from jingyin.model.files import BEGUN, Run, atomic_file, write_json
from jingyin.serve.archive.blocks import Block, InputFile, Reject
from jingyin.serve.archive.writers import kind_of, writer

DONE = "_report.json"


class ScoredBlock(NamedTuple):
    """A block with its output rows; `source` is the number of its file.

    `rejects` are rows that are kept despite a fault; `reused` counts rows whose verdicts were known, `stale` those with
    verdicts of another bundle.
    """

    source: int
    block: Block
    rows: pa.RecordBatch
    rejects: Sequence[Reject] = ()
    reused: int = 0
    stale: int = 0


@dataclass(frozen=True)
class Shard:
    """A finished part: its file, counts of the rows in it by kind, and of those rejected by reason.

    The next part begins in input `source` after `row` rows; `share` of all input has been read, 0 to 1.
    """

    file: str
    size: int
    source: int
    row: int
    share: float
    counts: dict[str, int]
    rejects: dict[str, int]


class Shards:
    """The finished parts of a run, and the one way to add to them."""

    def __init__(self, run: Run, sources: Sequence[InputFile], suffix: str, schema: pa.Schema, *, strict: bool) -> None:
        self._out, self._sources, self._suffix, self._schema, self._strict = run.folder, sources, suffix, schema, strict
        self._starts = [0, *accumulate(source.path.stat().st_size for source in sources)]
        self.done: list[Shard] = []
        while (marker := self._marker(len(self.done), "json")).is_file():
            self.done.append(Shard(**json.loads(marker.read_text(encoding="utf-8"))))
            path = self.parts[-1]
            if not path.is_file() or path.stat().st_size != self.done[-1].size:
                raise InputError(f"{path} is missing or was changed since it was written; run again with --fresh")
        self.resumed = len(self.done)
        if strict and self.rejects:
            raise InputError(f"{sum(self.rejects.values())} rows were rejected before this run was resumed with "
                             "--strict; see the rejects in the output")  # fmt: skip

    @property
    def parts(self) -> list[Path]:
        """The files of the finished parts."""
        return [self._out / shard.file for shard in self.done]

    def total(self, kind: str) -> int:
        """Return how many rows there are of a kind: "rows", "replaced", "reused" or "stale" (see ScoredBlock)."""
        return sum(shard.counts[kind] for shard in self.done)

    @property
    def rejects(self) -> dict[str, int]:
        """Rejects by reason."""
        return dict(sorted(sum((Counter(shard.rejects) for shard in self.done), Counter()).items()))

    def write(
        self, score: Callable[[int, int], Iterator[ScoredBlock]], limit: Callable[[int], int], *, progress: bool
    ) -> None:
        """Write the rest of the input; `score` yields blocks starting at (input, rows read of it).

        A part ends with the block that reaches `limit` (number of the part -> rows), so its end depends only on where
        it begins.
        """
        source, row, share = (
            (self.done[-1].source, self.done[-1].row, self.done[-1].share) if self.done else (0, 0, 0.0)
        )
        stream, bar = score(source, row), ProgressLine(self.total("rows"), share, shown=progress)
        for first in stream:
            self._write(chain([first], stream), limit(len(self.done)), bar)
        bar.close()

    def _write(self, stream: Iterator[ScoredBlock], limit: int, bar: "ProgressLine") -> None:
        number, earlier_rows = len(self.done), self.total("rows")
        path = self._out / f"part-{number:05d}{self._suffix}"
        rejects: Counter[str] = Counter()
        counts = dict.fromkeys(("rows", "replaced", "reused", "stale"), 0)
        with (
            atomic_file(self._marker(number, "rejects.csv")) as listed,
            atomic_file(path) as file,
            writer(kind_of(path), file, self._schema) as sink,
        ):
            lines = TextIOWrapper(listed, "utf-8", "backslashreplace", newline="", write_through=True)
            table = csv.writer(lines, lineterminator="\n")
            quoted = csv.writer(lines, lineterminator="\n", quoting=csv.QUOTE_ALL)
            rows_read = 0
            for item in stream:
                source, block = self._sources[item.source].path, item.block
                for reject in sorted([*block.rejects, *item.rejects]):
                    if self._strict:
                        raise InputError(f"row {reject.row} of {source} can't be scored: {reject.reason}; mend it, or "
                                         "run without --strict to have such rows listed and left out")  # fmt: skip
                    rejects[reject.reason] += 1
                    # Python 3.11 doesn't quote a carriage return, which would end the line for readers.
                    (quoted if "\r" in reject.id + reject.line else table).writerow([source, *reject])
                sink.write(item.rows)
                added = (len(block.numbers), int((block.replaced > 0).sum()), item.reused, item.stale)
                counts = {kind: counts[kind] + more for kind, more in zip(counts, added, strict=True)}
                start, end = self._starts[item.source : item.source + 2]
                share = (start + block.share * (end - start)) / self._starts[-1]
                bar.show(earlier_rows + counts["rows"], share)
                rows_read += len(block.numbers) + len(block.rejects)
                if rows_read >= limit:
                    break
            lines.detach()
        shard = Shard(path.name, path.stat().st_size, item.source, block.next, share, counts, dict(rejects))
        write_json(self._marker(number, "json"), asdict(shard))
        self.done.append(shard)

    def _marker(self, number: int, kind: str) -> Path:
        return self._out / f"_part-{number:05d}.{kind}"

    def finish(self) -> None:
        """Gather the rejects of all parts in _rejects.csv."""
        with atomic_file(self._out / "_rejects.csv") as file:
            file.write(b"input,row,reason,id,line\n")
            for number in range(len(self.done)):
                file.write(self._marker(number, "rejects.csv").read_bytes())


def sweep(out: Path, *patterns: str) -> None:
    """Remove files that are no longer needed, once the run is finished."""
    for pattern in patterns:
        for file in out.glob(pattern):
            file.unlink(missing_ok=True)


def check_finished(folder: Path) -> None:
    """Raise InputError if a folder holds a run that isn't finished: rows would be missing."""
    if (folder / BEGUN).is_file() and not (folder / DONE).is_file():
        raise InputError(f"{folder} holds a run that isn't finished; repeat its command to finish it")


def check_output(out: Path) -> None:
    """Raise ConfigError if the folder of a run is a file."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"output {out} is a file; a folder is wanted")


def check_tasks(tasks: Path | None, out: Path) -> None:
    """Raise ConfigError if the file for Label Studio can't be written, or would lie in the folder `out`."""
    if tasks and (not tasks.resolve().parent.is_dir() or out.resolve() in tasks.resolve().parents):
        raise ConfigError(f"the file for Label Studio, {tasks}, must lie in a folder that exists, not in the output")
    if tasks and tasks.is_dir():
        raise ConfigError(f"{tasks} is a folder; name a file for Label Studio")


@contextmanager
def explain_disk_errors(what: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission and the like into an error that says how to resume."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise JingyinError(
            f"{what} can't be written: {why}; mend that and run the same command again: it resumes"
        ) from None


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 row, 2,000 rows."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def reject_lines(rejects: Mapping[str, int], replaced: int, out: Path) -> Iterable[str]:
    """Yield the lines of a report on rows that were rejected or repaired."""
    for reason, count in sorted(rejects.items()):
        yield f"{counted(count, 'row')} rejected: {reason}; see {out / '_rejects.csv'}"
    if replaced:
        rows = counted(replaced, "row")
        yield f"{rows} with bytes that aren't text, replaced by U+FFFD; --errors strict rejects them"


# A line on the terminal: progress, rate and time left.


class ProgressLine:
    """Shows rows, share, rate and time left on standard error, if that is a terminal."""

    def __init__(self, rows: int, share: float, *, shown: bool) -> None:
        self._begun = monotonic()
        self._start = rows, share
        self._shown = shown and sys.stderr.isatty()
        self._due = 0.0

    def show(self, rows: int, share: float) -> None:
        """Show the state, at most four times a second; `share` of the input, 0 to 1, has been read."""
        now = monotonic()
        if self._shown and now >= self._due:
            self._due = now + 0.25
            seconds, done = now - self._begun, share - self._start[1]
            rate = (rows - self._start[0]) / max(seconds, 1e-9)
            left = f"{round(seconds * (1 - share) / done / 60)} min" if done > 0 else "?"
            line = f"{rows:,} rows  {share:.1%}  {rate:,.0f} rows/s  {left} left"
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201

    def close(self) -> None:
        """Clear the line."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201
