"""Reports the changes from fine-tuning: counts before and after, and whether the new bundle may replace the old one."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from jingyin.model.files import atomic_file, write_json
from jingyin.model.labels import BENIGN, FLAGGED, Verdict
from jingyin.model.text import clean
from jingyin.serve.label_studio import task
from jingyin.serve.memory.known import FEWEST as SHORTEST
from jingyin.serve.scorer import Scorer
from jingyin.train.corpus import store
from jingyin.train.corpus.public import CASES, OWN, SOURCES, USERS
from jingyin.train.corpus.store import SPLITS, Row
from jingyin.train.data import SIDES
from jingyin.train.evaluate.systems import verdicts
from jingyin.train.promote import Promotion, default_config, promote

TRAFFIC = "jsonl"
"""Source of the traffic: a corpus's name for the user's own messages that are not hand-picked."""


@dataclass(frozen=True)
class Count:
    """Of `rows` messages of a source, how many `before` and `after` were flagged, or given their label."""

    source: str
    what: str
    rows: int
    before: int
    after: int


@dataclass(frozen=True)
class FinetuneResult:
    """Result of a fine-tuning: rows left out, counts before and after, own rows still misjudged, the decision."""

    rejected: int
    counts: list[Count]
    disobeyed: int
    promote: bool
    failed: list[str]


_TRAINED_ON = "own messages trained on"
_SOURCES = {OWN: "own messages", CASES: "decided cases", TRAFFIC: "own traffic"}
_REPORT = """# Fine-tuning report

Bundle `{after}` against `{before}`. Only the first rows were trained on. Flagged means reviewed or blocked.

| messages | | rows | before | after |
|---|---|---|---|---|
{counts}

| action | risk at least | ordinary rows | false positives | 95% upper bound |
|---|---|---|---|---|
{thresholds}

{disobeyed} of your messages are still judged differently from their labels. disobeyed.json lists them as Label Studio
tasks; look there for wrong labels. `jingyin known add --file known.jsonl` makes a running service obey them. \
promotion.json has the decision. For metrics by family run
`jingyin evaluate bundle corpus/test.parquet --out evaluation`.
"""


def judge(old_scorer: Scorer, corpus: Path, rejected: int, out: Path) -> FinetuneResult:
    """Write report, tasks and decision."""
    new_scorer, splits = Scorer.load(out / "bundle"), store.read(corpus)
    own_rows = [row for split in SPLITS for row in splits[split] if row.source in USERS and not row.evasion]
    judged, held_out = (
        [verdicts(scorer, [row.text for row in rows]) for scorer in (old_scorer, new_scorer)]
        for rows in (own_rows, splits["test"])
    )
    trained = sum(row.source in USERS and not row.evasion for row in splits["train"])
    counts = _counts(_TRAINED_ON, own_rows[:trained], [side[:trained] for side in judged])
    for source in dict.fromkeys([*_SOURCES, ""]):
        rows = [i for i, row in enumerate(splits["test"]) if (row.source if row.source in _SOURCES else "") == source]
        name = _SOURCES.get(source, "other messages")
        counts += _counts(name, [splits["test"][i] for i in rows], [[side[i] for i in rows] for side in held_out])
    manifest = new_scorer.bundle.manifest
    disobeyed = [
        (row, verdict) for row, verdict in zip(own_rows, judged[1], strict=True)
        if (verdict.action != "pass") != (row.label in FLAGGED)
    ]  # fmt: skip
    write_json(out / "disobeyed.json", [
        task({"text": row.text, "reason": f"labelled {row.family}, judged {verdict.label}"}, verdict.label,
             verdict.risk, manifest.id)
        for row, verdict in disobeyed
    ])  # fmt: skip
    write_rows(out / "known.jsonl", (
        {"text": row.text, "action": "block" if row.label in FLAGGED else "pass", "note": f"labelled {row.family}"}
        for row, _ in disobeyed
        if len(clean(row.text).text) >= SHORTEST
    ))  # fmt: skip
    lines = [f"| {count.source} | {count.what} | {count.rows} | {count.before} | {count.after} |" for count in counts]
    bounds = [
        f"| {name} | {each.risk:.4f} | {each.rows} | {each.false_positives} | {each.bound:.6f} |"
        for name, each in (("review", manifest.review), ("block", manifest.block))
    ]
    text = _REPORT.format(
        before=old_scorer.bundle.manifest.id, after=manifest.id, counts="\n".join(lines), thresholds="\n".join(bounds),
        disobeyed=len(disobeyed),
    )  # fmt: skip
    (out / "report.md").write_text(text, encoding="utf-8")
    decision = decide(out, old_scorer.bundle.path, _pooled(splits))
    failed = [f"{check.name}: {check.reason}" for check in decision.checks if not check.passed]
    return FinetuneResult(rejected, counts, len(disobeyed), decision.promote, failed)


def _counts(name: str, rows: Sequence[Row], by_bundle: Sequence[Sequence[Verdict]]) -> list[Count]:
    """Count both bundles' verdicts on rows: `by_bundle` holds them, before and after."""
    threats = [row.label in FLAGGED for row in rows]
    # The incumbent may take a message labelled only as not flagged for another threat.
    benign = [row.label in BENIGN or row.family == SIDES[1] for row in rows]
    named = [row.family not in SIDES for row in rows]
    flags = [[each.action != "pass" for each in judged] for judged in by_bundle]
    right = [[each.label == row.label for row, each in zip(rows, judged, strict=True)] for judged in by_bundle]
    kinds = (
        ("threats flagged", threats, flags),
        ("ordinary and lawful flagged", benign, flags),
        ("label right", named, right),
    )
    return [
        Count(name, what, sum(counted), *(sum(np.logical_and(judged, counted).tolist()) for judged in decisions))
        for what, counted, decisions in kinds
        if any(counted)
    ]


def _pooled(splits: Mapping[str, Sequence[Row]]) -> int:
    """Return how many rows of the test split `promote` pools as traffic: of sources kept out of training, else all."""
    known = {row.source for row in splits["train"]}
    real = [row.source for row in splits["test"] if row.source in SOURCES and row.label in BENIGN]
    return sum(source not in known for source in real) or len(real)


def decide(run: Path, incumbent: Path, traffic: int) -> Promotion:
    """Judge `run`/bundle on the test split of `run`/corpus, of which `traffic` rows are pooled as traffic.

    Writes promotion.json. The configuration is the package's, but with few messages of traffic one may reach each
    action: a thousand can't show a rate of 1 in 10,000.
    """
    config = yaml.safe_load(default_config().read_text(encoding="utf-8"))
    config["data"] = [str(run / "corpus" / "test.parquet")]
    config["traffic"] = {
        # A rate is below 1: a single message shows none.
        action: max(rate, min(0.5, 1 / traffic)) if traffic else rate
        for action, rate in config["traffic"].items()
    }
    file = run / "promote.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return promote(run / "bundle", incumbent, file, run / "promotion.json")


def write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write rows as JSON lines."""
    with atomic_file(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
