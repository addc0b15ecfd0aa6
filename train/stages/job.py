"""What every stage is given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from jingyin.model.bundle import read_bundle
from jingyin.model.errors import ConfigError
from jingyin.train.packing.dequantise import bundle_folder, is_bundle

R = TypeVar("R")

StageResult = dict[str, float]
"""Validation metrics by name."""


@dataclass(frozen=True)
class Job(Generic[R]):
    """A stage's recipe, the folder of its corpus, its run folder, and the run folders' folder; `facts` go into its bundle."""

    recipe: R
    corpus: Path
    folder: Path
    out: Path
    facts: dict[str, object]

    def run_of(self, name: str) -> str:
        """Return the run folder of a "stage:NAME", or `name` itself; raises ConfigError when that stage has not run."""
        if not name.startswith("stage:"):
            return name
        folder = self.out / name.removeprefix("stage:")
        if not (folder / "metrics.json").is_file():
            raise ConfigError(
                f"{name} has left nothing in {self.out}; run its recipe first, or in the same command before this one"
            )
        return str(folder)


def bundle_ids(names: list[str]) -> dict[str, str]:
    """Return the id of each bundle among `names`: what lies at a path may change."""
    return {name: read_bundle(bundle_folder(name)).manifest.id for name in names if is_bundle(name)}
