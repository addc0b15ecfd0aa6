"""`jingyin promote`: may a candidate replace the incumbent? Checks, each with its reason.

A check tells chance from harm. A candidate fails a limit if the rows show that it exceeds the limit (99% confidence)
and that it does worse than the incumbent. It fails a comparison with the incumbent if it loses more than chance
explains (99%) and the loss may exceed the margin of non-inferiority. So a bundle that differs by its seed alone passes
in nine of ten runs.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import binom, norm

from jingyin.model.bundle import FrozenModel, Manifest, default_path, read_bundle
from jingyin.model.errors import ConfigError, InputError
from jingyin.model.files import file_sha256
from jingyin.model.labels import FLAGGED, LABELS
from jingyin.serve.scorer import Scorer
from jingyin.train.evaluate import attacks, samples, systems
from jingyin.train.evaluate.evaluate import behaviours
from jingyin.train.evaluate.measures import RATES, all_right
from jingyin.train.evaluate.samples import UNSEEN, WRITERS, Samples, Seen, refuse_empty_class
from jingyin.train.evaluate.statistics import Bools, Floats, Ints, paired_difference, refuse_few
from jingyin.train.evaluate.systems import Judged
from jingyin.train.recipes import read_yaml

CHANGED = 150
"""Most threats, and most innocents, that are disguised, attacked and put in company."""

_FEWEST = 16  # rows of a family: with fewer, losing all may be chance among a hundred families
_SURE = 0.995  # one-sided: a pooled check fails by chance in one of 200 runs, and so do all families together


class ActionRates(FrozenModel):
    """A share for each action, 0 to 1."""

    review: float = Field(ge=0, lt=1)
    block: float = Field(ge=0, lt=1)


class PromoteConfig(FrozenModel):
    """The data to judge on, a candidate's absolute limits, and its margins against the incumbent.

    The largest share that may reach each action: of `traffic`, real messages of sources kept out of training (of all
    sources if none was); of the `worst_source` alone; of `lawful` reminders; of the `plain` and `everyday` innocents
    and of `nonsense`. `plain_threats` is the share of plain threats that must be flagged. `threats`, `innocents`,
    `family` and `pairs` are margins: shares of rows that a candidate may get wrong where the incumbent has them right.
    """

    data: list[Path] = Field(min_length=1)
    traffic: ActionRates
    worst_source: ActionRates
    lawful: ActionRates
    plain: ActionRates
    everyday: ActionRates
    plain_threats: float = Field(ge=0, le=1)
    nonsense: ActionRates
    threats: ActionRates
    innocents: ActionRates
    family: float = Field(ge=0, lt=1)
    pairs: float = Field(ge=0, lt=1)
    latency_ratio: float = Field(ge=1)
    size_ratio: float = Field(ge=1)


def load_config(path: Path) -> PromoteConfig:
    """Read a configuration; raises ConfigError that lists all of its errors."""
    return read_yaml(path, PromoteConfig.model_validate)


def default_config() -> Path:
    """Return the configuration that comes with the package."""
    return Path(str(files("jingyin").joinpath("configs/promote.yaml")))


@dataclass(frozen=True)
class Check:
    """A condition, whether the candidate meets it, and the figures behind that."""

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class Promotion:
    """Whether `candidate` may replace `incumbent` (bundle ids), and why; `files` gives the sha256 of the data."""

    promote: bool
    candidate: str
    incumbent: str
    files: dict[str, str]
    checks: list[Check]


class PairedActions(NamedTuple):
    """Both bundles' actions on messages of one kind (n,): 0 pass, 1 review, 2 block; and which are threats.

    `groups` are the numbers of situations, `families` names of the kinds within.
    """

    new: Ints
    old: Ints
    threats: Bools
    groups: Ints
    families: NDArray[np.str_]

    def take(self, rows: Bools | Ints) -> "PairedActions":
        """Return some rows."""
        return PairedActions._make(each[rows] for each in self)


def promote(candidate: Path, incumbent: Path | None, config_path: Path | None, out: Path) -> Promotion:
    """Judge both bundles on the same messages, write the decision as JSON to `out`, and return it.

    By default the incumbent is the package's bundle, and the configuration the package's. Raises ConfigError for a bad
    configuration or a folder `out`, InputError for data that can't be used or bundles of other labels, BundleError.
    """
    config = load_config(config_path or default_config())
    if out.is_dir():  # before minutes of work
        raise ConfigError(f"{out} is a folder; name a file for the decision")
    out.parent.mkdir(parents=True, exist_ok=True)
    incumbent = incumbent or default_path()
    bundles = [systems.served(systems.open_bundle(path)) for path in (candidate, incumbent)]
    manifests = [read_bundle(path).manifest for path in (candidate, incumbent)]
    messages, reason = unused_rows(samples.read_messages(config.data), config.data, manifests)
    refuse_few(int(messages.benign.sum()), RATES)
    seen = samples.seen_in(config.data[0].parent / "train.parquet")
    both = [bundle.judge(messages.texts) for bundle in bundles]
    checks = [
        Check("unused rows", passed=True, reason=reason),
        *requirements(both, messages, seen, config),
        *comparisons(tables(both, messages, seen), config),
        *_pair_checks(both, messages, config.pairs),
        *_cost_checks([candidate, incumbent], messages, config),
    ]
    ids = [manifest.id for manifest in manifests]
    promotion = Promotion(all(check.passed for check in checks), ids[0], ids[1], messages.files, checks)
    out.write_text(json.dumps(asdict(promotion), indent=1) + "\n", encoding="utf-8")
    return promotion


def requirements(
    both: Sequence[Judged], messages: Samples, seen: Seen | None, config: PromoteConfig
) -> Iterator[Check]:
    """Check that the first of two bundles may serve; where the second fails a check too, it must not be worse."""
    actions = [judged.actions for judged in both]
    sources = samples.parts(messages.sources, among=messages.traffic)
    kept_out = [rows for name, rows in sources.items() if seen and name not in seen.sources]
    pooled = np.concatenate(kept_out or [*sources.values(), np.zeros(0, np.int64)])
    lawful = np.flatnonzero((messages.labels == LABELS.index("lawful_collection")) & ~messages.traffic)
    name = "traffic of sources kept out" if kept_out else "traffic"
    yield from _at_most(name, [each[pooled] for each in actions], config.traffic, large_enough=True)
    for name, rows in sources.items():
        yield from _at_most(f"traffic of {name}", [each[rows] for each in actions], config.worst_source)
    yield from _at_most("lawful reminders", [each[lawful] for each in actions], config.lawful)
    for name, texts in behaviours().items():
        listed = [judged.system.judge(texts).actions for judged in both]
        if name == "plain threats":
            missable = 1 - config.plain_threats
            yield _holds(f"{name}: review", [each == 0 for each in listed], missable, f"at most {missable:.1%} missed")
        else:
            yield from _at_most(name, listed, getattr(config, name.partition(" ")[0]))


def _at_most(name: str, actions: Sequence[Ints], limits: ActionRates, *, large_enough: bool = False) -> Iterator[Check]:
    """Check that no more than a share of innocents (n,) reaches an action.

    With `large_enough` it also fails if there are too few innocents to show a rate above the share; above 0 one does.
    """
    rows = len(actions[0])
    for level, (action, share) in enumerate(limits.model_dump().items(), 1):
        wanted = f"1 in {1 / share:,.0f}" if share else "none"
        check = _holds(f"{name}: {action}", [each >= level for each in actions], share, wanted)
        if large_enough and (rows * share < 1 - 1e-9 if share else not rows):  # 49 * (1 / 49) is a little below 1
            few = "so few messages can't show that rate, add real traffic to the data"
            check = Check(check.name, passed=False, reason=f"{check.reason}: {few}")
        yield check


def _holds(name: str, wrong: Sequence[Bools], share: float, wanted: str) -> Check:
    """Check that no more than a `share` of rows is `wrong` (2 bundles, n), or no more than of the incumbent."""
    new, old = (int(each.sum()) for each in wrong)
    rows = len(wrong[0])
    holds = float(binom.sf(new - 1, rows, share)) >= 1 - _SURE
    same = not_worse(name, ~wrong[0], ~wrong[1], np.arange(rows), 0.0).passed
    return Check(name, holds or same, f"{new} of {rows} messages against {old}, wanted {wanted}")


def tables(both: Sequence[Judged], messages: Samples, seen: Seen | None) -> dict[str, PairedActions]:
    """Return both bundles' verdicts on the data, and on messages disguised, attacked, in company."""
    groups = messages.group_numbers
    scored = messages.benign | messages.flagged
    whole = PairedActions(both[0].actions, both[1].actions, messages.flagged, groups, np.array(messages.families))
    kinds = samples.seen_unseen(messages, seen)
    out = {"all": whole.take(scored)}
    out |= {label: whole.take(messages.labels == LABELS.index(label)) for label in FLAGGED}
    out |= {name: whole.take(kinds[name][scored[kinds[name]]]) for name in (UNSEEN, WRITERS) if name in kinds}
    suites, _ = attacks.suites(messages, samples.unseen_rows(messages, kinds), CHANGED)
    disguised = suites.pop("disguises")
    suites["disguises"] = [suite for suite in disguised if not suite.name.endswith("*")]
    suites["disguises held out"] = [suite for suite in disguised if suite.name.endswith("*")]
    for name, suites_of_kind in suites.items():
        if suites_of_kind:
            texts = [text for suite in suites_of_kind for text in suite.texts]
            new, old = (judged.system.judge(texts).actions for judged in both)
            out[name] = whole.take(np.concatenate([suite.rows for suite in suites_of_kind]))._replace(new=new, old=old)
    return out


def comparisons(pairs_by_name: Mapping[str, PairedActions], config: PromoteConfig) -> Iterator[Check]:
    """Check that the candidate loses nothing against the incumbent beyond chance and the margins."""
    for name, table in pairs_by_name.items():
        for level, action in enumerate(("review", "block"), 1):
            for kind, margins in (("threats", config.threats), ("innocents", config.innocents)):
                rows = table.take(table.threats == (kind == "threats"))
                if len(rows.new):
                    new, old = ((actions >= level) == rows.threats for actions in (rows.new, rows.old))
                    margin = getattr(margins, action)
                    yield not_worse(f"{name}: {kind}, {action}", new, old, rows.groups, margin)
    yield from _family_checks(pairs_by_name["all"], config.family)


def _family_checks(table: PairedActions, margin: float) -> Iterator[Check]:
    """No family, of threats or of innocents, may be spoilt at review; chance is shared out among all of them."""
    counts = Counter(zip(table.threats.tolist(), table.families.tolist(), strict=True))
    kinds = sorted(kind for kind, count in counts.items() if count >= _FEWEST)
    for threats, family in kinds:
        name = f"{'threats' if threats else 'innocents'} of {family}"
        rows = table.take((table.families == family) & (table.threats == threats))
        new, old = ((actions > 0) == threats for actions in (rows.new, rows.old))
        # Rows count as independent here: a family may be a single situation.
        yield not_worse(name, new, old, np.arange(len(rows.new)), margin, tests=len(kinds))


def not_worse(name: str, new: Bools, old: Bools, groups: Ints, margin: float, tests: int = 1) -> Check:
    """Check that `new` (n,) is right as often as `old`.

    It fails if a loss is beyond chance, and may be above the margin. `tests` is the number of checks that share the
    error.
    """
    z = float(norm.ppf(1 - (1 - _SURE) / tests))
    change = paired_difference(new, old, groups, z)
    reason = (
        f"{int(new.sum())} of {len(new)} right against {int(old.sum())}, "
        f"{change.value:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"
    )
    return Check(name, change.high >= 0 or change.low >= -margin, reason)


def _pair_checks(both: Sequence[Judged], messages: Samples, margin: float) -> Iterator[Check]:
    for name, sides, right in (
        ("minimal pairs", messages.flagged, [judged.flags == messages.flagged for judged in both]),
        ("minimal pairs, labels", messages.labels, [judged.predicted == messages.labels for judged in both]),
    ):
        if pairs := samples.pairs(messages, sides):
            new, old = (all_right(pairs, each) for each in right)
            yield not_worse(name, new, old, np.arange(len(pairs)), margin)


def _cost_checks(paths: Sequence[Path], messages: Samples, config: PromoteConfig) -> Iterator[Check]:
    for prefilter, name in ((True, "latency"), (False, "latency without prefilter")):
        ways = [Scorer.load(path, prefilter=prefilter, cache_bytes=0).score for path in paths]
        yield latency_check(name, systems.milliseconds(ways, messages.texts), config.latency_ratio)
    first, second = map(systems.size, paths)
    yield Check("size", first <= second * config.size_ratio, f"{first / 1e6:.1f} MB against {second / 1e6:.1f} MB")


def latency_check(name: str, times: Floats, most: float) -> Check:
    """Check the ratio of mean `times` (2, n) of the same messages, timed in turn; intervals draw messages."""
    drawn = np.random.default_rng(0).integers(0, times.shape[1], (1000, times.shape[1]))
    low = float(np.percentile(times[0][drawn].mean(1) / times[1][drawn].mean(1), 1))
    new, old = times.mean(1)
    reason = f"mean {new:.2f} ms against {old:.2f} ms, {new / old:.2f} times (at least {low:.2f}), allowed {most:g}"
    return Check(name, low <= most, reason)


_USED = ("train", "validation", "calibration")


def unused_rows(messages: Samples, data: Sequence[Path], manifests: Sequence[Manifest]) -> tuple[Samples, str]:
    """Return the messages that the bundles of `manifests` were not made with, and a sentence on the rows left out.

    A manifest has the sha256 of its bundle's splits. Those that trained it and set its thresholds are looked for next
    to `data` and in the folders next to it; rows whose text or template is in one are left out. Raises InputError if a
    file of `data` is itself such a split, or no row of a label is left.
    """
    by_bundle = {manifest.id: _used(manifest) for manifest in manifests}
    for id_, used in by_bundle.items():
        for name, hash_ in messages.files.items():
            for split in (split for split, hashes in used.items() if hash_ in hashes):
                raise InputError(
                    f"{name} is the {split} split that bundle {id_} was made with; name the test split, or other "
                    "messages that neither bundle has seen"
                )
    used_hashes = {hash_ for used in by_bundle.values() for hashes in used.values() for hash_ in hashes}
    folders = {each.resolve().parent.parent for each in data}
    near = sorted(path for folder in folders for split in _USED for path in folder.glob(f"*/{split}.parquet"))
    near_splits = {hash_: path for path in near if (hash_ := file_sha256(path)) in used_hashes}
    used_texts = {text for path in near_splits.values() for text in samples.texts_in(path)}
    named_texts = zip(messages.texts, messages.templates, strict=True)
    unused = [i for i, names in enumerate(named_texts) if not any(samples.is_among(text, used_texts) for text in names)]
    left = messages.take(np.array(unused, np.int64))
    refuse_empty_class([LABELS[label] for label in left.labels], data)
    reason = f"{len(messages) - len(left)} of {len(messages)} rows left out: bundles were made with them"
    for id_, used in by_bundle.items():
        if splits := [split for split, hashes in used.items() if not hashes or not near_splits.keys() >= set(hashes)]:
            reason += f"; {', '.join(splits)} of {id_}: not near the data, so their rows can't be recognised"
    return left, reason


def _used(manifest: Manifest) -> dict[str, list[str]]:
    """Return the hashes of each of _USED: of the run that trained a bundle, and of the one that calibrated it anew."""
    provenance: Mapping[str, Any] = manifest.provenance
    runs = [run.get("data_sha256", {}) for run in (provenance, provenance.get("calibrated", {}))]
    return {split: [run[split] for run in runs if split in run] for split in _USED}
