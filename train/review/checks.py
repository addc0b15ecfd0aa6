"""Checks of a candidate against the incumbent, on the same messages: families, recall, evasion, attack, pairs, cost."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jingyin.model.labels import FLAGGED, LABELS
from jingyin.serve.scorer import Scorer
from jingyin.train.evaluate.attack import passing_shares
from jingyin.train.evaluate.baselines import served
from jingyin.train.evaluate.evaluation import open_bundle
from jingyin.train.evaluate.evasion import Disturbed, disturb, flags_before_and_after
from jingyin.train.evaluate.figures import Bools, Estimate, estimate, mean_difference, share_difference
from jingyin.train.evaluate.judge import RATES, Judged, bootstrap_recalls, flag_pairs, judge, label_pairs
from jingyin.train.evaluate.latency import bare_scorer, latencies, size, timed_sample
from jingyin.train.evaluate.messages import Messages
from jingyin.train.evaluate.slices import families, sample_evenly
from jingyin.train.packing.thresholds import rows_needed, upper_bound
from jingyin.train.review.promote_config import PromoteConfig, Rates

ATTACKED = 100
"""Flagged messages on which heads and tails are tried, at most."""


@dataclass(frozen=True)
class Check:
    """One condition, whether the candidate holds it, and the figures that say so."""

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Side:
    """One of the two bundles and what it says of the messages."""

    path: Path
    scorer: Scorer
    judged: Judged

    @classmethod
    def of(cls, path: Path, messages: Messages) -> "Side":
        """Load a bundle and let it judge; raises InputError for other labels than ours."""
        scorer = open_bundle(path)
        return cls(path, scorer, judge(served(scorer), messages))

    def reaches(self, action: Literal["review", "block"]) -> Bools:
        """Return which rows (n,) reach a threshold."""
        risk: float = getattr(self.scorer.bundle.manifest, action).risk
        return self.judged.scores.risks >= risk


def comparison_checks(new: Side, old: Side, messages: Messages, config: PromoteConfig) -> Iterator[Check]:
    """Check that the candidate `new` loses nothing against `old` beyond chance and what the configuration allows."""
    yield from _family_checks(new, old, messages, config.family_slack)
    yield from _recall_checks(new.judged, old.judged, messages)
    yield from _evasion_checks(new.judged, old.judged, messages)
    yield from _attack_checks(new.judged, old.judged, messages)
    yield from _pair_checks(new.judged, old.judged, messages)
    yield from _cost_checks(new, old, messages, config)


def _family_checks(new: Side, old: Side, messages: Messages, slack: Rates) -> Iterator[Check]:
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
    values = [f"{count} (bound {bound:.2%})" for count, bound in zip(counts, bounds, strict=True)]
    return Check(name, passed, f"of {len(new)} benign messages {values[0]} against {values[1]}")


def _recall_checks(new: Judged, old: Judged, messages: Messages) -> Iterator[Check]:
    """Recall may not fall beyond the interval of its difference, at review and at fixed false-positive rates."""
    for label in FLAGGED:
        rows = messages.labels == LABELS.index(label)
        yield _not_lower(f"recall: {label}", new.flags[rows], old.flags[rows])
    recalls = bootstrap_recalls((new, old), messages)
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


def _attack_checks(new: Judged, old: Judged, messages: Messages) -> Iterator[Check]:
    """Heads and tails that say nothing may not make more of the messages pass that both bundles flag."""
    rows = sample_evenly(messages, messages.flagged & new.flags & old.flags, ATTACKED)
    if rows:
        texts = [messages.texts[i] for i in rows]
        passed = [passing_shares(each.system, texts) for each in (new, old)]
        change = mean_difference(passed[0] - passed[1])
        values = f"{passed[0].mean():.1%} pass against {passed[1].mean():.1%}"
        yield Check("heads and tails", change.low <= 0, f"{values}, {_change(change)}")


def _pair_checks(new: Judged, old: Judged, messages: Messages) -> Iterator[Check]:
    flags = [flag_pairs(each.flags, messages) for each in (new, old)]
    labels = [label_pairs(each.predicted, messages) for each in (new, old)]
    for name, (first, second) in (("minimal pairs", flags), ("minimal pairs, labels", labels)):
        if len(first):
            yield _not_lower(name, first, second)


def _cost_checks(new: Side, old: Side, messages: Messages, config: PromoteConfig) -> Iterator[Check]:
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
