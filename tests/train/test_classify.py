from pathlib import Path

import pytest
import torch

from jingyin.model.errors import ConfigError
from jingyin.train.classify import mix_in, run_classify
from jingyin.train.recipe import Classify


def test_a_share_of_the_weights_is_kept() -> None:
    model = torch.nn.Linear(2, 1)
    model.load_state_dict({"weight": torch.tensor([[4.0, -2.0]]), "bias": torch.tensor([1.0])})
    mix_in(model, {"weight": torch.tensor([[0.0, 2.0]]), "bias": torch.tensor([5.0])}, 0.25)
    assert model.weight.tolist() == [[3.0, -1.0]]
    assert model.bias.tolist() == [2.0]


def test_only_a_classifier_has_weights_to_keep(tmp_path: Path) -> None:
    recipe = Classify(stage="classify", corpus="c", layers=1, epochs=1, kept=0.5)
    with pytest.raises(
        ConfigError, match=r"^kept is 0\.5, but random is no classifier that an earlier stage left; name"
    ):
        run_classify(recipe, "random", None, tmp_path, tmp_path, resume=False)
