"""Measures the gain from fine-tuning: messages flagged before and after, as decided and at equal false alarms.

    python bench/finetune.py cases OUT ROWS TRAFFIC       # own rows of situations that the bundle has not seen
    python bench/finetune.py traffic OUT ROWS TRAFFIC     # own traffic alone, of a kind that it has not seen
    python bench/finetune.py innocents OUT ROWS TRAFFIC   # own false alarms
    python bench/finetune.py families OUT ROWS TRAFFIC    # a bundle trained without three families learns them

ROWS are JSON lines with text, label and case (train/rows/cases/*.jsonl), TRAFFIC JSON lines with a text each, which are
ordinary. Neither may have trained the bundle (--bundle, by default the package's). Each run folder is kept: the same
command resumes. Nothing that is counted was trained on, "own rows" apart.

cases       half of the rows of half of the cases, and 5,000 messages of the traffic, are fine-tuned on
traffic     5,000 messages of the traffic are
innocents   200 of the innocents that the bundle flags are, and 5,000 messages of the traffic; none of another's case
families    ROWS train nothing; 50, 200 and 500 threats of the families, as many innocents, and 5,000 messages of the
            traffic are fine-tuned on
"""

import argparse
import asyncio
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np
import yaml

from jingyin.model.bundle import default_path
from jingyin.model.labels import ACTIONS, BENIGN, FLAGGED, Verdict
from jingyin.model.text import clean
from jingyin.serve.memory.known import Known, NewWording, holds
from jingyin.serve.memory.secret import Secret
from jingyin.serve.memory.state import Local
from jingyin.serve.scorer import Scorer
from jingyin.train.corpus import store
from jingyin.train.corpus.build import build
from jingyin.train.corpus.rows import default_folders
from jingyin.train.corpus.slots import fill_slots
from jingyin.train.corpus.store import Row
from jingyin.train.finetune import default_replay, finetune
from jingyin.train.finetune_data import Columns
from jingyin.train.pipeline import train

HERE = Path(__file__).parent
FAMILIES = ("bad_review", "denunciation", "protection_money")
SIZES = (50, 200, 500)
RATE = 2_000
"""Equal false alarms: one in this many messages of the held-out traffic."""

MessageRow = Mapping[str, str]


def cases(options: argparse.Namespace, rows: list[MessageRow], traffic: list[str]) -> None:
    """Fine-tune on half of the rows of half of the cases."""
    rng = Random(options.seed)
    names = sorted({row["case"] for row in rows})
    mine = set(rng.sample(names, len(names) // 2))
    held = [row for row in rows if row["case"] in mine]
    rng.shuffle(held)
    half = len(held) // 2
    sets = {"own rows": held[:half], "the same situations": held[half:]}
    sets["other situations"] = [row for row in rows if row["case"] not in mine]
    _finetuned(options, options.out / "run", held[:half], traffic[:5_000])
    show(options.bundle, options.out / "run" / "bundle", sets, traffic[5_000:])
    actions = asyncio.run(_with_known_wordings(options.out / "run", held[:half]))
    for kind, some in (("threats", FLAGGED), ("innocents", BENIGN)):
        counted = np.array([row["label"] in some for row in held[:half]])
        _line(f"own rows | {kind}, with known.jsonl", counted, [actions])


async def _with_known_wordings(run: Path, rows: Sequence[MessageRow]) -> np.ndarray:
    """Return the actions (n,) of a service that also knows the wordings which its bundle disobeys."""
    scorer, known = Scorer.load(run / "bundle"), Known(Local(), Secret(bytes(32), encrypts=False))
    for line in read(run / "known.jsonl"):
        await known.add(NewWording.model_validate(line), "bench", scorer.score(line["text"]).risk)
    actions = []
    for row in rows:
        verdict = scorer.score(row["text"])
        matches = [each for each in known.index.find(clean(row["text"]).text) if holds(each, verdict.risk)]
        actions.append(ACTIONS.index(matches[0].wording.action if matches else verdict.action))
    return np.array(actions)


def traffic(options: argparse.Namespace, rows: list[MessageRow], traffic: list[str]) -> None:
    """Fine-tune on 5,000 messages of traffic."""
    _finetuned(options, options.out / "run", [], traffic[:5_000])
    show(options.bundle, options.out / "run" / "bundle", {"unseen situations": rows}, traffic[5_000:])


def innocents(options: argparse.Namespace, rows: list[MessageRow], traffic: list[str]) -> None:
    """Fine-tune on false alarms, and judge those of other cases."""
    verdicts = Scorer.load(options.bundle).score_many([row["text"] for row in rows])
    alarms = [row for row, each in zip(rows, verdicts, strict=True) if row["label"] in BENIGN and each.action != "pass"]
    names = sorted({row["case"] for row in alarms})
    Random(options.seed).shuffle(names)
    alarms.sort(key=lambda row: names.index(row["case"]))
    own = alarms[:200]
    used = {row["case"] for row in own}
    sets = {"own rows": own, "other false alarms": [row for row in alarms if row["case"] not in used]}
    sets["other messages"] = [row for row in rows if row["case"] not in used]
    _finetuned(options, options.out / "run", own, traffic[:5_000])
    show(options.bundle, options.out / "run" / "bundle", sets, traffic[5_000:])


def families(options: argparse.Namespace, rows: list[MessageRow], traffic: list[str]) -> None:
    """Train a bundle without some families, and fine-tune it with some of their messages and as many innocents."""
    rest = options.out / "rows"
    for folder in default_folders():
        for file in folder.rglob("*.jsonl"):
            lines = [line for line in read(file) if not (line["family"] in FAMILIES and line["label"] in FLAGGED)]
            alone = {line["pair"] for line in lines if line.get("pair")} - _twice(lines)
            _write(rest / folder.name / file.name, [line for line in lines if line.get("pair") not in alone])
    replay = options.out / "replay.yaml"
    content = yaml.safe_load(default_replay().read_text(encoding="utf-8")) | {"authored": str(rest), "public": []}
    replay.write_text(yaml.safe_dump(content), encoding="utf-8")
    whole, base = options.out / "whole", options.out / "base.yaml"
    if not store.is_built(whole):
        whole.with_suffix(".yaml").write_text(
            yaml.safe_dump({key: value for key, value in content.items() if key != "authored"}), encoding="utf-8"
        )
        build(whole.with_suffix(".yaml"), whole)
    recipe = yaml.safe_load((HERE / "data" / "finetune_base.yaml").read_text(encoding="utf-8"))
    base.write_text(yaml.safe_dump(recipe | {"corpus": str(replay.resolve())}), encoding="utf-8")
    bundle = options.bundle = train([base], options.out) / "bundle"
    splits = store.read(whole)
    new, innocents = _plain(splits["train"], new=True), _plain(splits["train"], new=False)
    sets = {"the new families": _plain(splits["test"], new=True), "other threats": rows}
    for size in SIZES:
        rng = Random(f"{size} {options.seed}")
        run = options.out / f"run-{size}"
        _finetuned(options, run, [*rng.sample(new, size), *rng.sample(innocents, size)], traffic[:5_000], replay)
        print(f"\n{size} threats of the new families:\n")
        show(bundle, run / "bundle", sets, traffic[5_000:])


def _plain(rows: Sequence[Row], *, new: bool) -> list[MessageRow]:
    """Return messages as they stand: threats of the families, or innocents."""
    return [
        {"text": row.text, "label": row.label}
        for row in rows
        if not row.evasion and (row.label in FLAGGED and row.family in FAMILIES if new else row.label == "ordinary")
    ]


def _twice(rows: Sequence[MessageRow]) -> set[str]:
    pairs = [row["pair"] for row in rows if row.get("pair")]
    return {pair for pair in pairs if pairs.count(pair) == 2}


def _finetuned(
    options: argparse.Namespace,
    run: Path,
    rows: Sequence[MessageRow],
    traffic: Sequence[str],
    replay: Path | None = None,
) -> None:
    own, benign = options.out / f"{run.name}.jsonl", options.out / f"{run.name}-traffic.jsonl"
    _write(own, [{"text": row["text"], "label": row["label"]} for row in rows])
    _write(benign, [{"text": text} for text in traffic])
    finetune(
        [str(own)] if rows else [], run, Columns(), benign=[str(benign)] if traffic else [], bundle=options.bundle,
        corpus=replay, seed=options.seed,
    )  # fmt: skip


def show(before: Path, after: Path, sets: Mapping[str, Sequence[MessageRow]], traffic: Sequence[str]) -> None:
    """Print two bundles' results on labelled messages and on held-out traffic."""
    scorers = [Scorer.load(path, cache_bytes=0) for path in (before, after)]
    on_traffic = [list(scorer.score_many(traffic)) for scorer in scorers]
    least = [sorted((each.risk for each in verdicts), reverse=True)[len(traffic) // RATE] for verdicts in on_traffic]
    print("| | | messages | before | after |\n|---|---|---|---|---|")
    for name, rows in sets.items():
        judged = [list(scorer.score_many([row["text"] for row in rows])) for scorer in scorers]
        threats = np.array([row["label"] in FLAGGED for row in rows])
        for kind, counted in (("threats", threats), ("innocents", ~threats)):
            if counted.any():
                _line(f"{name} | {kind} flagged (blocked)", counted, [_actions(verdicts) for verdicts in judged])
        if not threats.any():
            continue
        risks = [np.array([each.risk for each in side])[threats] > at for side, at in zip(judged, least, strict=True)]
        cells = " | ".join(f"{side.mean():.1%}" for side in risks)
        print(f"| {name} | threats, where 1 in {RATE:,} of the traffic is flagged | {int(threats.sum())} | {cells} |")
    _line("traffic | flagged (blocked)", np.ones(len(traffic), bool), [_actions(verdicts) for verdicts in on_traffic])
    shares = " | ".join(f"{np.mean([each.stage == 'network' for each in verdicts]):.1%}" for verdicts in on_traffic)
    print(f"| traffic | read by networks | {len(traffic)} | {shares} |")


def _actions(found: Sequence[Verdict]) -> np.ndarray:
    return np.array([ACTIONS.index(each.action) for each in found])


def _line(name: str, some: np.ndarray, sides: Sequence[np.ndarray]) -> None:
    cells = " | ".join(f"{int((side[some] > 0).sum())} ({int((side[some] > 1).sum())})" for side in sides)
    print(f"| {name} | {int(some.sum())} | {cells} |")


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file of JSON lines."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.splitlines()]


def _write(path: Path, rows: Sequence[MessageRow]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


WAYS = {"cases": cases, "traffic": traffic, "innocents": innocents, "families": families}


def main() -> None:
    """Run one of the ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(WAYS))
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("rows", type=Path)
    parser.add_argument("traffic", type=Path)
    parser.add_argument("--bundle", type=Path, default=default_path())
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = Random(options.seed)
    rows = [{**row, "text": fill_slots(row["text"], rng)} for row in read(options.rows)]
    texts = [row["text"] for row in read(options.traffic)]
    rng.shuffle(texts)
    WAYS[options.what](options, rows, texts[:20_000])


if __name__ == "__main__":
    main()
