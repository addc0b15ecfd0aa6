import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from jingyin.model.errors import InputError
from jingyin.train.loop import Schedule, _rate, fit, predict
from jingyin.train.losses import cross_entropy

SCHEDULE = Schedule(epochs=3, tokens=64, learning_rate=0.05, head_rate=2.0, precision="fp32", seed=1)


class Bag(nn.Module):
    """Token ids -> logits of the mean of their embeddings."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(40, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        kept = attention_mask[..., None].float()
        return self.head((self.words(input_ids) * kept).sum(1) / kept.sum(1))


def rows(count: int = 200) -> Dataset:
    """Return rows whose label is whether they hold token 5."""
    rng = np.random.default_rng(0)
    ids = [[2, *rng.integers(6, 40, rng.integers(1, 12)).tolist(), *([5] if i % 2 else []), 3] for i in range(count)]
    target = [[1.0 - i % 2, float(i % 2)] for i in range(count)]
    return Dataset.from_dict({
        "ids": ids, "target": target, "weight": [1.0] * count, "message": list(range(count)), "pair": [""] * count,
        "plain": [True] * count,
    })  # fmt: skip


def test_it_learns(tmp_path):
    model = Bag()
    first = fit(model, rows(), tmp_path / "a", replace(SCHEDULE, epochs=1), cross_entropy)
    last = fit(Bag(), rows(), tmp_path / "b", replace(SCHEDULE, epochs=10), cross_entropy)
    assert last < 0.1 < first
    assert list((tmp_path / "a" / "events").glob("events.out.tfevents.*"))


def test_a_run_that_was_broken_off_gives_what_a_whole_one_gives(tmp_path):
    whole, broken = Bag(), Bag()
    loss = fit(whole, rows(), tmp_path / "whole", SCHEDULE, cross_entropy)
    calls = 0

    def fails(output: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 25:
            raise KeyboardInterrupt
        return cross_entropy(output, target)

    with pytest.raises(KeyboardInterrupt):
        fit(broken, rows(), tmp_path / "broken", SCHEDULE, fails)
    again = Bag()
    assert fit(again, rows(), tmp_path / "broken", SCHEDULE, cross_entropy) == pytest.approx(loss, abs=1e-12)
    for name, weights in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], weights)


def test_a_row_of_no_weight_teaches_nothing(tmp_path):
    data = rows()
    silent = data.remove_columns("weight").add_column("weight", [0.0] * len(data))
    model, before = Bag(), Bag()
    fit(model, silent, tmp_path, replace(SCHEDULE, epochs=1), lambda output, target: cross_entropy(output, target))
    torch.testing.assert_close(model.words.weight, before.words.weight, rtol=0.02, atol=0)  # but for weight decay


def test_without_rows(tmp_path):
    with pytest.raises(InputError, match="no training rows; add some to the corpus"):
        fit(Bag(), rows(0), tmp_path, SCHEDULE, cross_entropy)


def test_the_rate_warms_up_and_falls_as_a_cosine():
    rates = [_rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 7)
    assert max(rates) == rates[6] == 1.0
    assert rates[53] == pytest.approx(0.5)
    assert rates[99] < 0.001
    assert _rate(0, 1) == pytest.approx(1 / 1.06)


def test_cross_entropy_of_soft_targets():
    logits, target = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert cross_entropy(logits, target).tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-2))])


def test_predictions_come_in_the_order_of_the_rows(monkeypatch):
    model, ids = Bag(), rows(50)["ids"][:]
    monkeypatch.setattr("jingyin.train.loop._PREDICTED", 40)
    found = predict(model, ids)
    alone = np.concatenate([predict(model, [each]) for each in ids])
    assert found.shape == (50, 2)
    np.testing.assert_allclose(found, alone, atol=0.02)  # in bf16
