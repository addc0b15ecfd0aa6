import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jingyin import Scorer

pytestmark = pytest.mark.exhaustive

SCRIPT = Path(__file__).parent / "in_processes.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_two_processes_give_the_network_of_one(tiny_run, write_recipe, tmp_path):
    command = [*TORCHRUN, str(SCRIPT), str(write_recipe("tiny")), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "tiny"
    one, two = (load_file(each / "network" / "model.safetensors") for each in (tiny_run, run))
    for name, weights in one.items():
        np.testing.assert_allclose(two[name], weights, atol=2e-3, err_msg=name)
    metrics = [json.loads((each / "metrics.json").read_text(encoding="utf-8")) for each in (tiny_run, run)]
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-3)
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["processes"] == 2
    assert Scorer.load(run / "bundle").score("想让手机安静，转三百到这个号，钱到就停").label == "pay_to_stop"
