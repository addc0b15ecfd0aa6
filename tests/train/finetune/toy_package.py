"""A copy of the installed package by links, with other contents: few made-up messages, lax conditions, a toy bundle.

With its folder on PYTHONPATH every `jingyin` command, and every process it starts, takes these for the package's own.
"""

from collections.abc import Collection
from pathlib import Path
from random import Random

import yaml
from tests import json_lines
from tests.train.conftest import FILLER, PHRASES

import jingyin
from jingyin.train.corpus.rows import FOLDERS

MESSAGES = {"ordinary": 500, "lawful_collection": 250, "debt_threat": 250, "pay_to_stop": 250, "other_threat": 120}
CORPUS = {
    "seed": 20,
    "draws": 1,
    "evasion": {"share": 0.3},
    "splits": {"train": 0.4, "validation": 0.2, "calibration": 0.2, "test": 0.2},
}
_ANY = {"review": 0.99, "block": 0.99}
CONDITIONS = {
    "data": ["runs/corpus/test.parquet"],
    **dict.fromkeys(
        ("traffic", "worst_source", "lawful", "plain", "everyday", "nonsense", "threats", "innocents"), _ANY
    ),
    "plain_threats": 0.0,
    "family": 0.99,
    "pairs": 0.99,
    "latency_ratio": 100.0,
    "size_ratio": 10.0,
}


def make_package(folder: Path) -> Path:
    """Make `folder`/jingyin, all but its bundle; returns where that belongs."""
    package, here = Path(jingyin.__file__).parent, folder / "jingyin"
    _link(package, here, without=("model", "train", "configs"))
    _link(package / "model", here / "model", without=("default",))
    _link(package / "train", here / "train", without=("rows",))
    _link(package / "train" / "rows", here / "train" / "rows", without=FOLDERS)
    _link(package / "configs", here / "configs", without=("corpus.yaml", "promote.yaml", "default"))
    _write_messages(here / "train" / "rows")
    (here / "configs" / "default").mkdir()
    for name, content in (("corpus", CORPUS), ("default/corpus", CORPUS), ("promote", CONDITIONS)):
        (here / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return here / "model" / "default"


def _link(source: Path, target: Path, without: Collection[str]) -> None:
    target.mkdir(parents=True)
    for each in source.iterdir():
        if each.name not in without:
            (target / each.name).symlink_to(each.resolve())


def _write_messages(folder: Path) -> None:
    """Write made-up messages, dealt out to all folders; none is like another one."""
    rng = Random(5)
    rows = [
        {"text": _message(label, rng), "label": label, "family": f"{label}_{number % 3}", "voice": "plain"}
        for label, count in MESSAGES.items()
        for number in range(count)
    ]
    for number, name in enumerate(FOLDERS):
        json_lines.write(folder / name / "made_up.jsonl", rows[number :: len(FOLDERS)])


def _message(label: str, rng: Random) -> str:
    """Make up a message; a fifth of its parts is another label's, so that some messages lie near a threshold."""
    before, after = ("".join(rng.choices(FILLER, k=rng.randint(5, 12))) for _ in range(2))
    shown = [label if rng.random() < 0.8 else rng.choice(list(PHRASES)) for _ in PHRASES[label]]
    return "，".join((before, *(rng.choice(PHRASES[each][i]) for i, each in enumerate(shown)), after))
