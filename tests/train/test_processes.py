import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from jingyin import Scorer
from jingyin.model.errors import ConfigError
from jingyin.train import fit

SCRIPT = Path(__file__).parent / "without_dropout.py"


def logged(out: Path, *keys: str) -> list[float]:
    history = json.loads((out / "checkpoints" / "checkpoint-40" / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for key in keys for entry in history if key in entry]


def test_two_processes_give_the_losses_of_one(write_recipe, tmp_path):
    recipe = write_recipe("tiny")
    one, two = tmp_path / "one", tmp_path / "two"
    runpy.run_path(str(SCRIPT))["fit_without_dropout"](recipe, one)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, str(SCRIPT), str(recipe), str(two)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # Not eval_loss: to fill the last batch evenly the Trainer counts some of its rows twice, in the loss alone.
    keys = ("loss", "grad_norm", "eval_macro_f1", "eval_flagged_ap")
    assert len(logged(one, *keys)) == 8
    assert logged(two, *keys) == pytest.approx(logged(one, *keys), abs=1e-4)
    facts = json.loads((two / "tiny" / "run.json").read_text(encoding="utf-8"))
    assert facts["processes"] == 2
    assert Scorer.load(two / "tiny" / "bundle").score("想让手机安静，转三百到这个号，钱到就停").label == "pay_to_stop"


def test_a_batch_that_processes_cannot_share(monkeypatch):
    class Three:
        num_processes = 3

    monkeypatch.setattr(fit, "PartialState", Three)
    with pytest.raises(ConfigError, match="batch_size 16 can't be shared by 3 processes; make it a multiple"):
        fit._share(16, 100)
    assert fit._share(18, 100) == 6


def test_the_order_of_rows_depends_on_seed_and_epoch_alone():
    lengths = [5, 9, 2, 7, 7, 3, 1, 8, 6, 4]
    sampler = fit.LengthGrouped(lengths, 4, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    assert len(first) == len(sampler) == 8
    assert len(set(first)) == 8
    sampler.set_epoch(1)
    assert list(sampler) != first
