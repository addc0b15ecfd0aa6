"""Turns systems' outputs on messages into figures.

A measure returns the rows of a table, each from names of quantities to figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from sklearn.metrics import f1_score

from jingyin.model.bundle import Bundle, rows_needed
from jingyin.model.cascade import sign_confidence
from jingyin.model.errors import BundleError
from jingyin.model.labels import LABELS
from jingyin.model.signs import SIGN_IDS
from jingyin.model.text import clean
from jingyin.train.corpus.rows import is_annotated, sign_targets
from jingyin.train.evaluate.attacks import TRIES, Suite, edited, flagged_halves, greedy_tries
from jingyin.train.evaluate.samples import Samples, length, pairs, parts, script
from jingyin.train.evaluate.statistics import Bools, Estimate, Floats, Ints, Rate, rate, recall_at, recalls_at
from jingyin.train.evaluate.systems import Judged, System
from jingyin.train.pack.signs import sign_logits
from jingyin.train.pack.thresholds import expected_calibration_error

Value = Rate | Estimate | float
Figures = dict[str, dict[str, Value]]
"""Row -> column -> figure; a bare number is a share, a mean or a count."""

Tables = dict[str, dict[str, Figures]]
"""Table -> system -> its figures; the bundle's come first."""

RATES = (0.001, 0.003, 0.01, 0.03)
"""The false-positive rates at which recall is compared."""

FRONTIER = tuple(step * power for power in (10, 100, 1_000, 10_000) for step in (1, 2, 5))
"""One in this many ordinary messages is flagged at the points where recall is read off the curve."""

SHOWN = 50
"""Most rows in an error list, the worst first."""

FEWEST = 30
"""Rows that must show a sign for its F1 to count in the mean over frequent ones."""


@dataclass(frozen=True)
class Evaluation:
    """All figures, without any message text.

    `against` is the id of the other bundle or "", `files` gives the sha256 of each data file, `counts` the rows of each
    label, `notes` list omissions.
    """

    bundle: str
    against: str
    files: dict[str, str]
    counts: dict[str, int]
    left_out: int
    tables: Tables
    errors: dict[str, list[dict[str, str | float]]]
    notes: list[str]


def whole(judged: Judged, messages: Samples) -> Figures:
    """Measure a system on all rows, at its own thresholds and at fixed rates that the benign rows can bound."""
    benign, flagged, groups = messages.benign, messages.flagged, messages.group_numbers
    out: dict[str, Value] = {
        "threats at review": rate(judged.flags[flagged], groups[flagged]),
        "benign messages flagged": rate(judged.flags[benign], groups[benign]),
        "minimal pairs, both sides right": rate(all_right(pairs(messages, flagged), judged.flags == flagged)),
    }
    if np.isfinite(judged.system.block):
        out["threats blocked"] = rate(judged.blocked[flagged], groups[flagged])
        out["benign messages blocked"] = rate(judged.blocked[benign], groups[benign])
    targets = [target for target in RATES if flagged.any() and benign.sum() >= rows_needed(target)]
    sides = (judged.risks[benign], judged.risks[flagged])
    found = recalls_at(sides, (groups[benign], groups[flagged]), targets) if targets else []
    out |= {
        f"threats found, {target:.1%} of the benign flagged": value
        for target, value in zip(targets, found, strict=True)
    }
    if judged.probabilities is not None:
        right = judged.predicted == messages.labels
        out["minimal pairs, both labels right"] = rate(all_right(pairs(messages, messages.labels), right))
        out["macro-F1 of the labels"] = float(
            f1_score(messages.labels, judged.predicted, average="macro", labels=np.unique(messages.labels))
        )
        out["calibration error"] = expected_calibration_error(judged.probabilities, messages.labels)
    return {name: {"": value} for name, value in out.items()}


def all_right(pairs: Sequence[Ints], right: Bools) -> Bools:
    """Return for each pair whether all of its rows are `right` (n,)."""
    return np.array([bool(right[rows].all()) for rows in pairs], np.bool_)


def by_part(judged: Judged, messages: Samples, named: Mapping[str, Ints]) -> Figures:
    """Measure actions and labels in parts of the data, `named` by their rows; intervals draw whole groups."""
    groups, right = messages.group_numbers, judged.predicted == messages.labels
    out: Figures = {}
    for name, rows in named.items():
        flagged, benign = rows[messages.flagged[rows]], rows[messages.benign[rows]]
        row: dict[str, Value] = {
            "threats at review": rate(judged.flags[flagged], groups[flagged]),
            "threats blocked": rate(judged.blocked[flagged], groups[flagged]),
            "innocents flagged": rate(judged.flags[benign], groups[benign]),
            "innocents blocked": rate(judged.blocked[benign], groups[benign]),
        }
        of = {label: rows[messages.labels[rows] == i] for i, label in enumerate(LABELS)}
        right_of = {label: rate(right[index], groups[index]) for label, index in of.items() if len(index)}
        row |= {f"{label} right": value for label, value in right_of.items()}
        out[name] = row | {"macro-recall": float(np.mean([each.value for each in right_of.values()]))}
    return out


def innocents(judged: Judged, messages: Samples) -> Figures:
    """Measure the benign rows: all, those of each label, and each family, the worst first."""

    def actions(rows: Ints) -> dict[str, Value]:
        return _actions(judged.take(rows), groups[rows])

    groups = messages.group_numbers
    families = parts(messages.families, among=messages.benign)
    labels = parts([LABELS[i] for i in messages.labels], among=messages.benign)
    found = {name: actions(rows) for name, rows in families.items()}
    worst = sorted(found, key=lambda name: -number(found[name]["flagged"]))
    first = {"all": np.flatnonzero(messages.benign), **labels}
    return {name: actions(rows) for name, rows in first.items()} | {name: found[name] for name in worst}


def slices(judged: Judged, messages: Samples) -> Figures:
    """Measure the rows of each length, script and source."""
    by = {"length": parts(messages.texts, length), "script": parts(messages.texts, script)}
    named = {f"{name}: {value}": rows for name, values in by.items() for value, rows in values.items()}
    found = by_part(judged, messages, named)
    return {name: {key: row[key] for key in list(row)[:4]} for name, row in found.items()}


def _actions(judged: Judged, groups: Ints | None = None) -> dict[str, Value]:
    return {"flagged": rate(judged.flags, groups), "blocked": rate(judged.blocked, groups)}


def lists(system: System, named: Mapping[str, Sequence[str]]) -> Figures:
    """Measure lists of texts."""
    return {name: _actions(system.judge(texts)) for name, texts in named.items()}


def traffic(sources: Mapping[str, Judged], kept_out: Sequence[str]) -> Figures:
    """Measure ordinary messages by source, those `kept_out` of training apart; the worst first, after pooled rows."""
    out: Figures = {}
    for pool, names in (
        ("sources kept out, pooled", [name for name in sources if name in kept_out]),
        ("known sources, pooled", [name for name in sources if name not in kept_out]),
    ):
        if names:
            system = sources[names[0]].system
            out[pool] = _actions(Judged(system, np.concatenate([sources[name].risks for name in names]), None))
    found: Figures = {f"{name} *" if name in kept_out else name: _actions(judged) for name, judged in sources.items()}
    worst = sorted(found.items(), key=lambda each: -number(each[1]["flagged"]))
    return {**out, "worst source": worst[0][1], **dict(worst)} if worst else {}


def frontier(system: System, threats: Floats, ordinary: Floats) -> Figures:
    """Return how many `threats` are found where one in FRONTIER of the `ordinary` messages is flagged; both by risk.

    The last rows are those of the system's own thresholds.
    """
    out: Figures = {}
    for each in FRONTIER:
        if each <= len(ordinary):
            out[f"1 in {each:,}"] = {"flagged": 1 / each, "threats found": recall_at(ordinary, threats, 1 / each)}
    for name, risk in (("review", system.review), ("block", system.block)):
        if np.isfinite(risk):
            out[name] = {"flagged": float((ordinary >= risk).mean()), "threats found": float((threats >= risk).mean())}
    return out


def changed(judged: Judged, suites: Sequence[Suite], messages: Samples) -> Figures:
    """Measure changed messages: the share of threats still found, and of those flagged unchanged the share that passes.

    Suites are sorted by the share that passes, after the mean over suites and the worst.
    """
    groups = messages.group_numbers
    by_suite: Figures = {}
    for suite in suites:
        judged_changed = judged.system.judge(suite.texts)
        threats, benign = messages.flagged[suite.rows], messages.benign[suite.rows]
        flagged_unchanged = threats & judged.flags[suite.rows]
        group = groups[suite.rows]
        by_suite[suite.name] = {
            "threats found": rate(judged_changed.flags[threats], group[threats]),
            "blocked": rate(judged_changed.blocked[threats], group[threats]),
            "flagged alone, now pass": rate(~judged_changed.flags[flagged_unchanged], group[flagged_unchanged]),
            "innocents flagged": rate(judged_changed.flags[benign], group[benign]),
            "innocents blocked": rate(judged_changed.blocked[benign], group[benign]),
        }
    if not by_suite:
        return {}
    columns = next(iter(by_suite.values()))
    mean: dict[str, Value] = {}
    for key in columns:
        if shares := [each.value for row in by_suite.values() if isinstance(each := row[key], Rate) and each.rows]:
            mean[key] = float(np.mean(shares))
    worst = sorted(by_suite.items(), key=lambda item: -number(item[1]["flagged alone, now pass"]))
    return {"mean": mean, "worst": worst[0][1], **dict(worst)}


def greedy(judged: Judged, messages: Samples, rows: Sequence[int]) -> Figures:
    """Attack those of `rows` that are flagged threats; edit the benign ones as often, at random.

    A message in two halves passes if neither half is flagged.
    """
    threats = [messages.texts[i] for i in rows if messages.flagged[i] and judged.flags[i]]
    benign = [messages.texts[i] for i in rows if messages.benign[i]]

    def flags(texts: Sequence[str]) -> Bools:
        return judged.system.judge(texts).flags

    tries = np.array([each or TRIES + 1 for each in greedy_tries(lambda text: not flags([text])[0], threats)])
    rng = Random("benign")
    out: Figures = {
        f"greedy sender, {within} {'try' if within == 1 else 'tries'}": {
            "flagged alone, now pass": rate(tries <= within),
            "innocents flagged": rate(flags([edited(text, within, rng) for text in benign])),
        }
        for within in (1, 3, TRIES)
    }
    out["in two halves"] = {
        "flagged alone, now pass": rate(~flagged_halves(flags, threats)),
        "innocents flagged": rate(flagged_halves(flags, benign)),
    }
    return out


def signs(bundle: Bundle, judged: Judged, messages: Samples) -> tuple[Figures, str]:
    """Measure the signs of a bundle on the messages with annotated signs, or say why they are left out.

    The network reads all of them, even those that the cascade stops before it, and those that pass: a frame such as a
    joke is why a message passes. Raises BundleError if no network of the bundle has signs.
    """
    scales = bundle.manifest.signs
    rows = np.flatnonzero([is_annotated(each) for each in messages.signs])
    if not scales:
        return {}, "signs are left out: the bundle has none, so its verdicts give no reasons"
    if strange := sorted(set(scales) - set(SIGN_IDS)):
        return {}, f"signs are left out: the bundle has {', '.join(strange)}, which data can't be annotated with"
    if not len(rows):
        return {}, "signs are left out: no row of the data names those that people read in it, in a column `signs`"
    annotated = messages.take(rows)
    columns = [SIGN_IDS.index(name) for name in scales]
    targets = np.stack([sign_targets(each) for each in annotated.signs])[:, columns] > 0
    logits = sign_logits(bundle.path, bundle.manifest.networks, [clean(text) for text in annotated.texts])
    if logits is None:
        raise BundleError(f"bundle {bundle.manifest.id} names signs, and no network of it has any; export it again")
    claimed = np.stack([sign_confidence(s, logits[:, i]) >= s.threshold for i, s in enumerate(scales.values())], axis=1)
    passes = ~judged.flags[rows] & annotated.flagged
    out: Figures = {}
    for i in np.argsort(-targets.sum(0), kind="stable").tolist():
        present, reported = targets[:, i], claimed[:, i]
        out[list(scales)[i]] = {
            "messages": float(present.sum()),
            "precision": rate(present[reported]),
            "recall": rate(reported[present]),
            "F1": 2 * float((present & reported).sum()) / max(1, float(present.sum() + reported.sum())),
            "missed threats": rate(passes[present & annotated.flagged]),
        }
    frequent = [number(row["F1"]) for row in out.values() if number(row["messages"]) >= FEWEST]
    mean = {"frequent signs": float(len(frequent)), "F1": float(np.mean(frequent))} if frequent else {}
    return {"mean": {"messages": float(len(rows)), **mean}, **out}, ""


def number(figure: Value) -> float:
    """Return the figure without its interval."""
    return figure if isinstance(figure, float) else figure.value


def errors(model: Judged, messages: Samples) -> dict[str, list[int]]:
    """Return the rows of each error list, worst first: false positives, misses, wrong labels with the right action."""
    risks, flags = model.risks, model.flags
    kinds = {
        "false_positives": (messages.benign & flags, -risks),
        "misses": (messages.flagged & ~flags, risks),
        "confused": ((model.predicted != messages.labels) & (flags == messages.flagged), -risks),
    }
    return {
        kind: [i for i in np.argsort(order, kind="stable").tolist() if wrong[i]][:SHOWN]
        for kind, (wrong, order) in kinds.items()
    }


def error_row(model: Judged, messages: Samples, row: int) -> dict[str, str | float]:
    """Describe a wrong row by file and number, without its text."""
    action = ("pass", "review", "block")[model.actions[row]]
    return {
        "where": messages.where[row], "label": LABELS[messages.labels[row]], "family": messages.families[row],
        "predicted": LABELS[model.predicted[row]], "action": action, "risk": float(model.risks[row]),
    }  # fmt: skip
