"""Runs docs/loop.md, every command of it: from traffic in the queue to a new bundle that serves."""

import json
import re
import shutil
from pathlib import Path

import pytest
from tests.json_lines import read
from tests.serve.http.http_fakes import until
from tests.train.finetune.reading import Reader

from jingyin.model.bundle import read_bundle

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(shutil.which("curl") is None, reason="the page calls curl"),
]  # fmt: skip

PAGE = Path(__file__).parents[3] / "docs" / "loop.md"


def test_every_command_of_the_loop(reader: Reader) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    verbs = ("serve", "cases export", "mine", "finetune", "promote", "evaluate")
    assert all(any(f"jingyin {verb} " in block for block in blocks) for verb in verbs)
    printed = [reader.paste(block, *([1] if block.startswith("jingyin promote") else [])) for block in blocks]
    print(*printed, sep="\n----\n")
    until(lambda: reader.events("reloaded"))

    folder = reader.folder
    traffic, decided = read(folder / "traffic.jsonl"), read(folder / "decided.jsonl")
    assert len(traffic) == 3_000
    assert len(decided) >= 10
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    assert all(row["source"] == "cases" and row["label"] == truth[row["text"]] for row in decided)
    assert {row["text"] for row in read(folder / "mined.jsonl")}.isdisjoint(row["text"] for row in decided)
    old, new = (read_bundle(folder / "bundles" / name).manifest.id for name in ("old", "new"))
    assert {event["bundle"] for event in reader.events("worker_ready")} == {new}  # those that the reload started
    for name, bundle in (("before", old), ("after", new)):
        assert json.loads((folder / name / "evaluation.json").read_text(encoding="utf-8"))["bundle"] == bundle
    decision = json.loads((folder / "promotion.json").read_text(encoding="utf-8"))
    assert (decision["candidate"], decision["incumbent"]) == (new, old)
