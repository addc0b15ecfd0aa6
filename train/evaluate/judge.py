"""Turns what systems say of messages into results."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support

from jingyin.model.bundle import Bundle
from jingyin.model.decision import sign_confidence
from jingyin.model.errors import BundleError
from jingyin.model.labels import LABELS
from jingyin.model.signs import SIGN_IDS
from jingyin.model.text import clean
from jingyin.train.corpus.public import SOURCES
from jingyin.train.corpus.rows import is_annotated, sign_targets
from jingyin.train.data import unlabelled
from jingyin.train.evaluate import samples as slices
from jingyin.train.evaluate.attacks import Disturbed, flags_before_and_after
from jingyin.train.evaluate.results import (
    AtRate,
    ByLabel,
    Difference,
    ErrorRow,
    EvasionResult,
    LabelResult,
    MacroF1,
    SignPair,
    SignResult,
    SignsResult,
    Situation,
    Slice,
    SystemResult,
)
from jingyin.train.evaluate.samples import Messages
from jingyin.train.evaluate.statistics import Bools, estimate, mcnemar, rate, recalls_at, threshold_at
from jingyin.train.evaluate.systems import Latency, Scores, System
from jingyin.train.pack.calibrate import sign_logits
from jingyin.train.pack.thresholds import expected_calibration_error, rows_needed

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


# Rows of cases and writers that training has not seen, as new threats are, apart from rows like its own.


UNSEEN, WRITERS, LIKE, REAL = "unseen cases", "unseen writers", "like training", "real traffic"


def situations(model: Judged, block: float, messages: Messages, trained: Messages) -> list[Situation]:
    """Return a result for each kind of situation that has rows, by the training rows `trained`.

    `block` is the risk from which a message is blocked.
    """
    return [_situation(name, np.flatnonzero(rows), model, block, messages) for name, rows in kinds(messages, trained)]


def kinds(messages: Messages, trained: Messages) -> Iterator[tuple[str, Bools]]:
    """Yield the kinds of situation that have rows, each with its rows (n,)."""
    unseen = _none_of(messages.cases, set(trained.cases))
    by_others = _none_of(messages.writers, set(trained.writers)) & ~unseen
    real = traffic(messages) & ~unseen & ~by_others
    like = ~(unseen | by_others | real)
    for name, rows in ((UNSEEN, unseen), (WRITERS, by_others), (LIKE, like), (REAL, real)):
        if rows.any():
            yield name, rows


def _none_of(names: Sequence[str], seen: Set[str]) -> Bools:
    """Return which of `names` (n,) are there, but not among the `seen`."""
    return np.array([bool(name) and name not in seen for name in names], np.bool_)


def traffic(messages: Messages) -> Bools:
    """Return which rows (n,) are benign messages that people sent, of public corpora or one's own: ordinary traffic.

    On a built corpus they are those of packing/cascade.is_traffic where that has enough. It takes all sources but two,
    and all benign rows for want of real ones, to have rows to set thresholds on; but files to judge on may be of any
    source, and what is shown as real traffic must be known to be it.
    """
    return messages.benign & np.array([source in SOURCES for source in messages.sources], np.bool_)


def _situation(name: str, rows: NDArray[np.int64], model: Judged, block: float, messages: Messages) -> Situation:
    flagged, benign = rows[messages.flagged[rows]], rows[messages.benign[rows]]
    blocked, right = model.scores.risks >= block, model.predicted == messages.labels
    by_label = {label: rate(right[rows[messages.labels[rows] == i]]) for i, label in enumerate(LABELS)}
    recalls = [each.value for each in by_label.values() if each.rows]
    return Situation(
        name=name,
        rows=len(rows),
        review=rate(model.flags[flagged]),
        block=rate(blocked[flagged]),
        innocents_review=rate(model.flags[benign]),
        innocents_block=rate(blocked[benign]),
        by_label=by_label,
        macro_recall=sum(recalls) / len(recalls),
    )


# Signs on rows whose signs people read: how often the network is right, which co-occur, which missed threats show.


FEWEST = 30
"""Rows that must show a sign for its F1 to count in the mean over frequent ones."""

COMMONEST = 10
"""Signs in the mean over the commonest."""

PAIRS = 15
"""Pairs of signs that are listed, the most frequent."""


def why_left_out(bundle: Bundle, messages: Messages) -> str:
    """Return why signs can't be judged, "" if they can."""
    signs = bundle.manifest.signs
    if not signs:
        return "signs are left out: the bundle has none, so its verdicts give no reasons"
    if strange := sorted(set(signs) - set(SIGN_IDS)):
        return f"signs are left out: the bundle has {', '.join(strange)}, which data can't be annotated with"
    if not any(map(is_annotated, messages.signs)):
        return "signs are left out: no row of the data names those that people read in it, in a column `signs`"
    return ""


def sign_results(bundle: Bundle, model: Judged, messages: Messages) -> SignsResult:
    """Judge the signs of a bundle, at its thresholds, on the messages whose signs people read.

    The network reads them all, those too that the cascade stops before it, and those that pass: such a frame as a joke
    is why a message passes. Raises BundleError when no network of the bundle has signs.
    """
    rows = np.flatnonzero([is_annotated(each) for each in messages.signs])
    read = messages.take(rows)
    names = list(bundle.manifest.signs)
    shown = np.stack([sign_targets(each) for each in read.signs])[:, [SIGN_IDS.index(name) for name in names]] > 0
    given = _given(bundle, read.texts)
    passes = ~model.flags[rows]
    signs = [
        _sign_result(name, shown[:, i], given[:, i], passes[shown[:, i] & read.flagged]) for i, name in enumerate(names)
    ]
    signs.sort(key=lambda each: -each.shown)
    return SignsResult(
        rows=len(rows),
        signs=signs,
        frequent=_macro_f1([each for each in signs if each.shown >= FEWEST]),
        commonest=_macro_f1(signs[:COMMONEST]),
        pairs=_pairs(names, shown, given),
    )


def _given(bundle: Bundle, texts: Sequence[str]) -> Bools:
    """Return which signs the network gives to texts, at their thresholds (n, signs)."""
    scales = bundle.manifest.signs.values()
    logits = sign_logits(bundle.path, bundle.manifest.networks, unlabelled([clean(text) for text in texts]))
    if logits is None:
        raise BundleError(f"bundle {bundle.manifest.id} names signs, and no network of it has any; export it again")
    return np.stack([sign_confidence(s, logits[:, i]) >= s.threshold for i, s in enumerate(scales)], axis=1)


def _sign_result(sign: str, shown: Bools, given: Bools, passes: Bools) -> SignResult:
    """Return the result of a sign that rows (n,) show or are given; `passes` is of the flagged rows that show it."""
    right = int((shown & given).sum())
    return SignResult(
        sign=sign,
        shown=int(shown.sum()),
        given=int(given.sum()),
        right=right,
        precision=_share(right, given),
        recall=_share(right, shown),
        f1=2 * right / max(1, int(shown.sum() + given.sum())),
        missed=rate(passes),
    )


def _share(right: int, among: Bools) -> float:
    return right / max(1, int(among.sum()))


def _macro_f1(signs: Sequence[SignResult]) -> MacroF1:
    return MacroF1(len(signs), sum(each.f1 for each in signs) / len(signs) if signs else None)


def _pairs(names: Sequence[str], shown: Bools, given: Bools) -> list[SignPair]:
    """Return the pairs of signs that most rows show together; `shown` and `given` are (n, signs)."""
    together, said = _together(shown), _together(given)
    found = [
        SignPair((names[i], names[j]), int(together[i, j]), int(said[i, j]))
        for i, j in combinations(range(len(names)), 2)
        if together[i, j]
    ]
    return sorted(found, key=lambda each: -each.shown)[:PAIRS]


def _together(rows: Bools) -> NDArray[np.int64]:
    """Return how many rows (n, signs) have each pair of signs (signs, signs)."""
    counts = rows.astype(np.int64)
    return np.asarray(counts.T @ counts, np.int64)
