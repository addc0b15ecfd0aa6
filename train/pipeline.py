"""Runs training stages one after another: recipes in, run folders out. What a stage does is in stages/."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch
from accelerate import PartialState

from jingyin.model.errors import ConfigError
from jingyin.train.corpus.build import build, source_key
from jingyin.train.corpus.store import SPLITS, fingerprint_of
from jingyin.train.recipes import Calibrate, Classify, Recipe, read_recipe
from jingyin.train.runs import Job, bundle_ids, command, file_sha256, run_of, versions, weights_sha256
from jingyin.train.stages import STAGES, source_of

_RECIPE = "recipe.yaml"  # its presence says that a folder is a run folder
_BEGUN = "begun.json"  # what else a run was begun with


def train(recipes: Sequence[Path], out: Path, *, fresh: bool = False) -> Path:
    """Run the stages of `recipes` in order, each in `out`/<name of its recipe>; returns the last run folder.

    A run folder holds recipe.yaml, corpus.txt and begun.json (what it was begun with), run.json (command, seed,
    versions, hashes of recipes and data, seconds), metrics.json, TensorBoard's events, checkpoints, the network, and
    the bundle. Finished stages are kept and a broken one goes on from its last checkpoint; with `fresh` run folders
    that are there are replaced. Runs in several processes too (torchrun --nproc-per-node N --no-python jingyin train
    RECIPE...); the first of them does all the writing.

    Raises ConfigError for a folder that is no run folder, or was begun with another recipe, corpus or bundle, or with
    other weights of an earlier stage.
    """
    stages = [(path, read_recipe(path)) for path in recipes]  # all recipes are read before any work starts
    PartialState(cpu=not torch.cuda.is_available())
    provenance: dict[str, object] = {
        "command": command(),
        "recipes": {path.name: file_sha256(path) for path in recipes},
    }
    for path, recipe in stages:
        _run_stage(path, recipe, out, fresh, provenance)
    return out / stages[-1][0].stem


def _run_stage(path: Path, recipe: Recipe, out: Path, fresh: bool, provenance: dict[str, object]) -> None:
    folder, processes = out / path.stem, PartialState()
    started = time.monotonic()
    with processes.main_process_first():  # the others find what the first one made
        corpus = _corpus(path, recipe.corpus, out)
        sources = _sources(recipe, out)
        begun = {f"corpus {corpus.name}": fingerprint_of(corpus), **bundle_ids(sources), **weights_sha256(sources)}
        kept = not fresh and _is_finished(folder, path, recipe, corpus, begun)
        if processes.is_main_process and not kept:
            _open(folder, path, corpus, begun, fresh)
    if kept:
        processes.print(f"{path.stem}: finished before, kept")
        return
    facts = {**provenance, **_facts(recipe, corpus, sources)}
    metrics = STAGES[recipe.stage](Job(recipe, corpus, folder, out, facts))
    if processes.is_main_process:
        _close(folder, {**facts, "seconds": round(time.monotonic() - started, 1)}, metrics)
    processes.wait_for_everyone()  # the next stage reads what this one left


def _is_finished(folder: Path, path: Path, recipe: Recipe, corpus: Path, begun: Mapping[str, str]) -> bool:
    """Whether a stage is done; raises ConfigError if its run folder is of another recipe, corpus, bundle or network."""
    if not (folder / _RECIPE).is_file():
        return False
    if read_recipe(folder / _RECIPE) != recipe:
        raise ConfigError(
            f"{path} is not the recipe that {folder} was begun with (its {_RECIPE}); "
            "replace it with --fresh, or name another --out"
        )
    named = (folder / "corpus.txt").read_text(encoding="utf-8").strip()
    if named != corpus.name:
        raise ConfigError(
            f"{folder} was begun with the corpus {named}, which is now {corpus.name}: "
            "its recipe or its messages changed; replace it with --fresh, or name another --out"
        )
    if (file := folder / _BEGUN).is_file():  # folders of before it was noted have none
        before = json.loads(file.read_text(encoding="utf-8"))
        if changed := sorted(name for name in {*before, *begun} if before.get(name) != begun.get(name)):
            raise ConfigError(
                f"{folder} was begun when something else was in {', '.join(changed)} (see its {_BEGUN}); "
                "replace it with --fresh, or name another --out"
            )
    return (folder / "metrics.json").is_file()


def _open(folder: Path, path: Path, corpus: Path, begun: Mapping[str, str], fresh: bool) -> None:
    """Begin or go on with a run folder; never touches a folder that holds anything else."""
    ours = (folder / _RECIPE).is_file()
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there and is no run folder; name another --out, or remove it yourself")
    if fresh and ours:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / _RECIPE)
    (folder / "corpus.txt").write_text(corpus.name + "\n", encoding="utf-8")
    (folder / _BEGUN).write_text(json.dumps(begun, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _close(folder: Path, facts: dict[str, object], metrics: dict[str, float]) -> None:
    (folder / "run.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for name in ("checkpoint", "checkpoint-before", "checkpoint-new"):
        shutil.rmtree(folder / name, ignore_errors=True)
    # The metrics are written last: their presence says that the stage is finished.
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")


def _corpus(path: Path, corpus: str, out: Path) -> Path:
    """Return the corpus folder; a corpus recipe is built once for what it is made of, and shared by the stages."""
    beside = path.parent / corpus
    named = beside if beside.exists() else Path(corpus)
    if named.is_dir():
        return named
    if not named.is_file():
        raise ConfigError(f"recipe {path}: corpus {corpus!r} is neither a folder nor a recipe next to it")
    folder = out / f"corpus-{source_key(named)[:12]}"
    if not (folder / "train.parquet").is_file():
        build(named, folder)
    return folder


def _facts(recipe: Recipe, corpus: Path, sources: Mapping[str, str]) -> dict[str, object]:
    rows = Counter(pq.read_table(corpus / "train.parquet", columns=["source"]).column("source").to_pylist())
    return {
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "processes": PartialState().num_processes,
        "data_sha256": {split: file_sha256(corpus / f"{split}.parquet") for split in SPLITS},
        "training_rows": dict(rows.most_common()),
        "bundles": bundle_ids(sources),
        "versions": versions(),
    }


def _sources(recipe: Recipe, out: Path) -> dict[str, str]:
    """Return where the bundles and runs that a recipe names are, by their names there; "bundle" is the package's."""
    if isinstance(recipe, Calibrate) and not recipe.networks:
        return {recipe.bundle or "bundle": str(source_of(recipe, out))}
    if isinstance(recipe, Calibrate):
        names = list((recipe.networks or {}).values())
    else:
        names = [recipe.encoder]
        if isinstance(recipe, Classify):
            names += [*recipe.teachers, *([recipe.traffic] if recipe.traffic else [])]
    return {name: run_of(name, out) for name in names}
