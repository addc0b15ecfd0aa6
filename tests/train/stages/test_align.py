import pytest

from jingyin.train import stages as align
from jingyin.train.data import read_split
from jingyin.train.recipes import Align
from jingyin.train.runs import StageContext
from jingyin.train.stages import run_align


def test_validation_is_compared_with_the_teacher_that_taught(corpus, tmp_path, monkeypatch):
    given, pieces = [], align.with_own_pieces

    def with_own_pieces(pretrained, texts, positions):
        given.append(list(texts))
        return pieces(pretrained, texts, positions)

    monkeypatch.setattr(align, "with_own_pieces", with_own_pieces)
    monkeypatch.setattr(align, "fit", lambda *_: 0.25)
    recipe = Align(
        stage="align", corpus="c", encoder="random", layers=4, epochs=1, max_tokens=64, rows=40, vocabulary="pieces"
    )
    found = run_align(StageContext(recipe, corpus, tmp_path, tmp_path, {}))
    assert given == [[each.text for each in read_split(corpus, "train").drawn(40, recipe.seed).cleaned]]
    assert found["loss"] == 0.25
    assert found["cosine"] == pytest.approx(1, abs=1e-3)  # the same layers, pieces and weights
