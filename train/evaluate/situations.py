"""Rows of cases and writers that training has not seen, as new threats are, apart from rows like its own."""

from collections.abc import Iterator, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from jingyin.model.labels import LABELS
from jingyin.train.corpus.readers import SOURCES
from jingyin.train.evaluate.figures import Bools, rate
from jingyin.train.evaluate.judge import Judged
from jingyin.train.evaluate.messages import Messages
from jingyin.train.evaluate.results import Situation

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
