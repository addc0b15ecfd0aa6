"""Provenance of a result: the command as given, versions, and hashes of the inputs."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Generic, TypeVar

from jingyin.model.bundle import read_bundle
from jingyin.model.errors import ConfigError
from jingyin.model.files import file_sha256
from jingyin.train.bundles import bundle_folder, is_bundle
from jingyin.train.saved import trained_weights

_VERSIONS = (
    "torch", "transformers", "accelerate", "datasets", "tokenizers", "jieba", "numpy", "scipy", "scikit-learn",
    "onnxruntime", "jingyin",
)  # fmt: skip


def command() -> str:
    """Return the command as it was given, quoted for a shell."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Return the versions that a training run depends on."""
    return {name: version(name) for name in _VERSIONS}


METRICS = "metrics.json"
"""File that marks the run folder of a finished stage."""

R = TypeVar("R")

StageResult = dict[str, float]
"""Validation metrics by name."""


@dataclass(frozen=True)
class StageContext(Generic[R]):
    """A stage's recipe, corpus folder, run folder, and the run folders' folder; `facts` go into its bundle."""

    recipe: R
    corpus: Path
    folder: Path
    out: Path
    facts: dict[str, object]


def run_of(name: str, out: Path) -> str:
    """Return the folder in `out` of a "stage:NAME", or `name` itself; raises ConfigError if that stage has not run."""
    if not name.startswith("stage:"):
        return name
    folder = out / name.removeprefix("stage:")
    if not (folder / METRICS).is_file():
        raise ConfigError(
            f"{name} has left nothing in {out}; run its recipe first, or in the same command before this one"
        )
    return str(folder)


def bundle_ids(sources: Mapping[str, str]) -> dict[str, str]:
    """Return the id of each bundle among `sources`, name -> place: the contents of a place may change."""
    return {name: read_bundle(bundle_folder(at)).manifest.id for name, at in sources.items() if is_bundle(at)}


def weights_sha256(sources: Mapping[str, str]) -> dict[str, str]:
    """Return the hash of the weights of each run folder among `sources`, name -> place."""
    files = {name: trained_weights(Path(at)) for name, at in sources.items()}
    return {name: file_sha256(file) for name, file in files.items() if file}
