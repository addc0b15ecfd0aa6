"""Rows of cases that training has not seen, which are what new threats are like, apart from rows like those it has."""

from collections.abc import Iterator, Set

import numpy as np
from numpy.typing import NDArray

from jingyin.model.labels import LABELS
from jingyin.train.corpus.readers import SOURCES
from jingyin.train.evaluate.figures import Bools, rate
from jingyin.train.evaluate.judge import Judged
from jingyin.train.evaluate.messages import Messages
from jingyin.train.evaluate.results import Situation

UNSEEN, LIKE, REAL = "unseen cases", "like training", "real traffic"


def situations(model: Judged, block: float, messages: Messages, trained: Set[str]) -> list[Situation]:
    """Return a result for each kind of situation that has rows; `trained` are the cases of the training rows.

    `block` is the risk from which a message is blocked.
    """
    return [_situation(name, np.flatnonzero(rows), model, block, messages) for name, rows in kinds(messages, trained)]


def kinds(messages: Messages, trained: Set[str]) -> Iterator[tuple[str, Bools]]:
    """Yield the kinds of situation that have rows, each with its rows (n,)."""
    unseen = np.array([bool(case) and case not in trained for case in messages.cases], np.bool_)
    real = traffic(messages) & ~unseen
    for name, rows in ((UNSEEN, unseen), (LIKE, ~unseen & ~real), (REAL, real)):
        if rows.any():
            yield name, rows


def traffic(messages: Messages) -> Bools:
    """Return which rows (n,) are benign messages that people sent, of public corpora or one's own: ordinary traffic."""
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
