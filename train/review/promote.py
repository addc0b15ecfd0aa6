"""`jingyin promote`: may a candidate replace the incumbent? Checks, each with its reason."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from jingyin.model.bundle import read_bundle
from jingyin.model.errors import InputError
from jingyin.model.labels import FLAGGED, LABELS
from jingyin.serve.scorer import Scorer
from jingyin.train.evaluate.baselines import served
from jingyin.train.evaluate.evaluation import open_bundle
from jingyin.train.evaluate.evasion import Disturbed, disturb, flags_before_and_after
from jingyin.train.evaluate.figures import (
    Bools,
    Estimate,
    estimate,
    mean_difference,
    recalls_at,
    refuse_few,
    share_difference,
)
from jingyin.train.evaluate.judge import RATES, Judged, flag_pairs, judge, label_pairs, split
from jingyin.train.evaluate.latency import bare_scorer, latencies, size, timed_sample
from jingyin.train.evaluate.messages import Messages, read_messages
from jingyin.train.evaluate.slices import families
from jingyin.train.packing.thresholds import rows_needed, upper_bound
from jingyin.train.yaml_file import read_yaml


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Slack(_Model):
    """How much a benign family's false-positive bound may rise, by action."""

    review: float = Field(ge=0, lt=1)
    block: float = Field(ge=0, lt=1)


class Config(_Model):
    """configs/promote.yaml: the data to judge on, and how much may be lost."""

    data: list[Path] = Field(min_length=1)
    family_slack: Slack
    latency_ratio: float = Field(ge=1)
    size_ratio: float = Field(ge=1)


@dataclass(frozen=True)
class Check:
    """One condition, whether the candidate holds it, and the figures that say so."""

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Decision:
    """Whether `candidate` may replace `incumbent` (bundle ids), and why; `files` gives the sha256 of the data."""

    promote: bool
    candidate: str
    incumbent: str
    files: dict[str, str]
    checks: list[Check]


@dataclass(frozen=True)
class _Side:
    """One of the two bundles and what it says of the messages."""

    path: Path
    scorer: Scorer
    judged: Judged

    def reaches(self, action: Literal["review", "block"]) -> Bools:
        """Return which rows (n,) reach a threshold."""
        risk: float = getattr(self.scorer.bundle.manifest, action).risk
        return self.judged.scores.risks >= risk


def promote(candidate: Path, incumbent: Path, config_path: Path, out: Path) -> Decision:
    """Judge both bundles on the same messages, write the decision as JSON to `out`, and return it.

    Raises ConfigError for a bad configuration, InputError for data that can't be used or bundles with different labels.
    """
    config: Config = read_yaml(config_path, TypeAdapter(Config))
    refuse_different_labels(candidate, incumbent)
    messages = read_messages(config.data)
    refuse_few(int(messages.benign.sum()), RATES)
    new, old = (_side(path, messages) for path in (candidate, incumbent))
    checks = [
        *_family_checks(new, old, messages, config.family_slack),
        *_recall_checks(new.judged, old.judged, messages),
        *_evasion_checks(new.judged, old.judged, messages),
        *_pair_checks(new.judged, old.judged, messages),
        *_cost_checks(new, old, messages, config),
    ]
    ids = [side.scorer.bundle.manifest.id for side in (new, old)]
    decision = Decision(all(check.passed for check in checks), ids[0], ids[1], messages.files, checks)
    out.write_text(json.dumps(asdict(decision), indent=1) + "\n", encoding="utf-8")
    return decision


def refuse_different_labels(candidate: Path, incumbent: Path) -> None:
    """Raise InputError that names both label sets when they differ."""
    new, old = (read_bundle(path).manifest.labels for path in (candidate, incumbent))
    if set(new) != set(old):
        raise InputError(
            f"candidate {candidate} has labels {', '.join(new)}, incumbent {incumbent} has {', '.join(old)}; bundles of "
            "different label sets can't be compared: train the candidate on the incumbent's labels"
        )


def _side(path: Path, messages: Messages) -> _Side:
    scorer = open_bundle(path)
    return _Side(path, scorer, judge(served(scorer), messages))


def _family_checks(new: _Side, old: _Side, messages: Messages, slack: Slack) -> Iterator[Check]:
    """No benign family's bound may rise beyond the slack, nor its rate beyond chance; nor those of all together."""
    rows = {"all benign": np.flatnonzero(messages.benign), **families(messages, messages.benign)}
    for action in ("review", "block"):
        reaching = [side.reaches(action) for side in (new, old)]
        allowed: float = getattr(slack, action)
        for family, index in rows.items():
            yield _family_check(f"{action}: {family}", reaching[0][index], reaching[1][index], allowed)


def _family_check(name: str, new: Bools, old: Bools, slack: float) -> Check:
    counts = [int(each.sum()) for each in (new, old)]
    bounds = [upper_bound(count, len(new)) for count in counts]
    passed = bounds[0] <= bounds[1] + slack and share_difference(new, old).low <= 0
    return Check(
        name, passed,
        f"{counts[0]} of {len(new)} benign messages (bound {bounds[0]:.2%}) against {counts[1]} (bound {bounds[1]:.2%})",
    )  # fmt: skip


def _recall_checks(new: Judged, old: Judged, messages: Messages) -> Iterator[Check]:
    """Recall may not fall beyond the interval of its difference, at review and at fixed false-positive rates."""
    for label in FLAGGED:
        rows = messages.labels == LABELS.index(label)
        yield _not_lower(f"recall: {label}", new.flags[rows], old.flags[rows])
    recalls = recalls_at([split(each.scores.risks, messages) for each in (new, old)], RATES)
    for i, target in enumerate(RATES):
        if messages.benign.sum() >= rows_needed(target):
            change = estimate(recalls[:, 0, i] - recalls[:, 1, i])
            values = f"{recalls[0, 0, i]:.1%} against {recalls[0, 1, i]:.1%}"
            yield Check(f"recall at {target:.1%}", change.high >= 0, f"{values}, {_change(change)}")


def _evasion_checks(new: Judged, old: Judged, messages: Messages) -> Iterator[Check]:
    """Under evasion recall may not fall, nor false positives rise, beyond chance; held-out families apart."""
    disturbed = disturb(messages)
    for held_out, name in ((False, "trained"), (True, "held-out")):
        some = [each for each in disturbed if each.held_out is held_out]
        shares = [_shares(each, some, len(messages)) for each in (new, old)]
        for kind, among in (("recall", messages.flagged), ("false positives", messages.benign)):
            both = [share[among & ~np.isnan(shares[0])] for share in shares]
            change = mean_difference(both[0] - both[1])
            passed = change.high >= 0 if kind == "recall" else change.low <= 0
            values = f"{both[0].mean():.1%} against {both[1].mean():.1%}"
            yield Check(f"evasion, {name}: {kind}", passed, f"{values}, {_change(change)}")


def _shares(judged: Judged, disturbed: Sequence[Disturbed], rows: int) -> NDArray[np.float64]:
    """Return for each row (n,) the share of its disguises that are flagged; nan for rows without a disguise.

    By row, since disguises of one message are no independent messages.
    """
    flagged: dict[int, list[bool]] = defaultdict(list)
    for each, _, after in flags_before_and_after(judged.system, disturbed, judged.flags):
        for row, flag in zip(each.index.tolist(), after.tolist(), strict=True):
            flagged[row].append(flag)
    out = np.full(rows, np.nan)
    for row, flags in flagged.items():
        out[row] = np.mean(flags)
    return out


def _pair_checks(new: Judged, old: Judged, messages: Messages) -> Iterator[Check]:
    flags = [flag_pairs(each.flags, messages) for each in (new, old)]
    labels = [label_pairs(each.predicted, messages) for each in (new, old)]
    for name, (first, second) in (("minimal pairs", flags), ("minimal pairs, labels", labels)):
        if len(first):
            yield _not_lower(name, first, second)


def _cost_checks(new: _Side, old: _Side, messages: Messages, config: Config) -> Iterator[Check]:
    for prefilter, name in ((True, "latency"), (False, "latency of the networks alone")):
        ways = [bare_scorer(side.path, prefilter=prefilter).score for side in (new, old)]
        first, second = (each.mean for each in latencies(ways, timed_sample(messages.texts)))
        yield Check(name, first <= second * config.latency_ratio, f"mean {first:.2f} ms against {second:.2f} ms")
    first, second = size(new.path), size(old.path)
    yield Check("size", first <= second * config.size_ratio, f"{first / 1e6:.1f} MB against {second / 1e6:.1f} MB")


def _not_lower(name: str, new: Bools, old: Bools) -> Check:
    change = share_difference(new, old)
    values = f"{int(new.sum())} of {len(new)} against {int(old.sum())}"
    return Check(name, change.high >= 0, f"{values}, {_change(change)}")


def _change(change: Estimate) -> str:
    return f"{change.value:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"
