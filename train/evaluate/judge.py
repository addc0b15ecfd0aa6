"""Turns what systems say of messages into results."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support

from jingyin.model.labels import LABELS
from jingyin.train.evaluate import slices
from jingyin.train.evaluate.baselines import Scores, System
from jingyin.train.evaluate.evasion import Disturbed, flags_before_and_after
from jingyin.train.evaluate.figures import Bools, estimate, mcnemar, rate, recalls_at, threshold_at
from jingyin.train.evaluate.latency import Latency
from jingyin.train.evaluate.messages import Messages
from jingyin.train.evaluate.results import (
    AtRate,
    ByLabel,
    Difference,
    ErrorRow,
    EvasionResult,
    LabelResult,
    Slice,
    SystemResult,
)
from jingyin.train.packing.thresholds import expected_calibration_error, rows_needed

RATES = (0.001, 0.003, 0.01, 0.03)
"""The false-positive rates at which recall is compared."""

SHOWN = 50
"""Rows that an error list shows at most, the worst first."""

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True)
class Judged:
    """A system and what it says of the messages."""

    system: System
    scores: Scores

    @property
    def flags(self) -> Bools:
        """Which rows (n,) it flags."""
        return self.scores.risks >= self.system.threshold

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable label (n,) of each row; only of a system that knows labels, as bundles do."""
        if self.scores.probabilities is None:
            raise TypeError(f"{self.system.name} knows no labels")
        return np.asarray(self.scores.probabilities.argmax(1), np.int64)


def judge(system: System, messages: Messages) -> Judged:
    """Let a system judge all messages."""
    return Judged(system, system.judge(messages.texts))


def matched(baseline: Judged, model: Judged, messages: Messages) -> Judged:
    """Return `baseline` with the threshold at which it flags at most as many benign rows as `model` does."""
    allowed = int(model.flags[messages.benign].sum())
    return Judged(
        replace(baseline.system, threshold=threshold_at(baseline.scores.risks[messages.benign], allowed)),
        baseline.scores,
    )


def system_results(judged: Sequence[Judged], latency: Sequence[Latency], messages: Messages) -> list[SystemResult]:
    """Return a result for each system, in order."""
    recalls = bootstrap_recalls(judged, messages)
    benign_rows = int(messages.benign.sum())
    return [
        _system_result(each, _at_rates(recalls[:, i], benign_rows), latency[i], messages)
        for i, each in enumerate(judged)
    ]


def bootstrap_recalls(judged: Sequence[Judged], messages: Messages) -> NDArray[np.float64]:
    """Return the recalls (1 + REPLICATES, systems, RATES) of `recalls_at`, whole groups drawn."""
    risks = [split(each.scores.risks, messages) for each in judged]
    return recalls_at(risks, split(messages.group_numbers, messages), RATES)


def split(values: NDArray[_Number], messages: Messages) -> tuple[NDArray[_Number], NDArray[_Number]]:
    """Return those of `values` (n,) that are of benign rows, and those of flagged rows."""
    return values[messages.benign], values[messages.flagged]


def _system_result(judged: Judged, at_rates: list[AtRate], latency: Latency, messages: Messages) -> SystemResult:
    binary = messages.benign | messages.flagged
    probabilities = judged.scores.probabilities
    return SystemResult(
        name=judged.system.name,
        threshold=judged.system.threshold,
        recall=rate(judged.flags[messages.flagged]),
        false_positives=rate(judged.flags[messages.benign]),
        average_precision=float(average_precision_score(messages.flagged[binary], judged.scores.risks[binary])),
        at_rates=at_rates,
        pairs=rate(flag_pairs(judged.flags, messages)),
        by_label=None if probabilities is None else _by_label(probabilities, messages),
        latency=latency,
    )


def _by_label(probabilities: NDArray[np.float64], messages: Messages) -> ByLabel:
    predicted, order = probabilities.argmax(1), range(len(LABELS))
    figures = precision_recall_fscore_support(messages.labels, predicted, labels=order, zero_division=0)
    labels = [
        LabelResult(label, float(precision), float(recall), float(f1), int(rows))
        for label, precision, recall, f1, rows in zip(LABELS, *figures, strict=True)
    ]
    return ByLabel(
        labels=labels,
        macro_f1=sum(each.f1 for each in labels) / len(labels),
        confusion=confusion_matrix(messages.labels, predicted, labels=order).tolist(),
        ece=expected_calibration_error(probabilities, messages.labels),
        pairs=rate(label_pairs(predicted, messages)),
    )


def flag_pairs(flags: Bools, messages: Messages) -> Bools:
    """Return for each minimal pair of flagged and unflagged messages whether `flags` (n,) has both sides right."""
    pairs = [rows for rows in slices.pairs(messages) if len(set(messages.flagged[rows].tolist())) > 1]
    return slices.all_right(pairs, flags == messages.flagged)


def label_pairs(predicted: NDArray[np.int64], messages: Messages) -> Bools:
    """Return for each minimal pair whether both labels are right; `predicted` are label indices (n,)."""
    return slices.all_right(slices.pairs(messages), predicted == messages.labels)


def _at_rates(replicates: NDArray[np.float64], benign_rows: int) -> list[AtRate]:
    supported = [benign_rows >= rows_needed(target) for target in RATES]
    return [
        AtRate(target, estimate(replicates[:, i]) if supported[i] else None, rows_needed(target))
        for i, target in enumerate(RATES)
    ]


def difference(model: Judged, baseline: Judged, messages: Messages) -> Difference:
    """Compare the model with a baseline on the same rows."""
    recalls = bootstrap_recalls((model, baseline), messages)
    binary = messages.benign | messages.flagged
    right = [(each.flags == messages.flagged)[binary] for each in (model, baseline)]
    return Difference(
        baseline.system.name, _at_rates(recalls[:, 0] - recalls[:, 1], int(messages.benign.sum())), mcnemar(*right)
    )


def slice_results(model: Judged, block: float, messages: Messages) -> tuple[list[Slice], list[Slice]]:
    """Return the benign families, worst first, and the slices of every dimension.

    `block` is the risk from which a message is blocked.
    """
    families = [
        _slice("family", name, rows, model, block, messages)
        for name, rows in slices.families(messages, messages.benign).items()
    ]
    others = [
        _slice(dimension, name, rows, model, block, messages)
        for dimension, values in slices.dimensions(messages).items()
        for name, rows in values.items()
    ]
    return sorted(families, key=lambda each: (-each.review.value, each.name)), others


def _slice(
    dimension: str, name: str, rows: NDArray[np.int64], model: Judged, block: float, messages: Messages
) -> Slice:
    flagged, benign = rows[messages.flagged[rows]], rows[messages.benign[rows]]
    return Slice(
        dimension,
        name,
        rate(model.flags[flagged]),
        rate(model.flags[benign]),
        rate(model.scores.risks[benign] >= block),
    )


def evasion_results(
    judged: Sequence[Judged], disturbed: Sequence[Disturbed], messages: Messages
) -> list[EvasionResult]:
    """Return a result for each system and evasion family."""
    return [
        EvasionResult(
            each.family, each.held_out, one.system.name, rate(before[messages.flagged[each.index]]),
            rate(after[messages.flagged[each.index]]), rate(before[messages.benign[each.index]]),
            rate(after[messages.benign[each.index]]),
        )
        for one in judged
        for each, before, after in flags_before_and_after(one.system, disturbed, one.flags)
    ]  # fmt: skip


def errors(model: Judged, messages: Messages) -> dict[str, list[int]]:
    """Return the rows of each error list, worst first: false positives, misses, and labels confused without harm."""
    risks, flags = model.scores.risks, model.flags
    kinds = {
        "false_positives": (messages.benign & flags, -risks),
        "misses": (messages.flagged & ~flags, risks),
        "confused": ((model.predicted != messages.labels) & (flags == messages.flagged), -risks),
    }
    return {
        kind: [i for i in np.argsort(order, kind="stable").tolist() if wrong[i]][:SHOWN]
        for kind, (wrong, order) in kinds.items()
    }


def error_row(model: Judged, block: float, messages: Messages, row: int) -> ErrorRow:
    """Describe a wrong row without its text."""
    risk = float(model.scores.risks[row])
    action = "block" if risk >= block else "review" if risk >= model.system.threshold else "pass"
    label = LABELS[messages.labels[row]]
    return ErrorRow(messages.where[row], label, messages.families[row], LABELS[model.predicted[row]], action, risk)
