"""The classifier stage: fine-tunes an encoder, or goes on with a classifier, on labels and on teachers' soft labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score

from jingyin.model.decision import FLAGGED_INDEX, risk_logit
from jingyin.model.network import SmsClassifier
from jingyin.model.text import clean
from jingyin.train.clauses import clauses
from jingyin.train.data import Rows, examples, one_hot, read_split, unlabelled
from jingyin.train.encoder import Pooled
from jingyin.train.loop import Schedule, cross_entropy, fit, predict, without_dropout
from jingyin.train.packing.pack import pack_runs
from jingyin.train.recipes import Classify
from jingyin.train.saved import save_classifier
from jingyin.train.sign_head import annotated_messages, fit_sign_head
from jingyin.train.stages.job import Job, StageResult
from jingyin.train.start import encoder_of, new_classifier, start_from
from jingyin.train.teachers import label_logits, soft_labels

TEACHERS = "teachers"
"""Folder among the run folders where what teachers say is kept."""
STANDARD_MESSAGES = 512
"""Training messages from which the head's standardisation is measured."""


def run_classify(job: Job[Classify]) -> StageResult:
    """Train a classifier, leave it in the run folder, and a bundle of it if the recipe asks for one; returns metrics."""
    recipe, corpus, out = job.recipe, job.corpus, job.folder
    encoder, teachers = job.run_of(recipe.encoder), [job.run_of(name) for name in recipe.teachers]
    torch.manual_seed(recipe.seed)
    train = read_split(corpus, "train").drawn(recipe.rows, recipe.seed)
    signed = annotated_messages(train) if recipe.signs else None
    start = start_from(recipe, encoder, train.cleaned)
    encode = encoder_of(start.vocabulary, recipe.max_tokens)
    train, target = _taught(recipe, teachers, train, job.out / TEACHERS)
    model = without_dropout(new_classifier(start))
    model.sign_head = None  # trained anew below
    rows = examples(train, encode, target)
    if start.classifier is None:
        standardise(model, rows["ids"], recipe.seed)
    schedule = Schedule(
        recipe.epochs, recipe.tokens, recipe.learning_rate, recipe.warmup, recipe.head_rate, recipe.precision, recipe.seed
    )  # fmt: skip
    loss = fit(model, rows, out, schedule, cross_entropy)
    if signed is not None:  # on the CPU, where a few thousand messages take seconds: training may have moved the model
        model.sign_head = fit_sign_head(model.cpu(), signed, encode, recipe.seed)
    if PartialState().is_main_process:
        save_classifier(model, start.vocabulary, out)
    validation = read_split(corpus, "validation")
    found = {"loss": loss, **metrics(label_logits(model, encode(validation.cleaned)), validation.labels)}
    if recipe.bundle and PartialState().is_main_process:
        pack_runs({"model": out}, recipe, corpus, out, {**job.facts, "metrics": found})
    return found


def metrics(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return macro-F1 over the labels, and the average precision of the risk for the flagged ones."""
    return {
        "macro_f1": float(f1_score(labels, logits.argmax(1), average="macro")),
        "flagged_ap": float(average_precision_score(np.isin(labels, FLAGGED_INDEX), risk_logit(logits))),
    }


def _taught(recipe: Classify, teachers: Sequence[str], rows: Rows, kept: Path) -> tuple[Rows, NDArray[np.float32]]:
    """Return what to train on, and its targets: labels, mixed with the teachers' probabilities if there are any.

    Teachers read each message as it stands, and its disguised and dressed copies get what they said of that: a copy is to be
    judged as the message is. They label clauses of messages too, which have their probabilities alone.
    """
    target = one_hot(rows.labels, recipe.label_smoothing)
    if not teachers:
        return rows, target
    _, first, message = np.unique(rows.messages, return_index=True, return_inverse=True)
    plain = rows.take(first)
    authored = [
        text.original for text, source in zip(plain.cleaned, plain.sources, strict=True) if source == "authored"
    ]
    pieces = unlabelled([clean(text) for text in clauses(authored, recipe.clauses, recipe.seed)])
    soft = soft_labels(teachers, [*plain.cleaned, *pieces.cleaned], kept)
    mixed = (1 - recipe.distillation_weight) * target + recipe.distillation_weight * soft[message]
    return rows.and_(pieces), np.concatenate([mixed, soft[len(plain) :]]).astype(np.float32)


def standardise(model: SmsClassifier, ids: list[list[int]], seed: int) -> None:
    """Set the head's mean and sd from pooled outputs of STANDARD_MESSAGES messages, in place."""
    chosen = np.random.default_rng(seed).permutation(len(ids))[:STANDARD_MESSAGES]
    pooled = torch.tensor(predict(Pooled(model.encoder), [ids[i] for i in chosen]))
    model.mean.copy_(pooled.mean(0))
    model.sd.copy_(pooled.std(0).clamp_min(1e-4) if len(pooled) > 1 else torch.ones_like(model.sd))
