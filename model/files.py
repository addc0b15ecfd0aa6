"""Files and folders that are complete or absent, and runs that resume after an interruption.

    with atomic_file(path) as file: ...      an open binary file; `path` appears, or is replaced, at the end
    with atomic_folder(path) as draft: ...   the same for a folder; `draft` is an empty one to write to
    write_json(path, content)                one JSON file, whole
    file_sha256(path)                        its hash, read in pieces

    with Run.open(folder, begun, done="metrics.json", fresh=fresh) as run:
        if run.result is None:               not finished yet: do the rest, file by file
            ...
            run.finish(result)               writes metrics.json, last: its presence marks the run as finished

A run's folder holds `_begun.json`, the facts that it was begun with, and `_lock`. Opened again with the same facts it
resumes; other facts (the error names them), a folder with other contents and a second process are refused. Training
stages, fine-tuning, relabelling and campaigns are such runs; a corpus is an atomic folder.
"""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from typing import Any, BinaryIO

from jingyin.model.errors import ConfigError, InputError, JingyinError

BEGUN, LOCK = "_begun.json", "_lock"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that gets its name when the context ends without error; until then it is `_NAME.writing`."""
    draft = path.with_name(f"_{path.name}.writing")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write to, which replaces `path` when the context ends without an error."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    old = draft.with_name(f"{draft.name}-old")
    try:
        yield draft
        draft.chmod(0o755)
        if path.exists():  # a folder can't replace one that isn't empty
            path.rename(old)
        draft.replace(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
    _sync(path.parent)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_file(path) as file:
        file.write(json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Run:
    """The folder of a run, locked by this process; made by `Run.open`."""

    def __init__(self, folder: Path, done: str) -> None:
        self.folder = folder
        self._done = folder / done

    @classmethod
    @contextmanager
    def open(cls, folder: Path, begun: Mapping[str, Any], *, done: str, fresh: bool = False) -> "Iterator[Run]":
        """Lock the folder of a run, created if missing; `begun` are JSON facts that the result depends on.

        `done` names the file of the result. `fresh` empties the folder of an earlier run. Raises ConfigError for a
        folder with other contents, InputError for a run with other facts, JingyinError while another process has it.
        """
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file; name a folder")
        folder.mkdir(parents=True, exist_ok=True)
        strangers = {path.name for path in folder.iterdir()} - {LOCK, f"_{BEGUN}.writing"}
        if strangers and BEGUN not in strangers:
            raise ConfigError(
                f"{folder} is not empty and holds no earlier run ({len(strangers)} other files); name a new one"
            )
        with (folder / LOCK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise JingyinError(f"another run writes to {folder}; wait for it or name another output") from None
            run = cls(folder, done)
            run._begin(json.loads(json.dumps(begun)), fresh=fresh)
            yield run

    @property
    def result(self) -> Any:  # noqa: ANN401  whatever JSON was given to `finish`
        """The result passed to `finish`; None if the run is not finished."""
        return json.loads(self._done.read_text(encoding="utf-8")) if self._done.is_file() else None

    def finish(self, result: object) -> None:
        """Write the result as JSON, which marks the run as finished."""
        write_json(self._done, result)

    def _begin(self, begun: Mapping[str, Any], *, fresh: bool) -> None:
        file = self.folder / BEGUN
        if file.is_file() and fresh:
            self._done.unlink(missing_ok=True)  # first, so that an interrupted run doesn't look finished
            for path in self.folder.iterdir():
                if path.name not in (LOCK, BEGUN):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        elif file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
            if changed := [name for name in {**before, **begun} if before.get(name) != begun.get(name)]:
                raise InputError(f"{self.folder} holds a run with other {', '.join(changed)}; name another output, or "
                                 "replace that run with --fresh")  # fmt: skip
            return
        write_json(file, begun)
