"""What makes a run resumable: a manifest, a journal of finished shards, a lock.

    _lock            held by the run that writes here
    _manifest.json   everything that changes results; another value of any of it is refused
    _journal.jsonl   one line a finished shard: where it ends in the input, and all counts up to there
    _rejects.csv     rows that could not be scored;  _ranked  rows worth a look; both grow with the shards
    _report.json     the end of a finished run

Order of a commit: side files, the shard's rename, the journal's line, each on disk before the next. So a line in the
journal means that everything before it is there, and a shard without a line is written again, to the same bytes.
"""

import csv
import fcntl
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from jingyin.model.errors import ConfigError, InputError, JingyinError
from jingyin.serve.archive.changes import FAMILY, Changes, Ranked, moved_rows, older_labels
from jingyin.serve.archive.columns import NAMES
from jingyin.serve.archive.inputs import kind_of, suffix_of, texts
from jingyin.serve.archive.readers import Block, share_read
from jingyin.serve.archive.writers import aside, sync_folder, writer

SIDE_FILES = ("_rejects.csv", "_ranked")


@dataclass
class State:
    """A finished shard, and how far the run had come with it; of a run that begins, nothing.

    `position` is the number of an input file and a position in it; `rows`, `rejects` by reason and `changes` count from
    the run's begin. `lengths` are those of the side files in bytes, `runs` the ends of this shard's runs in _ranked.
    """

    file: str = ""
    size: int = 0
    position: Sequence[int] = (0, 0, 0, 0)
    share: float = 0.0
    rows: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    runs: list[int] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)


class Journal:
    """The journal of an output folder that this process has locked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.states = [State(**json.loads(line)) for line in self._whole_lines()]
        self.resumed = len(self.states)

    @property
    def last(self) -> State:
        """The last finished shard."""
        return self.states[-1] if self.states else State()

    def _whole_lines(self) -> list[bytes]:
        path = self.folder / "_journal.jsonl"
        # Of bytes: str.splitlines would also break at U+2028, which labels may hold. A kill can tear the last line.
        return path.read_bytes().split(b"\n")[:-1] if path.exists() else []

    def rewind(self) -> None:
        """Check finished shards, and cut the journal and the side files back to them.

        Raises InputError when a finished shard is gone or has another size.
        """
        for state in self.states:
            path = self.folder / state.file
            if not path.is_file() or path.stat().st_size != state.size:
                raise InputError(f"{path} is missing or was changed since it was written; run again with --fresh")
        with self._open("_journal.jsonl") as file:
            file.truncate(sum(len(_line(state)) for state in self.states))
        for name in SIDE_FILES:
            with self._open(name) as file:
                file.truncate(self.last.lengths.get(name, 0))

    def append(self, name: str, data: bytes) -> int:
        """Add to a side file, on disk, and return its length."""
        with self._open(name) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def commit(self, state: State) -> None:
        """Add a finished shard."""
        self.append("_journal.jsonl", _line(state))
        self.states.append(state)

    def _open(self, name: str) -> BinaryIO:
        return (self.folder / name).open("ab")

    def report(self) -> dict[str, Any] | None:
        """Return the content of _report.json, None when the run is not finished."""
        path = self.folder / "_report.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _line(state: State) -> bytes:
    return json.dumps(asdict(state), ensure_ascii=False).encode() + b"\n"


@contextmanager
def open_journal(folder: Path, fingerprint: Mapping[str, Any], *, fresh: bool) -> Iterator[Journal]:
    """Lock an output folder, made when missing, and open its journal.

    Raises JingyinError when another run holds the lock, InputError when the folder holds a run with another
    fingerprint, ConfigError when it holds something else. `fresh` removes an earlier run, and only that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "_lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JingyinError(f"another run writes to {folder}; wait for it or name another output") from None
        _claim(folder, fingerprint, fresh=fresh)
        yield Journal(folder)


def _claim(folder: Path, fingerprint: Mapping[str, Any], *, fresh: bool) -> None:
    manifest = folder / "_manifest.json"
    if not manifest.exists():
        _refuse_strangers(folder)
    elif fresh:
        for file in [
            *folder.glob("_*"),
            *folder.glob("part-*"),
        ]:  # parts last: a kill in between must not look finished
            if file.name not in ("_lock", "_manifest.json"):
                file.unlink()
    elif changed := _changed(json.loads(manifest.read_text(encoding="utf-8")), fingerprint):
        raise InputError(f"{folder} holds a run with other {', '.join(changed)}; name another output, or replace that "
                         "run with --fresh")  # fmt: skip
    else:
        return
    write_json(manifest, fingerprint)


def _refuse_strangers(folder: Path) -> None:
    others = sorted(file.name for file in folder.iterdir() if file.name not in ("_lock", "__manifest.json.writing"))
    if others:
        raise ConfigError(
            f"output folder {folder} is not empty and holds no earlier run ({len(others)} other files); name a new one"
        )


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, whole or not at all."""
    with aside(path) as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")
    sync_folder(path.parent)


# Rows that can't be scored: counted by reason, and listed in _rejects.csv.


class Rejects:
    """The rejects of a shard; `counts`, by reason, begin from those of the shards before."""

    def __init__(self, journal: Journal) -> None:
        self.counts = dict(journal.last.rejects)
        self._journal = journal
        self._listed = io.StringIO()
        if not journal.states:
            self._list(("input", "row", "reason"))

    def add(self, file: Path, row: int, reason: str) -> None:
        """Count a row of an input file."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self._list((file, row, reason))

    def write(self) -> int:
        """Add the shard's list to _rejects.csv, on disk, and return the length of that in bytes."""
        return self._journal.append("_rejects.csv", self._listed.getvalue().encode("utf-8", "surrogateescape"))

    def _list(self, fields: Iterable[object]) -> None:
        csv.writer(self._listed, lineterminator="\n").writerow(fields)


# One shard: its rows, and what they add to the counts and side files.


class Scored(NamedTuple):
    """A block with its verdict columns; `source` is the number of its file."""

    source: int
    block: Block
    verdicts: Sequence[pa.Array]


@dataclass(frozen=True)
class Job:
    """What stays the same through a run.

    `sizes` are the bytes of the input files, `ranks` gathers the rows to review for Label Studio.
    """

    out: Path
    files: Sequence[Path]
    sizes: Sequence[int]
    schema: pa.Schema
    text_column: str
    compare: str | None
    ranks: bool
    strict: bool

    @property
    def against(self) -> str:
        """The verdict column to compare with: the action for an older action, else the label."""
        return "jingyin_action" if self.compare == "jingyin_action" else "jingyin_label"


class Shard:
    """Counts and side files while a shard is written; begins from the state after the one before."""

    def __init__(self, job: Job, journal: Journal) -> None:
        last = journal.last
        self._job = job
        self._journal = journal
        self._rejects = Rejects(journal)
        self._ranked = Ranked()
        self._runs: list[int] = []
        self.rows = last.rows
        self.changes = Changes.from_dict(last.changes)

    def write(self, items: Iterable[Scored]) -> None:
        """Write the rows and commit them."""
        path = self._job.out / f"part-{len(self._journal.states):05d}{suffix_of(self._job.out)}"
        with aside(path) as file:
            with writer(kind_of(path), file, self._job.schema) as sink:
                for item in items:
                    sink.write(self._add(item))
            lengths = self._side_files()
        self._journal.commit(
            State(
                file=path.name,
                size=path.stat().st_size,
                position=(item.source, *item.block.next),
                share=share_read(self._job.sizes, item.source, item.block),
                rows=self.rows,
                rejects=self._rejects.counts,
                lengths=lengths,
                runs=self._runs,
                changes=self.changes.as_dict(),
            )
        )

    def _add(self, item: Scored) -> pa.RecordBatch:
        """Count a block and return its rows as they are written."""
        for row, reason in item.block.rejects:
            self._reject(self._job.files[item.source], row, reason)
        batch = item.block.batch
        if self._job.compare or self._job.ranks:
            self._rank(item)
        self.rows += batch.num_rows
        kept = [column for name, column in zip(batch.schema.names, batch.columns, strict=True) if name not in NAMES]
        return pa.record_batch([*kept, *item.verdicts], self._job.schema)

    def _reject(self, file: Path, row: int, reason: str) -> None:
        if self._job.strict:
            raise InputError(f"row {row} of {file} can't be scored: {reason}; mend it, or run without --strict to have "
                             "such rows listed and left out")  # fmt: skip
        self._rejects.add(file, row, reason)

    def _rank(self, item: Scored) -> None:
        job, batch = self._job, item.block.batch
        verdicts = dict(zip(NAMES, item.verdicts, strict=True))
        found: dict[str, pa.Array] = {}
        if job.compare:
            now = verdicts[job.against]
            found["before"] = older_labels(batch.column(job.compare))
            if FAMILY in batch.schema.names:
                found[FAMILY] = batch.column(FAMILY)
            self.changes.add(found["before"], now, found.get(FAMILY))
            rows = moved_rows(found["before"], now)
        else:
            rows = pc.indices_nonzero(pc.equal(verdicts["jingyin_action"], "review")).to_pylist()
        found["text"] = texts(item.block, job.text_column)
        for row in rows:
            shown = {name: column[row].as_py() for name, column in found.items()}
            self._ranked.add(self.rows + row, self._place(item, row) | _verdict(verdicts, row) | shown)
        if self._ranked.full:
            self._end_run()

    def _place(self, item: Scored, row: int) -> dict[str, object]:
        return {"input": str(self._job.files[item.source]), "row": item.block.numbers[row]}

    def _end_run(self) -> None:
        self._runs.append(self._journal.append("_ranked", self._ranked.run()))

    def _side_files(self) -> dict[str, int]:
        if self._ranked.held:
            self._end_run()
        ranked = self._runs[-1] if self._runs else self._journal.last.lengths.get("_ranked", 0)
        return {"_rejects.csv": self._rejects.write(), "_ranked": ranked}


def _verdict(verdicts: dict[str, pa.Array], row: int) -> dict[str, Any]:
    label = verdicts["jingyin_label"][row].as_py()
    return {
        "risk": verdicts["jingyin_risk"][row].as_py(),
        "label": label,
        "sure": verdicts["jingyin_probabilities"][row].as_py()[label],
        "action": verdicts["jingyin_action"][row].as_py(),
        "reasons": verdicts["jingyin_reasons"][row].as_py(),
    }


# A line on the terminal: how far, how fast, how long still.


class Progress:
    """Shows rows, share, rate and time left on standard error; nothing when that is no terminal."""

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
            line = self._line(rows, share, now - self._begun)
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201

    def _line(self, rows: int, share: float, seconds: float) -> str:
        rate = (rows - self._start[0]) / max(seconds, 1e-9)
        done = share - self._start[1]
        left = clock(seconds * (1 - share) / done) if done > 0 else "?"
        return f"{rows:,} rows  {share:.1%}  {rate:,.0f} rows/s  {left} left"

    def close(self) -> None:
        """Clear the line."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
