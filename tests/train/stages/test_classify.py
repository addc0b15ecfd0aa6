from pathlib import Path

import numpy as np
import pytest
import torch

from jingyin.model.errors import ConfigError, InputError
from jingyin.train import stages as classify
from jingyin.train.data import read_split
from jingyin.train.encoder import random_encoder
from jingyin.train.network import SmsClassifier, mean_pool
from jingyin.train.recipes import Classify
from jingyin.train.runs import Job
from jingyin.train.saved import is_classifier, load_classifier
from jingyin.train.stages import metrics, run_classify, soft_labels, standardise


@pytest.mark.train
def test_a_bundle_teaches_what_the_network_that_it_was_made_of_teaches(
    tiny_run: Path, corpus: Path, tmp_path: Path
) -> None:
    texts = read_split(corpus, "test").cleaned
    network, bundle = (soft_labels([str(each)], texts, tmp_path) for each in (tiny_run, tiny_run / "bundle"))
    assert bundle.sum(1) == pytest.approx(1, abs=1e-5)
    assert bundle.argmax(1).tolist() == network.argmax(1).tolist()  # but for int8 and the fused risk


@pytest.mark.train
def test_several_teachers_agree_on_the_mean_of_their_log_odds(tiny_run: Path, corpus: Path, tmp_path: Path) -> None:
    texts = read_split(corpus, "test").cleaned
    alone, twice = (soft_labels([str(tiny_run)] * times, texts, tmp_path) for times in (1, 2))
    np.testing.assert_allclose(twice, alone, atol=1e-6)
    both = soft_labels([str(tiny_run), str(tiny_run / "bundle")], texts, tmp_path)
    assert both.sum(1) == pytest.approx(1, abs=1e-5)


def test_only_a_classify_stage_leaves_a_teacher(tmp_path: Path) -> None:
    assert not is_classifier(tmp_path)
    with pytest.raises(ConfigError, match=r"holds no network; name the run folder of a classify stage"):
        load_classifier(tmp_path)


@pytest.mark.slow
def test_the_head_sees_features_of_mean_0_and_deviation_1() -> None:
    model = SmsClassifier.on(random_encoder().model)
    ids = [[2, *np.random.default_rng(i).integers(4, 200, 8).tolist(), 3] for i in range(64)]
    standardise(model, ids, seed=1)
    with torch.no_grad():
        pooled = torch.cat(
            [mean_pool(model.encoder, torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long)) for row in ids]
        )
    features = (pooled - model.mean) / model.sd
    torch.testing.assert_close(features.mean(0), torch.zeros(64), atol=0.05, rtol=0)  # measured in bf16
    torch.testing.assert_close(features.std(0), torch.ones(64), atol=0.1, rtol=0)


def test_metrics() -> None:
    logits = np.eye(5, dtype=np.float32) * 5
    assert metrics(logits, np.arange(5)) == {"macro_f1": 1.0, "flagged_ap": 1.0}
    wrong = metrics(logits[[0, 0, 0, 3, 4]], np.arange(5))
    assert wrong["macro_f1"] == pytest.approx((0.5 + 0 + 0 + 1 + 1) / 5)
    assert wrong["flagged_ap"] < 1


def test_a_corpus_without_signs_ends_before_training(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classify, "start_from", None)
    recipe = Classify(stage="classify", corpus="c", encoder="random", layers=1, epochs=1, signs=True)
    with pytest.raises(InputError, match="none of 253 training messages has signs that people read"):
        run_classify(Job(recipe, corpus, tmp_path, tmp_path, {}))


@pytest.mark.slow
def test_signs_are_learnt_where_their_inputs_are(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    cpu = SmsClassifier.cpu
    monkeypatch.setattr(SmsClassifier, "cpu", lambda model: moved.append("cpu") or cpu(model))
    monkeypatch.setattr(classify, "annotated_messages", lambda rows: rows)
    monkeypatch.setattr(classify, "fit", lambda *_: moved.append("fit") or 0.0)
    monkeypatch.setattr(classify, "fit_sign_head", lambda model, *_: moved.append("signs"))
    recipe = Classify(
        stage="classify", corpus="c", encoder="random", layers=1, epochs=1, max_tokens=64, signs=True, bundle=False
    )
    run_classify(Job(recipe, corpus, tmp_path, tmp_path, {}))
    assert moved == ["fit", "cpu", "signs"]
