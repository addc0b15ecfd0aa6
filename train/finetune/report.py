"""What fine-tuning changed: counts on messages that neither network was trained on, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jingyin.model.bundle import Threshold
from jingyin.model.decision import FLAGGED_INDEX
from jingyin.model.labels import LABELS, Verdict
from jingyin.serve.scorer import Scorer
from jingyin.train.corpus.store import Row
from jingyin.train.evaluate.verdicts import verdicts
from jingyin.train.finetune.corpus import TRAFFIC
from jingyin.train.finetune.read import SIDES

SOURCES = {"own": "own messages", "authored": "authored messages", TRAFFIC: "own traffic"}

_BENIGN = ("ordinary", "lawful_collection")
_REPORT = """# Fine-tuning report

Bundle `{after}` against `{before}`, on messages that were not trained on. Flagged: reviewed or blocked.

| messages | | rows | before | after |
|---|---|---|---|---|
{counts}

| action | risk at least | ordinary rows | false positives | 95% upper bound |
|---|---|---|---|---|
{thresholds}

The decision is in promotion.json, metrics by family in what `jingyin evaluate bundle corpus/test.parquet` writes.
"""


@dataclass(frozen=True)
class Count:
    """Of `rows` messages of a source, how many `before` and `after` were flagged, or given their label."""

    source: str
    what: str
    rows: int
    before: int
    after: int


def compare(before: Scorer, after: Scorer, rows: Sequence[Row]) -> list[Count]:
    """Let both bundles decide on held-out rows, and count by source."""
    texts = [row.text for row in rows]
    decided = verdicts(before, texts), verdicts(after, texts)
    flags = [np.array([each.action != "pass" for each in side]) for side in decided]
    right = [_right(rows, side) for side in decided]
    counts = []
    for source in SOURCES:
        here = np.array([row.source == source for row in rows])
        threats = here & np.array([row.label in _flagged() for row in rows])
        benign = here & np.array([row.label in _BENIGN for row in rows])
        named = here & np.array([row.family not in SIDES for row in rows])
        kinds = (
            ("threats flagged", threats, flags),
            ("ordinary and lawful flagged", benign, flags),
            ("label right", named, right),
        )
        for what, some, found in kinds[: 2 if source == TRAFFIC else 3]:
            if some.any():
                counts.append(Count(source, what, int(some.sum()), *(int(each[some].sum()) for each in found)))
    return counts


def _flagged() -> list[str]:
    return [LABELS[i] for i in FLAGGED_INDEX]


def _right(rows: Sequence[Row], decided: Sequence[Verdict]) -> NDArray[np.bool_]:
    return np.array([each.label == row.label for row, each in zip(rows, decided, strict=True)])


def write_report(
    path: Path, ids: Mapping[str, str], counts: Sequence[Count], thresholds: Mapping[str, Threshold]
) -> None:
    """Write report.md: `ids` of the bundles before and after, counts, and the thresholds by action."""
    lines = [
        f"| {SOURCES[each.source]} | {each.what} | {each.rows} | {each.before} | {each.after} |" for each in counts
    ]
    bounds = [
        f"| {action} | {each.risk:.4f} | {each.rows} | {each.false_positives} | {each.bound:.6f} |"
        for action, each in thresholds.items()
    ]
    path.write_text(_REPORT.format(**ids, counts="\n".join(lines), thresholds="\n".join(bounds)), encoding="utf-8")
