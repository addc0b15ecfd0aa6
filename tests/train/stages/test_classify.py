from pathlib import Path

import pytest

from jingyin.model.errors import ConfigError
from jingyin.train.data import read_split
from jingyin.train.recipes import read_recipe
from jingyin.train.stages.classify import load_classifier, soft_labels


def test_a_bundle_teaches_what_the_network_that_it_was_made_of_teaches(tiny_run: Path, corpus: Path) -> None:
    texts = read_split(corpus, "test").cleaned
    network, bundle = soft_labels(tiny_run, texts), soft_labels(tiny_run / "bundle", texts)
    assert bundle.sum(1) == pytest.approx(1, abs=1e-5)
    assert bundle.argmax(1).tolist() == network.argmax(1).tolist()  # but for int8 and the temperature


def test_only_a_classify_stage_leaves_a_teacher(write_recipe, tmp_path: Path) -> None:
    align = write_recipe("aligned", ("head_rate", "review_rate", "block_rate"), stage="align")
    (tmp_path / "recipe.yaml").write_text(align.read_text(encoding="utf-8"), encoding="utf-8")
    assert read_recipe(tmp_path / "recipe.yaml").stage == "align"
    with pytest.raises(ConfigError, match=r"is the run of a stage align; name that of a classify stage, or a bundle"):
        load_classifier(tmp_path)
