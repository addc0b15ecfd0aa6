"""Runs training stages one after another: recipes in, run folders with bundles out."""

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from jingyin.model.errors import ConfigError
from jingyin.train.align import run_align
from jingyin.train.bundle import make_bundle
from jingyin.train.classify import run_classify
from jingyin.train.corpus.build import build
from jingyin.train.corpus.store import SPLITS
from jingyin.train.data import read_split
from jingyin.train.recipe import Align, Classify, read_recipe

_VERSIONS = ("torch", "transformers", "datasets", "tokenizers", "jieba", "numpy", "jingyin")


def train(recipes: Sequence[Path], out: Path, *, resume: bool = False) -> Path:
    """Run the stages of `recipes` in order, each in `out`/<name of its recipe>; returns the last run folder.

    A run folder holds recipe.yaml, run.json (seed, versions, data fingerprints, seconds), metrics.json, TensorBoard's
    events, checkpoints, the network, and the bundle. With `resume` finished stages are kept and a broken one goes on
    from its last checkpoint; without it, a stage's old run folder is replaced.
    """
    stages = [(path, read_recipe(path)) for path in recipes]  # all recipes are read before any work starts
    for path, recipe in stages:
        _run_stage(path, recipe, out, resume)
    return out / stages[-1][0].stem


def _run_stage(path: Path, recipe: Align | Classify, out: Path, resume: bool) -> None:
    folder = out / path.stem
    if resume and (folder / "metrics.json").is_file():
        print(f"{path.stem}: finished before, kept")  # noqa: T201
        return
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / "recipe.yaml")
    started = time.monotonic()
    corpus = _corpus(path, recipe.corpus, out)
    encoder = _stage_folder(recipe.encoder, out, "encoder")
    if isinstance(recipe, Align):
        metrics = run_align(recipe, encoder, corpus, folder, resume)
    else:
        teacher = Path(_stage_folder(recipe.teacher, out, "")) if recipe.teacher else None
        metrics = run_classify(recipe, encoder, teacher, corpus, folder, resume)
    facts = _facts(path, recipe, corpus)
    if isinstance(recipe, Classify) and recipe.bundle:
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
        raise ConfigError(f"{name} has left nothing in {out}; run its recipe first, or in the same command before this one")
    return str(folder)


def _facts(path: Path, recipe: Align | Classify, corpus: Path) -> dict[str, object]:
    sources = Counter(read_split(corpus, "train").sources)
    fingerprints = {s: hashlib.sha256((corpus / f"{s}.parquet").read_bytes()).hexdigest() for s in SPLITS}
    return {
        "recipe": recipe.model_dump(),
        "command": f"jingyin train configs/{path.name}",
        "seed": recipe.seed,
        "data_sha256": fingerprints,
        "training_rows": dict(sources.most_common()),
        "versions": {name: version(name) for name in _VERSIONS},
    }
