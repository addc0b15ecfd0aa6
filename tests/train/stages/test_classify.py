from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jingyin.model.cascade import FLAGGED_INDEX
from jingyin.model.errors import ConfigError, InputError
from jingyin.model.labels import LABELS
from jingyin.model.text import clean
from jingyin.train import stages as classify
from jingyin.train.data import Rows, read_split, unlabelled
from jingyin.train.encoder import random_encoder
from jingyin.train.network import SmsClassifier, mean_pool
from jingyin.train.recipes import Classify
from jingyin.train.runs import StageContext
from jingyin.train.saved import is_classifier, load_classifier
from jingyin.train.stages import (
    metrics,
    run_classify,
    standardise,
    taught,
    teacher_probabilities,
    way_back,
)


def test_a_bundle_teaches_what_its_network_teaches(tiny_run: Path, corpus: Path, tmp_path: Path) -> None:
    texts = read_split(corpus, "test").cleaned
    network, bundle = (teacher_probabilities([str(each)], texts, tmp_path) for each in (tiny_run, tiny_run / "bundle"))
    assert bundle.sum(1) == pytest.approx(1, abs=1e-5)
    assert bundle.argmax(1).tolist() == network.argmax(1).tolist()  # but for int8 and the fused risk


def test_several_teachers_agree_on_the_mean_of_their_log_odds(tiny_run: Path, corpus: Path, tmp_path: Path) -> None:
    texts = read_split(corpus, "test").cleaned
    alone, twice = (teacher_probabilities([str(tiny_run)] * times, texts, tmp_path) for times in (1, 2))
    np.testing.assert_allclose(twice, alone, atol=1e-6)
    both = teacher_probabilities([str(tiny_run), str(tiny_run / "bundle")], texts, tmp_path)
    assert both.sum(1) == pytest.approx(1, abs=1e-5)


def test_only_a_classify_stage_leaves_a_teacher(tmp_path: Path) -> None:
    assert not is_classifier(tmp_path)
    with pytest.raises(ConfigError, match=r"holds no network; name the run folder of a classify stage"):
        load_classifier(tmp_path)


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


def test_no_signs_end_it_before_training(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify, "start_from", None)
    recipe = Classify(stage="classify", corpus="c", encoder="random", layers=1, epochs=1, signs=True)
    with pytest.raises(InputError, match="none of 253 training messages has signs that people read"):
        run_classify(StageContext(recipe, corpus, tmp_path, tmp_path, {}))


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
    run_classify(StageContext(recipe, corpus, tmp_path, tmp_path, {}))
    assert moved == ["fit", "cpu", "signs"]


SOFT = np.array([0.6, 0.1, 0.15, 0.05, 0.1], np.float32)


def rows(*kinds: tuple[str, str, str]) -> Rows:
    """Return rows of (source, family, label)."""
    plain = unlabelled([clean(f"第{i}条") for i in range(len(kinds))])
    sources, families, labels = (list(column) for column in zip(*kinds, strict=True))
    return replace(
        plain, labels=np.array([LABELS.index(label) for label in labels]), families=families, sources=sources
    )


def test_an_own_label_stands_and_an_authored_one_is_mixed_with_what_teachers_say(monkeypatch, tmp_path):
    monkeypatch.setattr(classify, "teacher_probabilities", lambda _, texts, __: np.tile(SOFT, (len(texts), 1)))
    recipe = Classify(
        stage="classify", corpus="c", epochs=1, teachers=("t",), distillation_weight=0.5, label_smoothing=0.02
    )
    given = rows(
        ("own", "debt_threat", "debt_threat"), ("authored", "chat", "lawful_collection"),
        ("jsonl", "traffic", "ordinary"), ("own", "flagged", "debt_threat"), ("own", "not_flagged", "ordinary"),
        ("authored", "insult", "debt_threat"),
    )  # fmt: skip
    _, target = taught(recipe, ["t"], given, tmp_path)
    hard = pytest.approx([0.004, 0.004, 0.984, 0.004, 0.004])
    assert target[0] == hard
    assert target[1] == pytest.approx(0.5 * np.array([0.004, 0.984, 0.004, 0.004, 0.004]) + 0.5 * SOFT)
    assert target[5] == hard  # the teachers let this threat pass
    assert target[2] == pytest.approx([0.984, 0.004, 0.004, 0.004, 0.004])
    # A side alone sets the risk, and leaves the rest to the teachers.
    assert target[3:5].sum(1) == pytest.approx(1)
    assert target[3:5, FLAGGED_INDEX].sum(1) == pytest.approx([0.98, 0.02], abs=1e-6)
    assert target[3, 2] / target[3, 3] == pytest.approx(3, rel=1e-5)
    assert target[4, 0] / target[4, 1] == pytest.approx(6, rel=1e-5)


def test_held_out_messages_choose_the_way_back() -> None:
    model = SmsClassifier.on(random_encoder().model)
    held_out = rows(("own", "a", "pay_to_stop"), ("authored", "b", "ordinary"))
    ids = [[2, 5, 3], [2, 9, 3]]
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():  # the head is 0, so that all labels are equally likely
        model.head.bias.copy_(torch.tensor([9.0, 0, 0, 0, 0]))  # all ordinary: costs more than it brings
    assert way_back(model, before, ids, held_out) in (0.75, 1.0)
    assert model.head.bias[0] == 9  # as it was
    assert way_back(model, before, ids[1:], held_out.take(np.array([1]))) == 0.0


def test_what_a_few_held_out_messages_say_by_chance_changes_no_weights() -> None:
    model = SmsClassifier.on(random_encoder().model)
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([1.0, 0, 0, 0, 0]))  # right about innocents, wrong about threats
    few = rows(*[("own", "a", "pay_to_stop")] * 3, *[("own", "b", "ordinary")] * 5)
    many = rows(*[("own", "a", "pay_to_stop")] * 400, *[("own", "b", "ordinary")] * 3)
    assert way_back(model, before, [[2, 5, 3]] * 8, few) == 0.0
    assert way_back(model, before, [[2, 5, 3]] * 403, many) == 1.0
