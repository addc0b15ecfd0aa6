from pathlib import Path

import pytest
from transformers import BertModel

from jingyin.model.errors import ConfigError
from jingyin.train.encoder import random_encoder, start_from
from jingyin.train.recipes import Align, Classify
from jingyin.train.saved import Vocabulary, load_encoder, save_encoder

POSITIONS = 64
WANTED = (
    r"max_tokens is 65, but encoder '.*' has positions for 64; write at most max_tokens: 64 in the recipe, or name an"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an align stage whose encoder has 64 positions."""
    config = random_encoder().model.config
    config.max_position_embeddings, config.vocab_size = POSITIONS, 7
    out = tmp_path_factory.mktemp("align")
    save_encoder(BertModel(config, add_pooling_layer=False), Vocabulary.of_lexicon("你 1\n好 1\n"), out)
    return out


@pytest.mark.parametrize("stage", ["align", "classify"])
def test_more_tokens_than_the_encoder_has_positions_are_refused(run: Path, stage: str) -> None:
    recipe = (Align if stage == "align" else Classify).model_validate(
        {"stage": stage, "corpus": "c", "layers": 2, "epochs": 1, "max_tokens": POSITIONS + 1}
    )
    with pytest.raises(ConfigError, match=WANTED):
        start_from(recipe, str(run), [])


def test_as_many_tokens_as_positions_are_read(run: Path) -> None:
    recipe = Classify(stage="classify", corpus="c", layers=2, epochs=1, max_tokens=POSITIONS)
    assert start_from(recipe, str(run), []).encoder.config.max_position_embeddings == POSITIONS


def test_a_new_small_network_has_positions_of_its_own(run: Path) -> None:
    recipe = Classify(stage="classify", corpus="c", layers=2, epochs=1, max_tokens=POSITIONS + 1, hidden=32)
    config = start_from(recipe, str(run), []).encoder.config
    assert (config.max_position_embeddings, config.hidden_size, config.num_hidden_layers) == (POSITIONS + 1, 32, 2)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (100, "hidden is 100, which 3 attention heads can't share; write a multiple of 32"),
        (96, "hidden is 96, but encoder '.*' is 64 wide; write at most hidden: 64 in the recipe, or leave it out"),
    ],
)
def test_a_width_that_cannot_be(run: Path, monkeypatch: pytest.MonkeyPatch, hidden: int, message: str) -> None:
    if hidden == 100:
        wide = load_encoder(run)
        wide[0].config.hidden_size = 128
        monkeypatch.setattr("jingyin.train.encoder.load_encoder", lambda _: wide)
    recipe = Classify(stage="classify", corpus="c", layers=2, epochs=1, hidden=hidden)
    with pytest.raises(ConfigError, match=message):
        start_from(recipe, str(run), [])
