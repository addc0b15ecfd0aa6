import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from jingyin import Scorer
from jingyin.model.bundle import read_bundle
from jingyin.model.errors import BundleError, ConfigError, InputError
from jingyin.train.pipeline import train

GOLDEN_LOSSES = [0.9925, 0.1359, 0.1125, 0.0049, 0.0114, 0.0097]
"""Training loss of each 20 steps and validation loss of each epoch, of configs/tiny.yaml on the made-up corpus."""


def losses(run: Path) -> list[float]:
    newest = max(run.glob("checkpoints/checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    history = json.loads(newest.read_text(encoding="utf-8"))["log_history"]
    return [entry[key] for key in ("loss", "eval_loss") for entry in history if key in entry]


def metrics(run: Path) -> dict[str, float]:
    content: dict[str, float] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return content


def test_a_fixed_seed_gives_the_golden_losses(tiny_run):
    assert losses(tiny_run) == pytest.approx(GOLDEN_LOSSES, abs=5e-3)
    assert metrics(tiny_run)["macro_f1"] == 1
    assert set(metrics(tiny_run)) == {"loss", "macro_f1", "flagged_ap", "epoch"}


def test_the_bundle_judges_what_it_learned(tiny_run):
    scorer = Scorer.load(tiny_run / "bundle")
    assert scorer.score("想让手机安静，转三百到这个号，不转接着打").label == "pay_to_stop"
    assert scorer.score("再不还钱，就把你的事发给全村，看你怎么做人").label == "debt_threat"
    assert scorer.score("周末，一起去爬山，记得穿厚点").action == "pass"
    evidence = scorer.bundle.manifest.provenance
    assert evidence["metrics"] == metrics(tiny_run)
    assert evidence["int8_agreement"] >= 0.99


def test_a_run_folder_tells_how_it_was_made(tiny_run, corpus):
    facts = json.loads((tiny_run / "run.json").read_text(encoding="utf-8"))
    recipe = yaml.safe_load((tiny_run / "recipe.yaml").read_text(encoding="utf-8"))
    assert facts["recipe"].items() >= recipe.items()
    assert facts["seed"] == 1
    assert facts["processes"] == 1
    assert facts["training_rows"] == {"authored": 320}
    assert set(facts["data_sha256"]) == {"train", "validation", "calibration", "test"}
    assert {"torch", "transformers", "jingyin"} <= set(facts["versions"])
    assert facts["seconds"] > 0
    assert list(tiny_run.glob("checkpoints/runs/*/events.out.tfevents.*"))
    assert "Validation split of the run: loss" in (tiny_run / "bundle" / "card.md").read_text(encoding="utf-8")


def test_resume_after_a_kill_gives_the_same_metrics(tiny_run, write_recipe, tmp_path):
    recipe, run = write_recipe("tiny"), tmp_path / "tiny"
    code = "from jingyin.cli import main; main()"
    command = [sys.executable, "-c", code, "train", str(recipe), "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = run / "checkpoints" / "checkpoint-20" / "trainer_state.json"
    while not first.is_file() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "classifier.safetensors").exists()
    (run / "checkpoints" / "checkpoint-59").mkdir()  # one that the kill cut short
    train([recipe], tmp_path, resume=True)
    assert metrics(run) == pytest.approx(metrics(tiny_run), abs=1e-6)
    assert losses(run) == pytest.approx(losses(tiny_run), abs=1e-6)


def test_stages_hand_on_and_finished_ones_are_kept(write_recipe, tmp_path, capsys):
    align = write_recipe("align", ("head_rate", "review_rate", "block_rate"), stage="align", learning_rate=1e-2)
    teacher = write_recipe("teacher", encoder="stage:align", bundle=False)
    student = write_recipe(
        "student", encoder="stage:align", teacher="stage:teacher", layers=1, cuts=0.5, distillation_weight=0.3
    )
    train([align, teacher], tmp_path)
    assert metrics(tmp_path / "align")["cosine"] > 0.9
    assert not (tmp_path / "teacher" / "bundle").exists()
    before = [os.stat(tmp_path / name / "run.json").st_mtime_ns for name in ("align", "teacher")]
    capsys.readouterr()
    last = train([align, teacher, student], tmp_path, resume=True)
    assert [os.stat(tmp_path / name / "run.json").st_mtime_ns for name in ("align", "teacher")] == before
    assert "align: finished before, kept\nteacher: finished before, kept\n" in capsys.readouterr().out
    assert Scorer.load(last / "bundle").score("想让手机安静，转三百到这个号，钱到就停").label == "pay_to_stop"
    soft = np.load(last / "soft.npy")
    assert 320 + 120 < len(soft) < 320 + 200  # the rows, and pieces of half of them
    assert soft.sum(1) == pytest.approx(1, abs=1e-5)


def test_a_teacher_that_has_spoken_is_not_asked_again(write_recipe, tmp_path, monkeypatch):
    teacher = write_recipe("mentor", epochs=1, bundle=False)
    student = write_recipe("pupil", teacher="stage:mentor", epochs=1, bundle=False)
    train([teacher, student], tmp_path)
    (tmp_path / "pupil" / "metrics.json").unlink()
    monkeypatch.setattr("jingyin.train.stages.classify.soft_labels", None)
    train([teacher, student], tmp_path, resume=True)
    assert metrics(tmp_path / "pupil")["macro_f1"] > 0


def test_a_bundle_is_calibrated_again_with_the_network_that_it_has(tiny_run, corpus, tmp_path):
    recipe = {"stage": "calibrate", "corpus": str(corpus), "bundle": str(tiny_run / "bundle"), "seed": 1}
    stage = tmp_path / "again.yaml"
    stage.write_text(yaml.safe_dump({**recipe, "review_rate": 0.4, "block_rate": 0.3}), encoding="utf-8")
    made, again = Scorer.load(tiny_run / "bundle").bundle, Scorer.load(train([stage], tmp_path) / "bundle").bundle
    for file in ("model.onnx", "tokenizer.json", "golden.json"):
        assert made.manifest.files[file] == again.manifest.files[file]
    assert np.array_equal(made.prefilter_weights, again.prefilter_weights)  # of the same corpus and seed
    assert (made.manifest.review.target, again.manifest.review.target) == (0.2, 0.4)
    assert again.manifest.provenance["metrics"] == metrics(tiny_run)
    assert again.manifest.provenance["calibrated"]["recipe"]["review_rate"] == 0.4
    assert "`jingyin train configs/again.yaml`" in (again.path / "card.md").read_text(encoding="utf-8")


def test_a_bundle_that_does_not_say_how_it_was_trained_is_not_calibrated(tiny_run, corpus, tmp_path, monkeypatch):
    read = read_bundle(tiny_run / "bundle")
    stranger = replace(
        read, manifest=read.manifest.model_copy(update={"provenance": {"recipe": {"stage": "classify"}}})
    )
    monkeypatch.setattr("jingyin.train.packing.pack.read_bundle", lambda path: stranger)
    stage = tmp_path / "strange.yaml"
    stage.write_text(yaml.safe_dump({"stage": "calibrate", "corpus": str(corpus)}), encoding="utf-8")
    with pytest.raises(BundleError, match=rf"bundle {read.manifest.id} does not say how .* \(3 faults\); calibrate it"):
        train([stage], tmp_path)


def test_resume_refuses_another_recipe(tiny_run, write_recipe):
    changed = write_recipe("changed/tiny", seed=2)
    with pytest.raises(ConfigError, match=r"tiny\.yaml is not the recipe that .*tiny was begun with"):
        train([changed], tiny_run.parent, resume=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"corpus": "nowhere"}, ConfigError, "corpus 'nowhere' is neither a folder nor a recipe next to it"),
        ({"encoder": "stage:align"}, ConfigError, "stage:align has left nothing in .*; run its recipe first"),
        ({"teacher": "stage:t"}, ConfigError, "stage:t has left nothing in "),
        ({"layers": 5}, ConfigError, "layers is 5; this encoder has 1 to 4"),
        ({"batch_size": 400}, InputError, "320 training rows are less than a batch of 400; add rows, or lower"),
    ],
)
def test_what_a_recipe_can_get_wrong(write_recipe, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        train([write_recipe("wrong", **change)], tmp_path)


def test_too_few_benign_rows_for_a_threshold(write_recipe, tmp_path):
    with pytest.raises(InputError, match=r"60 benign calibration rows can't support a false-positive rate of 0\.001"):
        train([write_recipe("rare", epochs=1, block_rate=0.001)], tmp_path)


def test_a_corpus_recipe_is_built_once(write_recipe, tmp_path, monkeypatch, corpus):
    recipe = tmp_path / "words.yaml"
    recipe.write_text("seed: 3\n", encoding="utf-8")
    built = []

    def build(path: Path, folder: Path) -> None:
        built.append(path)
        folder.symlink_to(corpus)

    monkeypatch.setattr("jingyin.train.pipeline.build", build)
    stage = write_recipe("stage", corpus=str(recipe), epochs=1, bundle=False)
    train([stage, stage], tmp_path / "out")
    assert built == [recipe]
