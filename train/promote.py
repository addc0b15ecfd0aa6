"""`jingyin promote`: may a candidate replace the incumbent? Checks, each with its reason."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from jingyin.model.bundle import Manifest, default_path, read_bundle
from jingyin.model.errors import InputError
from jingyin.model.labels import FLAGGED, LABELS
from jingyin.serve.scorer import Scorer
from jingyin.train.corpus.perturb import nonsense
from jingyin.train.evaluate.attacks import Disturbed, disturb, flags_before_and_after, passing_shares
from jingyin.train.evaluate.evaluate import open_bundle
from jingyin.train.evaluate.judge import RATES, Judged, bootstrap_recalls, flag_pairs, judge, label_pairs, traffic
from jingyin.train.evaluate.samples import (
    BENIGN,
    Messages,
    families,
    read_messages,
    read_rows,
    refuse_empty_class,
    sample_evenly,
)
from jingyin.train.evaluate.statistics import Bools, Estimate, estimate, mean_difference, refuse_few, share_difference
from jingyin.train.evaluate.systems import bare_scorer, latencies, served, size, timed_sample, verdicts
from jingyin.train.pack.thresholds import rows_needed, upper_bound
from jingyin.train.recipes import read_yaml

# What `jingyin promote` asks of a candidate: configs/promote.yaml.


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rates(_Model):
    """A share for each action, 0 to 1."""

    review: float = Field(ge=0, lt=1)
    block: float = Field(ge=0, lt=1)


class PlainRates(_Model):
    """Shares, 0 to 1, of the plain threats that must be flagged, and of the plain innocents that must pass."""

    flagged: float = Field(ge=0, le=1)
    passed: float = Field(ge=0, le=1)


class PromoteConfig(_Model):
    """The data to judge on, what a candidate must hold by itself, and how much may be lost against the incumbent.

    `traffic` gives the largest share of real messages that may reach each action (the shipping rule), `nonsense` how
    many lines of nonsense are scored, of which none may be flagged, `family_slack` how much a benign family's
    false-positive bound may rise.
    """

    data: list[Path] = Field(min_length=1)
    traffic: Rates
    plain: PlainRates
    nonsense: int = Field(ge=1)
    family_slack: Rates
    latency_ratio: float = Field(ge=1)
    size_ratio: float = Field(ge=1)


_CONFIG: TypeAdapter[PromoteConfig] = TypeAdapter(PromoteConfig)


def load_config(path: Path) -> PromoteConfig:
    """Read a configuration; raises ConfigError that lists all of its errors."""
    return read_yaml(path, _CONFIG)


# Checks of a candidate against the incumbent, on the same messages: families, recall, evasion, attack, pairs, cost.


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


# What a bundle must hold to serve, whatever the one before it does: the shipping rule, plain threats, nonsense.


NONSENSE_SEED = 2018
"""No corpus recipe has it, so no line was trained on."""


def plain_messages() -> Path:
    """Return the file of plain threats and innocents that comes with the package; none of it is in a training row."""
    return Path(str(files("jingyin.train.evaluate").joinpath("plain_threats.jsonl")))


def requirement_checks(side: Side, messages: Messages, config: PromoteConfig) -> Iterator[Check]:
    """Check a bundle against the configuration alone."""
    yield from _traffic_checks(side, messages, config.traffic)
    yield from _plain_checks(side.scorer, config.plain)
    yield _nonsense_check(side.scorer, config.nonsense)


def _traffic_checks(side: Side, messages: Messages, most: Rates) -> Iterator[Check]:
    """Apply the shipping rule: of real traffic no larger a share than configured reaches review, or block."""
    real = traffic(messages)
    rows = int(real.sum())
    rates: dict[Literal["review", "block"], float] = {"review": most.review, "block": most.block}
    for action, wanted in rates.items():
        count = int((side.reaches(action) & real).sum())
        enough = rows > 0 and (wanted == 0 or rows * wanted >= 1)
        bound = f"{count} of {rows} real messages (bound {upper_bound(count, rows):.3%}), wanted at most {wanted:.3%}"
        reason = bound if enough else f"{bound}: so few messages can't show that rate, add real traffic to the data"
        yield Check(f"real traffic: {action}", enough and count <= wanted * rows, reason)


def _plain_checks(scorer: Scorer, wanted: PlainRates) -> Iterator[Check]:
    """Of threats that any person sees at once nearly all must be flagged, and nearly all plain innocents pass."""
    rows = read_rows(plain_messages())
    flagged = _flagged(scorer, [row["text"] for row in rows])
    benign = np.array([row["label"] in BENIGN for row in rows])
    yield _at_least("plain threats: flagged", flagged[~benign], wanted.flagged)
    yield _at_least("plain innocents: passed", ~flagged[benign], wanted.passed)


def _at_least(name: str, right: Bools, wanted: float) -> Check:
    count, rows = int(right.sum()), len(right)
    return Check(name, count >= wanted * rows, f"{count} of {rows}, wanted at least {wanted:.1%}")


def _nonsense_check(scorer: Scorer, lines: int) -> Check:
    count = int(_flagged(scorer, list(nonsense(lines, NONSENSE_SEED))).sum())
    return Check("nonsense", count == 0, f"{count} of {lines} lines flagged, wanted none")


def _flagged(scorer: Scorer, texts: list[str]) -> Bools:
    return np.array([verdict.action != "pass" for verdict in verdicts(scorer, texts)], np.bool_)


# Which rows bundles may be judged on: none that trained one or set its thresholds, as far as their splits are near.


_USED = ("train", "validation", "calibration")


def unused_rows(messages: Messages, data: Sequence[Path], manifests: Sequence[Manifest]) -> tuple[Messages, str]:
    """Return the messages that the bundles of `manifests` were not made with, and a sentence on how that is known.

    A bundle knows the sha256 of its splits. Those that trained it and set its thresholds are looked for beside `data`
    and in the folders next to it; what has its text or template in one is left out. Raises InputError when a file of
    `data` is itself such a split, or no row of a label is left.
    """
    for manifest in manifests:
        _refuse_used(messages, manifest)
    wanted = {hash_ for manifest in manifests for hashes in _used(manifest).values() for hash_ in hashes}
    found = {hash_: path for path in _splits_near(data) if (hash_ := _hash(path)) in wanted}
    taken = {text for path in found.values() for text in _texts(path)}
    both = zip(messages.texts, messages.templates, strict=True)
    left = messages.take(np.array([i for i, names in enumerate(both) if taken.isdisjoint(names)], np.int64))
    refuse_empty_class([LABELS[label] for label in left.labels], data)
    reason = f"{len(messages) - len(left)} of {len(messages)} rows left out: bundles were made with them"
    for id_, splits in {manifest.id: _missing(manifest, found.keys()) for manifest in manifests}.items():
        if splits:
            reason += f"; {', '.join(splits)} of {id_}: not near the data, so their rows can't be told"
    return left, reason


def _refuse_used(messages: Messages, manifest: Manifest) -> None:
    used = {hash_: split for split, hashes in _used(manifest).items() for hash_ in hashes}
    for name, hash_ in messages.files.items():
        if hash_ in used:
            raise InputError(
                f"{name} is the {used[hash_]} split that bundle {manifest.id} was made with; name the test split, or "
                "other messages that neither bundle has seen"
            )


def _used(manifest: Manifest) -> dict[str, list[str]]:
    """Return the hashes of each of _USED: of the run that trained a bundle, and of the one that calibrated it anew."""
    provenance: Mapping[str, Any] = manifest.provenance
    runs = [run.get("data_sha256", {}) for run in (provenance, provenance.get("calibrated", {}))]
    return {split: [run[split] for run in runs if split in run] for split in _USED}


def _missing(manifest: Manifest, found: Set[str]) -> list[str]:
    """Return which of _USED are not `found` by hash, or have none."""
    return [split for split, hashes in _used(manifest).items() if not hashes or not found >= set(hashes)]


def _splits_near(data: Sequence[Path]) -> list[Path]:
    folders = {each.resolve().parent.parent for each in data}
    return sorted(path for folder in folders for split in _USED for path in folder.glob(f"*/{split}.parquet"))


def _texts(split: Path) -> Iterator[str]:
    """Yield texts and, where there, templates of a split, and read no other column: it may have 400,000 rows."""
    there = pq.read_schema(split).names
    table = pq.read_table(split, columns=[name for name in ("text", "template") if name in there], partitioning=None)
    for column in table.columns:
        yield from column.to_pylist()


def _hash(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Decision:
    """Whether `candidate` may replace `incumbent` (bundle ids), and why; `files` gives the sha256 of the data."""

    promote: bool
    candidate: str
    incumbent: str
    files: dict[str, str]
    checks: list[Check]


def promote(candidate: Path, incumbent: Path | None, config_path: Path | None, out: Path) -> Decision:
    """Judge both bundles on the same messages, write the decision as JSON to `out`, and return it.

    By default the incumbent is the package's bundle, and the configuration the package's. Raises ConfigError for a bad
    configuration, InputError for data that can't be used or bundles with different labels, BundleError.
    """
    config = load_config(config_path or default_config())
    incumbent = incumbent or default_path()
    refuse_different_labels(candidate, incumbent)
    manifests = [read_bundle(path).manifest for path in (candidate, incumbent)]
    messages, reason = unused_rows(read_messages(config.data), config.data, manifests)
    refuse_few(int(messages.benign.sum()), RATES)
    new, old = (Side.of(path, messages) for path in (candidate, incumbent))
    checks = [
        Check("unused rows", passed=True, reason=reason),
        *requirement_checks(new, messages, config),
        *comparison_checks(new, old, messages, config),
    ]
    ids = [manifest.id for manifest in manifests]
    decision = Decision(all(check.passed for check in checks), ids[0], ids[1], messages.files, checks)
    out.write_text(json.dumps(asdict(decision), indent=1) + "\n", encoding="utf-8")
    return decision


def default_config() -> Path:
    """Return the configuration that comes with the package."""
    return Path(str(files("jingyin").joinpath("configs/promote.yaml")))


def refuse_different_labels(candidate: Path, incumbent: Path) -> None:
    """Raise InputError that names both label sets when they differ."""
    new, old = (read_bundle(path).manifest.labels for path in (candidate, incumbent))
    if set(new) != set(old):
        raise InputError(
            f"candidate {candidate} has labels {', '.join(new)}, incumbent {incumbent} has {', '.join(old)}; "
            "bundles of different label sets can't be compared: train the candidate on the incumbent's labels"
        )
