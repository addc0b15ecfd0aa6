"""Runs training stages one after another: recipes in, run folders with bundles out."""

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState

from jingyin.model.bundle import read_bundle
from jingyin.model.errors import ConfigError
from jingyin.train.align import run_align
from jingyin.train.bundle import make_bundle, remake_bundle
from jingyin.train.classify import run_classify
from jingyin.train.corpus.build import build
from jingyin.train.corpus.store import SPLITS
from jingyin.train.data import read_split
from jingyin.train.recipe import Align, Calibrate, Classify, Recipe, read_recipe

_VERSIONS = ("torch", "transformers", "datasets", "tokenizers", "jieba", "numpy", "jingyin")


def train(recipes: Sequence[Path], out: Path, *, resume: bool = False) -> Path:
    """Run the stages of `recipes` in order, each in `out`/<name of its recipe>; returns the last run folder.

    A run folder holds recipe.yaml, run.json (seed, versions, data fingerprints, seconds), metrics.json, TensorBoard's
    events, checkpoints, the network, and the bundle. With `resume` finished stages are kept and a broken one goes on
    from its last checkpoint; without it, a stage's old run folder is replaced. Runs in several processes too
    (torchrun --nproc-per-node N --no-python jingyin train RECIPE...); the first of them does all the writing.
    """
    stages = [(path, read_recipe(path)) for path in recipes]  # all recipes are read before any work starts
    PartialState(cpu=not torch.cuda.is_available())
    for path, recipe in stages:
        _run_stage(path, recipe, out, resume)
    return out / stages[-1][0].stem


def _run_stage(path: Path, recipe: Recipe, out: Path, resume: bool) -> None:
    folder, processes = out / path.stem, PartialState()
    if resume and _is_finished(folder, path, recipe):
        processes.print(f"{path.stem}: finished before, kept")
        return
    started = time.monotonic()
    with processes.main_process_first():  # the others find what the first one made
        if processes.is_main_process:
            _open(folder, path, resume)
        corpus = _corpus(path, recipe.corpus, out)
    metrics = _work(recipe, corpus, folder, out, resume)
    if processes.is_main_process:
        _close(folder, path, recipe, corpus, metrics, started)
    processes.wait_for_everyone()  # the next stage reads what this one left


def _work(recipe: Recipe, corpus: Path, folder: Path, out: Path, resume: bool) -> dict[str, float]:
    """Do what the recipe says, but for its bundle; returns validation metrics."""
    if isinstance(recipe, Calibrate):
        return {}
    encoder = _stage_folder(recipe.encoder, out, "encoder")
    if isinstance(recipe, Align):
        return run_align(recipe, encoder, corpus, folder, resume)
    teacher = Path(_stage_folder(recipe.teacher, out, "")) if recipe.teacher else None
    return run_classify(recipe, encoder, teacher, corpus, folder, resume)


def _is_finished(folder: Path, path: Path, recipe: Recipe) -> bool:
    """Whether a stage is done; raises ConfigError when its run folder comes from another recipe."""
    begun = folder / "recipe.yaml"
    if begun.is_file() and read_recipe(begun) != recipe:
        raise ConfigError(
            f"{path} is not the recipe that {folder} was begun with (its recipe.yaml); train without --resume, or name "
            "another --out"
        )
    return (folder / "metrics.json").is_file()


def _open(folder: Path, path: Path, resume: bool) -> None:
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / "recipe.yaml")


def _close(folder: Path, path: Path, recipe: Recipe, corpus: Path, metrics: dict[str, float], started: float) -> None:
    facts = _facts(path, recipe, corpus)
    if isinstance(recipe, Calibrate):
        bundle = _stage_folder(recipe.bundle, folder.parent, "bundle") if recipe.bundle else None
        remake_bundle(recipe, Path(bundle) if bundle else None, corpus, folder, facts)
    elif isinstance(recipe, Classify) and recipe.bundle:
        make_bundle(recipe, corpus, folder, {**facts, "metrics": metrics})
    facts["seconds"] = round(time.monotonic() - started, 1)
    (folder / "run.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    # The metrics are written last: their presence says that the stage is finished.
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")


def _corpus(path: Path, corpus: str, out: Path) -> Path:
    """Return the corpus folder; a corpus recipe is built once for each of its contents and shared by the stages."""
    named = Path(corpus) if Path(corpus).exists() else path.parent / corpus
    if named.is_dir():
        return named
    if not named.is_file():
        raise ConfigError(f"recipe {path}: corpus {corpus!r} is neither a folder nor a recipe next to it")
    folder = out / f"corpus-{hashlib.sha256(named.read_bytes()).hexdigest()[:8]}"
    if not (folder / "train.parquet").is_file():
        build(named, folder)
    return folder


def _stage_folder(name: str, out: Path, part: str) -> str:
    """Return the folder of a "stage:NAME", or `name` itself; raises ConfigError when that stage has not run."""
    if not name.startswith("stage:"):
        return name
    folder = out / name.removeprefix("stage:") / part
    if not folder.is_dir():
        raise ConfigError(
            f"{name} has left nothing in {out}; run its recipe first, or in the same command before this one"
        )
    return str(folder)


def _facts(path: Path, recipe: Recipe, corpus: Path) -> dict[str, object]:
    sources = Counter(read_split(corpus, "train").sources)
    fingerprints = {s: hashlib.sha256((corpus / f"{s}.parquet").read_bytes()).hexdigest() for s in SPLITS}
    return {
        "recipe": recipe.model_dump(),
        "command": f"jingyin train configs/{path.name}",
        "seed": recipe.seed,
        "processes": PartialState().num_processes,
        "data_sha256": fingerprints,
        "training_rows": dict(sources.most_common()),
        **_teacher(recipe),
        "versions": {name: version(name) for name in _VERSIONS},
    }


def _teacher(recipe: Recipe) -> dict[str, str]:
    """Return the id of the bundle that taught, if one did: what lies at its path may change."""
    named = recipe.teacher if isinstance(recipe, Classify) else None
    if named is None or not (Path(named) / "manifest.json").is_file():
        return {}
    return {"teacher": f"bundle {read_bundle(Path(named)).manifest.id}"}
