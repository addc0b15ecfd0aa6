"""Trains the tiny network without dropout, in as many processes as run this file: what test_processes.py compares.

Without dropout, since each process draws its own. Then trains the recipe, and fails if any but the first one writes.
"""

import shutil
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from jingyin.model.errors import JingyinError
from jingyin.model.network import SmsClassifier
from jingyin.train.data import one_hot, read_split
from jingyin.train.loop import fit
from jingyin.train.pipeline import train
from jingyin.train.recipes import Classify, read_recipe
from jingyin.train.stages.classify import _dataset
from jingyin.train.vocabularies import start_from


def fit_without_dropout(path: Path, out: Path) -> dict[str, float]:
    recipe = read_recipe(path)
    assert isinstance(recipe, Classify)
    torch.manual_seed(1)
    start = start_from(recipe, "random")
    model = SmsClassifier(start.encoder, 5)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in start.encoder.encoder.layer:
        layer.attention.self.dropout_prob = 0.0
    sets = (
        _dataset(rows, start.encode, one_hot(rows.labels, 0))
        for rows in (read_split(Path(recipe.corpus), split) for split in ("train", "validation"))
    )
    return fit(
        model, *sets, out, epochs=2, batch_size=16, learning_rate=1e-3, warmup=0.1, precision="fp32", seed=1,
        resume=False, head_rate=3.0,
    )  # fmt: skip


def refuse(*_: object, **__: object) -> None:
    raise JingyinError("only the first process may write")


if __name__ == "__main__":
    PartialState(cpu=True)
    if not PartialState().is_main_process:
        Path.write_text = Path.write_bytes = shutil.copyfile = shutil.rmtree = refuse  # type: ignore[assignment]
    recipe, out = Path(sys.argv[1]), Path(sys.argv[2])
    fit_without_dropout(recipe, out)
    train([recipe], out)
