"""Runs training stages one after another: recipes in, run folders out. The stages are in stages.py."""

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import PartialState

from jingyin.model.bundle import read_bundle
from jingyin.model.errors import ConfigError, InputError
from jingyin.model.files import Run, file_sha256, write_json
from jingyin.model.labels import BENIGN, FLAGGED
from jingyin.train.bundles import bundle_folder, is_bundle, refuse_other_labels
from jingyin.train.corpus.build import build, source_key
from jingyin.train.corpus.store import SPLITS, fingerprint_of, load_recipe, read_table
from jingyin.train.data import split_file
from jingyin.train.recipes import Calibrate, Classify, Recipe, read_recipe
from jingyin.train.runs import METRICS, StageContext, bundle_ids, command, run_of, versions, weights_sha256
from jingyin.train.saved import is_classifier
from jingyin.train.stages import STAGES, source_of


def train(recipes: Sequence[Path], out: Path, *, fresh: bool = False) -> Path:
    """Run the stages of `recipes` in order, each in `out`/<name of its recipe>; returns the last run folder.

    A run folder (model/files.py) also holds run.json (command, seed, versions, hashes of recipes and data, seconds),
    metrics.json, TensorBoard's events, checkpoints, the network, and the bundle. Finished stages are kept and a broken
    one resumes from its last checkpoint; with `fresh` earlier runs are replaced. Runs in several processes too
    (torchrun --nproc-per-node N --no-python jingyin train RECIPE...); the first of them does all the writing.

    Raises ConfigError for a folder of something else and for recipes that can't run, InputError for an empty split and
    for a run that was begun with another recipe, corpus or bundle, or with other weights of an earlier stage.
    """
    if twice := [name for name, count in Counter(path.stem for path in recipes).items() if count > 1]:
        raise ConfigError(f"several recipes are named {twice[0]} and would share {out / twice[0]}; rename all but one")
    stages: list[tuple[Path, Recipe]] = []
    faults: dict[str, None] = {}
    for number, path in enumerate(recipes):  # all before any work starts: a stage takes an hour
        try:
            stages.append((path, recipe := read_recipe(path)))
            if (corpus := _corpus_named(path, recipe.corpus)).is_file():
                load_recipe(corpus)
            else:
                _refuse_unusable(corpus, recipe)
            for name in sorted({*_names(recipe)} - {f"stage:{earlier.stem}" for earlier in recipes[:number]}):
                run_of(name, out)
            _refuse_unfit(recipe, {f"stage:{earlier.stem}": each for earlier, each in stages[:-1]}, out)
        except ConfigError as error:
            faults[str(error)] = None
    if faults:
        raise ConfigError("\n".join(faults))
    PartialState(cpu=not torch.cuda.is_available())
    hashes = {path.name: file_sha256(path) for path in recipes}
    provenance: dict[str, object] = {"command": command(), "recipes": hashes}
    for path, recipe in stages:
        _run_stage(path, recipe, out, fresh, provenance)
    return out / stages[-1][0].stem


def _refuse_unfit(recipe: Recipe, earlier: Mapping[str, Recipe], out: Path) -> None:
    """Raise ConfigError if an `earlier` stage will not leave what a recipe names, or for a wrong number of shares.

    The stage itself would find out hours later.
    """
    if isinstance(recipe, Calibrate):
        classifiers = [*(recipe.networks or {}).values()]
        if len(networks := _networks(recipe, earlier, out)) != len(recipe.passed):
            raise ConfigError(f"the bundle that stage calibrate makes has {len(networks)} network(s), passed has "
                              f"{len(recipe.passed)} share(s); give one for each")  # fmt: skip
    else:
        classifiers = [*recipe.teachers] if isinstance(recipe, Classify) else []
        if isinstance(earlier.get(recipe.encoder), Calibrate):
            classifiers.append(recipe.encoder)
        if isinstance(recipe, Classify) and recipe.traffic:
            _bundled(recipe.traffic, earlier, out)
    for name in classifiers:
        if made := earlier.get(name):
            if not isinstance(made, Classify):
                raise ConfigError(f"{name} is of stage {made.stage}, which trains no classifier; name another")
            continue
        place = run_of(name, out)
        if not is_classifier(Path(place)) and (isinstance(recipe, Calibrate) or not is_bundle(place)):
            raise ConfigError(f"{place} holds no network; name the run folder of a classify stage, or a bundle")


def _networks(recipe: Calibrate, earlier: Mapping[str, Recipe], out: Path) -> set[str]:
    """Return the names of the networks in the bundle that a recipe makes."""
    own = {*(recipe.networks or ())}
    return own if own and not recipe.bundle else own | _bundled(recipe.bundle or "bundle", earlier, out)


def _bundled(name: str, earlier: Mapping[str, Recipe], out: Path) -> set[str]:
    """Return the names of the networks in the bundle that `name` means; raises ConfigError if its stage makes none."""
    made = earlier.get(name)
    if isinstance(made, Calibrate):
        return _networks(made, earlier, out)
    if made:
        if isinstance(made, Classify) and made.bundle:
            return {"model"}
        raise ConfigError(f"{name} leaves no bundle; name a stage that does, or a bundle's folder")
    networks = read_bundle(bundle_folder(run_of(name, out))).manifest.networks
    return {Path(network.file).stem for network in networks}


def _run_stage(path: Path, recipe: Recipe, out: Path, fresh: bool, provenance: dict[str, object]) -> None:
    folder, processes, started = out / path.stem, PartialState(), time.monotonic()
    with ExitStack() as held:
        with processes.main_process_first():  # the others find the first one's results
            corpus = _corpus(path, recipe.corpus, out)
            _refuse_unusable(corpus, recipe)
            sources = _sources(recipe, out)
            for place in sources.values():
                refuse_other_labels(place)
            begun = {
                "recipe": recipe.model_dump(mode="json", exclude_defaults=True),
                "corpus": [corpus.name, fingerprint_of(corpus)],
                **bundle_ids(sources),
                **weights_sha256(sources),
            }
            if processes.is_main_process:
                run = held.enter_context(Run.open(folder, begun, done=METRICS, fresh=fresh))
            finished = (folder / METRICS).is_file()
        if finished:
            processes.print(f"{path.stem}: finished before, kept")
            return
        facts = {
            **provenance,
            "recipe": recipe.model_dump(mode="json"),
            "seed": recipe.seed,
            "processes": processes.num_processes,
            "data_sha256": {split: file_sha256(corpus / f"{split}.parquet") for split in SPLITS},
            "training_rows": dict(Counter(_column(corpus / "train.parquet", "source")).most_common()),
            "bundles": bundle_ids(sources),
            "versions": versions(),
        }
        metrics = STAGES[recipe.stage](StageContext(recipe, corpus, folder, out, facts))
        if processes.is_main_process:
            write_json(folder / "run.json", {**facts, "seconds": round(time.monotonic() - started, 1)})
            for checkpoint in folder.glob("checkpoint*"):
                shutil.rmtree(checkpoint)
            run.finish(metrics)
        processes.wait_for_everyone()  # the next stage reads this one's output


def _corpus_named(path: Path, corpus: str) -> Path:
    next_to_recipe = path.parent / corpus
    named = next_to_recipe if next_to_recipe.exists() else Path(corpus)
    if not named.exists():
        raise ConfigError(f"recipe {path}: corpus {corpus!r} is neither a folder nor a recipe next to it")
    return named


def _corpus(path: Path, corpus: str, out: Path) -> Path:
    """Return the corpus folder; a corpus recipe is built once for its inputs, and shared by the stages."""
    named = _corpus_named(path, corpus)
    if named.is_dir():
        return named
    folder = out / f"corpus-{source_key(named)[:12]}"
    if not (folder / "train.parquet").is_file():
        build(named, folder)
    return folder


def _refuse_unusable(corpus: Path, recipe: Recipe) -> None:
    """Raise InputError if a split is missing, or lacks rows that the stage needs: some are read after the training."""
    packs = isinstance(recipe, Calibrate) or (isinstance(recipe, Classify) and recipe.bundle)
    labels = {split: {*_column(split_file(corpus, split), "label")} for split in SPLITS}
    for split in ("train", *(() if isinstance(recipe, Calibrate) else ("validation",)), *("calibration",) * packs):
        if not labels[split]:
            raise InputError(f"{corpus / split}.parquet has no rows, and stage {recipe.stage} reads it; give the split "
                             "a share in the corpus recipe")  # fmt: skip
    for kind in (BENIGN, FLAGGED):
        if packs and labels["calibration"].isdisjoint(kind):
            raise InputError(f"{corpus}/calibration.parquet has no message labelled {' or '.join(kind)}, which "
                             "thresholds need; add such messages to the corpus")  # fmt: skip


def _column(split: Path, name: str) -> list[str]:
    return list(read_table(split, [name]).column(name).to_pylist())


def _sources(recipe: Recipe, out: Path) -> dict[str, str]:
    """Return where the bundles and runs that a recipe names are, by their names there; "bundle" is the package's."""
    found = {name: run_of(name, out) for name in _names(recipe)}
    if isinstance(recipe, Calibrate) and (bundle := source_of(recipe, out)):
        found[recipe.bundle or "bundle"] = str(bundle)
    return found


def _names(recipe: Recipe) -> list[str]:
    if isinstance(recipe, Calibrate):
        return [*(recipe.networks or {}).values(), *filter(None, [recipe.bundle])]
    more = [*recipe.teachers, *filter(None, [recipe.traffic])] if isinstance(recipe, Classify) else []
    return [recipe.encoder, *more]
