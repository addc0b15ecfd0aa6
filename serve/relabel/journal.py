"""What makes a run resumable: a manifest, a journal of finished shards, a lock.

    _lock            held by the run that writes here
    _manifest.json   everything that changes results; another value of any of it is refused
    _journal.jsonl   one line a finished shard: where it ends in the input, and all counts up to there
    _rejects.csv     rows that could not be scored;  _ranked  rows worth a look; both grow with the shards
    _report.json     the end of a finished run

Order of a commit: side files, the shard's rename, the journal's line, each on disk before the next. So a line in the
journal means that everything before it is there, and a shard without a line is written again, to the same bytes.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from jingyin.model.errors import ConfigError, InputError, JingyinError
from jingyin.serve.relabel.writing import aside, sync_folder

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
