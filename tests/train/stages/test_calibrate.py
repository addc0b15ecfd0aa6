from pathlib import Path
from types import SimpleNamespace

import pytest

from jingyin.model.bundle import default_path
from jingyin.train import stages as calibrate
from jingyin.train.recipes import Calibrate
from jingyin.train.runs import StageContext
from jingyin.train.stages import run_calibrate, source_of

RECIPE = Calibrate(stage="calibrate", corpus="c", passed=(0.1,))


@pytest.mark.parametrize(("first", "wanted"), [(True, {"ece": 0.5}), (False, {})])
def test_one_process_alone_writes_the_bundle(monkeypatch, tmp_path, first, wanted):
    written = []

    def pack(_: object, bundle: Path, *__: object) -> SimpleNamespace:
        written.append(bundle)
        return SimpleNamespace(calibration=SimpleNamespace(ece_after=0.5))

    monkeypatch.setattr(calibrate, "pack", pack)
    monkeypatch.setattr(calibrate, "PartialState", lambda: SimpleNamespace(is_main_process=first))
    assert run_calibrate(StageContext(RECIPE, tmp_path, tmp_path, tmp_path, {})) == wanted
    assert written == [default_path()] * first


def test_the_bundle_that_a_recipe_means(tmp_path):
    (tmp_path / "made" / "bundle").mkdir(parents=True)
    (tmp_path / "made" / "metrics.json").write_text("{}", encoding="utf-8")
    assert source_of(RECIPE, tmp_path) == default_path()
    assert source_of(RECIPE.model_copy(update={"networks": {"model": "stage:made"}}), tmp_path) is None
    for name in ("stage:made", str(tmp_path / "made"), str(tmp_path / "made" / "bundle")):
        assert source_of(RECIPE.model_copy(update={"bundle": name}), tmp_path) == tmp_path / "made" / "bundle"
