"""What a fine-tuned network learns: labels of one's own, and on authored messages what the earlier bundle says too."""

from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from jingyin.model.decision import with_risk
from jingyin.model.network import SmsClassifier
from jingyin.train.data import Encode, Rows, examples, one_hot
from jingyin.train.finetune.deduplicate import is_flagged
from jingyin.train.finetune.read import SIDES
from jingyin.train.loop import Schedule, cross_entropy, fit, without_dropout
from jingyin.train.stages.classify import TEACHERS
from jingyin.train.teachers import soft_labels

SMOOTHING = 0.02
DISTILLATION_WEIGHT = 0.5
"""Share of the incumbent's probabilities in the target of an authored message; the rest is its label."""

OWN_SHARE = 0.25
"""Own messages are repeated until they are this share of an epoch, but at most MOST_REPEATS times."""

MOST_REPEATS = 8
SCHEDULE = Schedule(
    epochs=4, tokens=2560, learning_rate=3e-4, warmup=0.1, head_rate=3.0, precision="bf16", seed=1
)  # fmt: skip

_SURE = float(np.log((1 - SMOOTHING) / SMOOTHING))


def targets(rows: Rows, soft: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return target distributions (n, labels) of rows, of which the incumbent says `soft` (n, labels).

    An own message has its label; one with a side alone that side's risk, and within it what the incumbent says.
    """
    hard = one_hot(rows.labels, SMOOTHING)
    out = (1 - DISTILLATION_WEIGHT) * hard + DISTILLATION_WEIGHT * soft
    own = np.array([source == "own" for source in rows.sources])
    out[own] = hard[own]
    half = np.array([family in SIDES for family in rows.families]) & own
    sides = np.array([_SURE if is_flagged(family) else -_SURE for family in rows.families])
    out[half] = with_risk(np.log(np.maximum(soft[half], 1e-6)), sides[half])
    return out.astype(np.float32)


def incumbent_says(bundle: Path, rows: Rows, run: Path) -> NDArray[np.float32]:
    """Return the incumbent's probabilities (n, labels); of a disguised copy those of the message it was made from."""
    _, plain, message = np.unique(rows.messages, return_index=True, return_inverse=True)
    return soft_labels([str(bundle)], [rows.cleaned[i] for i in plain], run / TEACHERS)[message]


def repeated(rows: Rows) -> NDArray[np.int64]:
    """Return how often each row (n,) is repeated, so that few own messages are not lost among authored ones."""
    own = np.array([source == "own" for source in rows.sources])
    messages, others = (len(np.unique(rows.messages[some])) for some in (own, ~own))
    wanted = round(OWN_SHARE / (1 - OWN_SHARE) * others / max(1, messages))
    return np.where(own, min(MOST_REPEATS, max(1, wanted)), 1)


def training_rows(rows: Rows, target: NDArray[np.float32], encode: Encode) -> Dataset:
    """Return what the loop reads; a repetition is a message of its own, so that other copies of it come."""
    times = repeated(rows)
    index = np.repeat(np.arange(len(rows)), times)
    nth = np.concatenate([np.arange(count) for count in times])
    repeats = rows.take(index)
    numbered = examples(repeats, encode, target[index])
    messages = repeats.messages + nth * (rows.messages.max() + 1)
    return numbered.remove_columns("message").add_column("message", messages)


def train_network(model: SmsClassifier, rows: Dataset, schedule: Schedule, run: Path) -> float:
    """Train a classifier in place, going on from a checkpoint in `run`; returns the mean loss of the last epoch.

    A sign head stays as it is: its encoder moves little, and own messages say nothing of signs.
    """
    signs, model.sign_head = model.sign_head, None
    loss = fit(without_dropout(model), rows, run, schedule, cross_entropy)
    model.sign_head = signs
    return loss
