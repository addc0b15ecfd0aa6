"""The classifier stage: fine-tunes an encoder, or goes on with a classifier, on labels and on teachers' soft labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score

from jingyin.model.decision import FLAGGED_INDEX, risk_logit, softmax
from jingyin.model.network import SmsClassifier, mean_pool
from jingyin.model.text import CleanText, clean
from jingyin.serve.scorer import Scorer
from jingyin.train.clauses import clauses
from jingyin.train.data import Rows, examples, one_hot, read_split, unlabelled
from jingyin.train.loop import Schedule, cross_entropy, fit, predict
from jingyin.train.packing.dequantise import bundle_folder, is_bundle
from jingyin.train.packing.pack import pack_runs
from jingyin.train.recipes import Classify
from jingyin.train.saved import load_classifier, save_classifier
from jingyin.train.stages.job import Job, StageResult
from jingyin.train.start import encoder_of, new_classifier, start_from

STANDARD_MESSAGES = 512
"""Training messages from which the head's standardisation is measured."""


def run_classify(job: Job[Classify]) -> StageResult:
    """Train a classifier, leave it in the run folder, and a bundle of it if the recipe asks for one; returns metrics."""
    recipe, corpus, out = job.recipe, job.corpus, job.folder
    encoder, teachers = job.run_of(recipe.encoder), [job.run_of(name) for name in recipe.teachers]
    torch.manual_seed(recipe.seed)
    train = read_split(corpus, "train").drawn(recipe.rows, recipe.seed)
    start = start_from(recipe, encoder, train.cleaned)
    encode = encoder_of(start.vocabulary, recipe.max_tokens)
    train, target = _taught(recipe, teachers, train, out / "soft.npy")
    rows = examples(train, encode, target)
    model = without_dropout(new_classifier(start))
    if start.classifier is None:
        standardise(model, rows["ids"], recipe.seed)
    schedule = Schedule(
        recipe.epochs, recipe.tokens, recipe.learning_rate, recipe.warmup, recipe.head_rate, recipe.precision, recipe.seed
    )  # fmt: skip
    loss = fit(model, rows, out, schedule, cross_entropy)
    if PartialState().is_main_process:
        save_classifier(model, start.vocabulary, out)
    validation = read_split(corpus, "validation")
    found = {"loss": loss, **metrics(predict(model, encode(validation.cleaned)), validation.labels)}
    if recipe.bundle and PartialState().is_main_process:
        pack_runs({"model": out}, recipe, corpus, out, {**job.facts, "metrics": found})
    return found


def metrics(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return macro-F1 over the labels, and the average precision of the risk for the flagged ones."""
    return {
        "macro_f1": float(f1_score(labels, logits.argmax(1), average="macro")),
        "flagged_ap": float(average_precision_score(np.isin(labels, FLAGGED_INDEX), risk_logit(logits))),
    }


def without_dropout(model: SmsClassifier) -> SmsClassifier:
    """Switch dropout off, in place: over a few epochs nothing overfits, and its random numbers take a sixth of the time."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def _taught(recipe: Classify, teachers: Sequence[str], rows: Rows, soft_file: Path) -> tuple[Rows, NDArray[np.float32]]:
    """Return what to train on, and its targets: labels, mixed with the teachers' probabilities if there are any.

    Teachers read each message as it stands, and its disguised and dressed copies get what they said of that: a copy is to be
    judged as the message is. They label clauses of messages too, which have their probabilities alone. What they said is kept in
    `soft_file`.
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
    if not soft_file.is_file():
        soft = soft_labels(teachers, [*plain.cleaned, *pieces.cleaned])
        if PartialState().is_main_process:
            np.save(soft_file, soft)
        PartialState().wait_for_everyone()
    soft = np.load(soft_file)
    mixed = (1 - recipe.distillation_weight) * target + recipe.distillation_weight * soft[message]
    return rows.and_(pieces), np.concatenate([mixed, soft[len(plain) :]]).astype(np.float32)


def standardise(model: SmsClassifier, ids: list[list[int]], seed: int) -> None:
    """Set the head's mean and sd from pooled outputs of STANDARD_MESSAGES messages, in place."""
    chosen = np.random.default_rng(seed).permutation(len(ids))[:STANDARD_MESSAGES]
    pooled = torch.tensor(predict(Pooled(model), [ids[i] for i in chosen]))
    model.mean.copy_(pooled.mean(0))
    model.sd.copy_(pooled.std(0).clamp_min(1e-4) if len(pooled) > 1 else torch.ones_like(model.sd))


class Pooled(torch.nn.Module):
    """A classifier up to its pooled hidden state (batch, hidden)."""

    def __init__(self, classifier: SmsClassifier) -> None:
        super().__init__()
        self.encoder = classifier.encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the mean of the last hidden states over the mask."""
        return mean_pool(self.encoder, input_ids, attention_mask)


def soft_labels(teachers: Sequence[str], texts: Sequence[CleanText]) -> NDArray[np.float32]:
    """Return the probabilities (n, labels) of the mean of the teachers' logits on clean texts.

    A teacher is the run folder of a classifier, or a bundle, whose networks all read every text. Processes share the work,
    each taking every n-th text.
    """
    processes = PartialState()
    own = texts[processes.process_index :: processes.num_processes]
    each = [_bundle_logits(name, own) if is_bundle(name) else _run_logits(Path(name), own) for name in teachers]
    soft = np.empty((len(texts), each[0].shape[1]), np.float32)
    for index, part in enumerate(gather_object([softmax(np.mean(each, axis=0))])):
        soft[index :: processes.num_processes] = part
    return soft


def _run_logits(run: Path, texts: Sequence[CleanText]) -> NDArray[np.float64]:
    model, vocabulary = load_classifier(run)
    encode = encoder_of(vocabulary, model.encoder.config.max_position_embeddings)
    return np.asarray(predict(model, encode(texts)), np.float64)


def _bundle_logits(name: str, texts: Sequence[CleanText]) -> NDArray[np.float64]:
    scorer = Scorer.load(bundle_folder(name), prefilter=False, cache_bytes=0)
    found = [list(verdict.probabilities.values()) for verdict in scorer.score_many(text.text for text in texts)]
    return np.asarray(np.log(np.maximum(np.array(found), 1e-6)), np.float64)
