import shlex

from jingyin.train.runs import command, versions


def test_a_command_can_be_given_again(monkeypatch):
    given = ["/usr/bin/jingyin", "train", "my recipes/a.yaml", "--out", "runs"]
    monkeypatch.setattr("sys.argv", given)
    assert command() == "jingyin train 'my recipes/a.yaml' --out runs"
    assert shlex.split(command()) == ["jingyin", *given[1:]]


def test_versions_of_all_that_fits_or_runs_a_network():
    assert {"torch", "numpy", "scipy", "scikit-learn", "onnxruntime"} <= set(versions())
