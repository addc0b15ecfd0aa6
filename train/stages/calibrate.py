"""The calibrate stage: a bundle of the networks that earlier stages trained, or of an existing bundle's, for a corpus."""

from pathlib import Path

from jingyin.model.bundle import default_path
from jingyin.train.packing.pack import pack_runs, repack
from jingyin.train.recipes import Calibrate
from jingyin.train.stages.job import Job, StageResult


def run_calibrate(job: Job[Calibrate]) -> StageResult:
    """Leave a bundle in the run folder; returns its calibration error."""
    recipe = job.recipe
    if recipe.networks:
        runs: dict[str, Path] = {name: Path(job.run_of(run)) for name, run in recipe.networks.items()}
        manifest = pack_runs(runs, recipe, job.corpus, job.folder, job.facts)
    else:
        named = Path(job.run_of(recipe.bundle)) if recipe.bundle else default_path()
        bundle = named / "bundle" if (named / "bundle").is_dir() else named
        manifest = repack(bundle, recipe, job.corpus, job.folder, job.facts)
    return {"ece": manifest.calibration.ece_after}
