"""The frame of an archive job: `relabel`, `campaigns` and `mine` score input files into the parts of a run.

A job opens its inputs and its bundle, locks the run's folder, and lets workers fill the parts; the same call resumes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jingyin.model.bundle import Bundle, default_path, read_bundle
from jingyin.model.errors import InputError
from jingyin.model.files import Run
from jingyin.serve.archive.blocks import InputFile, ReadOptions
from jingyin.serve.archive.readers import find, fingerprint, open_sources
from jingyin.serve.archive.shards import DONE, ScoredBlock, Shards, check_output, explain_disk_errors
from jingyin.serve.archive.workers import Workers, system_memory, workers

Score = Callable[[Workers, int, int], Iterator[ScoredBlock]]
"""Yields the scored blocks after so many rows of an input: (workers, number of the input, rows read of it)."""


@dataclass(frozen=True)
class Job:
    """Input files, as they were when they were opened, the bundle that scores them, and the folder of the run."""

    folder: Path
    files: list[Path]
    sources: list[InputFile]
    inputs: list[list[str | int]]
    bundle: Bundle

    @classmethod
    def open(
        cls, inputs: Iterable[str | Path], folder: Path, how: ReadOptions, bundle: str | Path | None,
        *outputs: Path | None,
    ) -> "Job":  # fmt: skip
        """Open files, folders and patterns, and a bundle, by default the package's.

        No input may be, hold or lie in `folder` or one of the other `outputs`. Raises as `find`, `open_sources` and
        `read_bundle` do.
        """
        check_output(folder)
        files = find(inputs, folder, *outputs)
        loaded = read_bundle(Path(bundle) if bundle is not None else default_path())
        return cls(folder, files, open_sources(files, how), fingerprint(files), loaded)

    @contextmanager
    def run(self, facts: Mapping[str, Any], *packages: str, fresh: bool) -> Iterator[Run]:
        """Lock the run's folder; its result depends on `facts`, inputs, bundle, and the versions of `packages`."""
        begun = {
            "inputs": self.inputs, "bundle": self.bundle.manifest.id, **facts,
            "versions": {name: version(name) for name in ("jingyin", *packages)},
        }  # fmt: skip
        opened = Run.open(self.folder, begun, done=DONE, fresh=fresh)
        with explain_disk_errors(self.folder), system_memory(), opened as run:
            yield run

    def write(
        self, shards: Shards, score: Score, limit: Callable[[int], int], *, processes: int | None, progress: bool
    ) -> None:
        """Write the rest of the parts, as `Shards.write`; raises InputError if an input was changed meanwhile."""
        with workers(processes, sum(source.rows for source in self.sources), self.bundle) as pool:
            shards.write(partial(score, pool), limit, progress=progress)
        if fingerprint(self.files) != self.inputs:
            raise InputError("an input was changed while it was read; run again with --fresh")
        shards.finish()
