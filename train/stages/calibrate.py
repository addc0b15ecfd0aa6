"""The calibrate stage: a bundle of networks that earlier stages trained, or of an existing bundle's, for a corpus."""

from pathlib import Path

from accelerate import PartialState

from jingyin.model.bundle import default_path
from jingyin.train.packing.pack import pack_runs, repack
from jingyin.train.recipes import Calibrate
from jingyin.train.stages.job import Job, StageResult, run_of


def run_calibrate(job: Job[Calibrate]) -> StageResult:
    """Leave a bundle in the run folder; returns its calibration error, and nothing in processes but the first."""
    recipe = job.recipe
    if not PartialState().is_main_process:
        return {}
    if recipe.networks:
        runs: dict[str, Path] = {name: Path(job.run_of(run)) for name, run in recipe.networks.items()}
        manifest = pack_runs(runs, recipe, job.corpus, job.folder, job.facts)
    else:
        manifest = repack(source_of(recipe, job.out), recipe, job.corpus, job.folder, job.facts)
    return {"ece": manifest.calibration.ece_after}


def source_of(recipe: Calibrate, out: Path) -> Path:
    """Return the folder of the bundle whose networks a recipe without `networks` takes; `out` holds the run folders."""
    if not recipe.bundle:
        return default_path()
    named = Path(run_of(recipe.bundle, out))
    return named / "bundle" if (named / "bundle").is_dir() else named
