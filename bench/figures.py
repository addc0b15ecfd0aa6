"""README's figures of a bundle, by scoring alone: real traffic by source, cases, writers, frames.

    python bench/figures.py model/default runs/corpus-default/test.parquet --quoted real_dev3.jsonl

Reads the test split of configs/default/corpus.yaml, and with --quoted the development set: real messages as JSON lines
with text, label, blind (a second reader's label), verbatim, fragment and borderline. Takes three minutes on two cores.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import pyarrow.parquet as pq

from jingyin import Scorer
from jingyin.model.labels import FLAGGED
from jingyin.train.corpus.company import framed, frames_of
from jingyin.train.corpus.public import SOURCES
from jingyin.train.evaluate.attacks import FRAME_MARKS

KEPT_OUT = ("mudou2014", "weibo", "waimai")
WRITERS = ("r15", "r16", "r20")
FRAMED = 300


def split_texts(file: Path) -> dict[str, list[str]]:
    """Return the texts of the test split by the name of their row in the table."""
    columns = ["text", "label", "source", "case", "writer", "evasion"]
    rows = [row for row in pq.read_table(file, columns=columns).to_pylist() if not row["evasion"]]
    real = [row for row in rows if row["source"] in SOURCES]
    authored = [row for row in rows if row["source"] == "authored" and row["label"] != "other_threat"]
    texts = {
        "strange traffic": [row["text"] for row in real if row["source"] == "strange"],
        "kept-out traffic": [row["text"] for row in real if row["source"] in KEPT_OUT],
        "known traffic": [row["text"] for row in real if row["source"] not in (*KEPT_OUT, "strange")],
        "lawful reminders": [row["text"] for row in authored if row["label"] == "lawful_collection"],
    }
    for name, among in (("cases", [r for r in authored if r["case"]]), ("writers", _by_writers(authored))):
        texts[f"unseen {name}: threats"] = [row["text"] for row in among if row["label"] in FLAGGED]
        texts[f"unseen {name}: innocents"] = [row["text"] for row in among if row["label"] not in FLAGGED]
    return texts | in_frames(texts["unseen cases: threats"])


def _by_writers(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    return [row for row in rows if row["writer"] in WRITERS]


def in_frames(threats: Sequence[str]) -> dict[str, list[str]]:
    """Return FRAMED threats handed on and reported, in frames of the test split, by marks."""
    rng = Random(5)
    drawn, frames = rng.sample(threats, min(FRAMED, len(threats))), frames_of("test")
    return {
        f"{kind}, marks {name}": [framed(text, rng.choice(frames[kind])[0], rng, marks).text for text in drawn]
        for kind in ("passed_on", "report")
        for name, marks in FRAME_MARKS.items()
    }


def quoted_texts(file: Path) -> dict[str, list[str]]:
    """Return the texts of the development set on whose side both readers agree."""
    rows = [json.loads(line) for line in file.read_bytes().splitlines()]
    rows = [row for row in rows if not row["fragment"] and not row["borderline"]]
    rows = [row for row in rows if (row["label"] in FLAGGED) == (row["blind"] in FLAGGED)]
    threats = [row for row in rows if row["label"] in FLAGGED]
    return {
        "development set: threats, verbatim": [row["text"] for row in threats if row["verbatim"]],
        "development set: threats, retold": [row["text"] for row in threats if not row["verbatim"]],
        "development set: innocents": [
            row["text"] for row in rows if row["label"] not in FLAGGED and row["label"] != "other_threat"
        ],
    }


def main() -> None:
    """Print a Markdown table: how many texts of each kind, flagged, blocked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--quoted", type=Path)
    options = parser.parse_args()
    texts = split_texts(options.test) | (quoted_texts(options.quoted) if options.quoted else {})
    scorer = Scorer.load(options.bundle)
    print(f"| {scorer.bundle.manifest.id} | texts | flagged | blocked |\n|---|---|---|---|")
    for name, some in texts.items():
        actions = [verdict.action for verdict in scorer.score_many(some, processes=2 if len(some) > 5_000 else 1)]
        flagged, blocked = len(some) - actions.count("pass"), actions.count("block")
        print(
            f"| {name} | {len(some)} | {flagged} ({flagged / len(some):.2%}) | {blocked} ({blocked / len(some):.2%}) |"
        )


if __name__ == "__main__":
    main()
