"""Rows a second of training: our loop, transformers' Trainer, a bare PyTorch loop; the same network, rows and machine.

    python bench/training.py CORPUS --encoder bundle --layers 4

The loops take turns, each turn with a seed of its own and in another order, so that a busy machine slows all alike;
medians of the turns are shown. All three see every row once an epoch in bf16, in batches of as many rows on average.
Average precision of the risk on validation rows says whether what is faster learns as well. So many rows are taken that
it takes about --seconds.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from torch import Tensor
from transformers import Trainer, TrainingArguments

from jingyin.train.data import Encode, Rows, examples, one_hot, read_split
from jingyin.train.encoder import encoder_of, new_classifier, start_from
from jingyin.train.loop import Schedule, cross_entropy, fit, pad
from jingyin.train.network import SmsClassifier
from jingyin.train.recipes import Classify
from jingyin.train.stages import label_logits, metrics, standardise, without_dropout

LEARNING_RATE = 2e-4
TOKENS = 2560
MOST = 20_000  # messages, at most
VALIDATION = 1000  # rows, at most
WARM = 4  # batches that are not counted: the first ones pay for memory, and say how fast the machine is


@dataclass(frozen=True)
class Task:
    """What each loop is given: rows as examples() makes them, the rows of an average batch, epochs and seed."""

    rows: Dataset
    batch: int
    epochs: int
    seed: int


def ours(model: SmsClassifier, task: Task, folder: Path) -> None:
    """Train by jingyin.train.loop, checkpoints and events included."""
    fit(
        model,
        task.rows,
        folder,
        Schedule(task.epochs, TOKENS, LEARNING_RATE, 0.06, 10.0, "bf16", task.seed),
        cross_entropy,
    )


class _Trainer(Trainer):
    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        target = inputs.pop("target")
        loss = cross_entropy(model(**inputs).float(), target).mean()
        return (loss, {}) if return_outputs else loss


def _collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    ids, mask = pad([row["ids"] for row in rows])
    target = torch.tensor(np.array([row["target"] for row in rows], np.float32))
    return {"input_ids": ids, "attention_mask": mask, "target": target}


def trainer(model: SmsClassifier, task: Task, folder: Path) -> None:
    """Train by transformers' Trainer as it comes."""
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=task.batch, num_train_epochs=task.epochs, seed=task.seed,
        learning_rate=LEARNING_RATE, warmup_steps=0.06, lr_scheduler_type="cosine", bf16=True, report_to=[],
        save_strategy="no", logging_strategy="no", remove_unused_columns=False, disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    _Trainer(model, arguments, data_collator=_collate, train_dataset=task.rows).train()


def bare(model: SmsClassifier, task: Task, _: Path) -> None:
    """Train by a loop of ten lines: shuffled batches, fused AdamW, a constant rate."""
    ids, target = task.rows["ids"][:], torch.tensor(np.array(task.rows["target"][:], np.float32))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    rng = np.random.default_rng(task.seed)
    model.train()
    for _epoch in range(task.epochs):
        order = rng.permutation(len(ids))
        for start in range(0, len(ids), task.batch):
            some = order[start : start + task.batch].tolist()
            padded, mask = pad([ids[i] for i in some])
            with torch.autocast(device.type, torch.bfloat16):
                output = model(padded.to(device), mask.to(device))
            cross_entropy(output.float(), target[some].to(device)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()


LOOPS: dict[str, Callable[[SmsClassifier, Task, Path], None]] = {"jingyin": ours, "Trainer": trainer, "bare": bare}


def seconds(name: str, model: SmsClassifier, task: Task) -> float:
    """Train `model` in place by the loop of that name, and return how long it took."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one, and loops want different ones
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        LOOPS[name](model, task, Path(folder))
        return time.perf_counter() - began


def prepare(given: argparse.Namespace) -> tuple[SmsClassifier, Encode, Task]:
    """Return the network, untouched, how its vocabulary encodes, and as many rows as a machine needs, one a message."""
    recipe = Classify(
        stage="classify", corpus=str(given.corpus), encoder=given.encoder, layers=given.layers, hidden=given.hidden,
        epochs=given.epochs,
    )  # fmt: skip
    rows = _plain(read_split(given.corpus, "train")).drawn(MOST, 0)
    start = start_from(recipe, given.encoder, rows.cleaned)
    encode = encoder_of(start.vocabulary, min(recipe.max_tokens, start.encoder.config.max_position_embeddings))
    model = without_dropout(new_classifier(start))
    model.sign_head = None
    data = examples(rows, encode, one_hot(rows.labels, recipe.label_smoothing))
    if start.classifier is None:
        standardise(model, data["ids"][:], 0)
    batch = max(1, round(TOKENS / float(np.mean([len(ids) for ids in data["ids"][:]]))))
    return model, encode, Task(data, batch, given.epochs, seed=0)


def _plain(rows: Rows) -> Rows:
    """Return each message once, as it stands, in random order; all weigh the same, as they do in the other loops."""
    _, first = np.unique(rows.messages, return_index=True)
    plain = rows.take(np.random.default_rng(0).permutation(first))
    return replace(plain, weights=np.ones_like(plain.weights))


def affordable(model: SmsClassifier, task: Task, given: argparse.Namespace) -> int:
    """Return how many rows all loops can be given in all turns within the time; measured on a few batches."""
    few = replace(task, rows=task.rows.select(range(min(len(task.rows), WARM * task.batch))), epochs=1)
    seconds("bare", deepcopy(model), few)
    rate = len(few.rows) / seconds("bare", deepcopy(model), few)
    return min(len(task.rows), int(given.seconds * rate / (len(LOOPS) * given.turns * given.epochs)))


def main() -> None:
    """Print a table: loop, rows a second, its ratio to the others, and average precision for each seed."""
    parser = argparse.ArgumentParser(description="Rows a second of training.")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--encoder", default="bundle")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, help="of a new small network, as in recipes")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=240.0)
    given = parser.parse_args()
    model, encode, task = prepare(given)
    task = replace(task, rows=task.rows.select(range(affordable(model, task, given))))
    validation = _plain(read_split(given.corpus, "validation")).drawn(VALIDATION, 0)
    ids = encode(validation.cleaned)
    print(f"{len(task.rows)} rows, batches of {task.batch}, {torch.get_num_threads()} threads", flush=True)
    rates: dict[str, list[float]] = {name: [] for name in LOOPS}
    precision: dict[str, list[float]] = {name: [] for name in LOOPS}
    for turn in range(given.turns):
        for place in range(len(LOOPS)):
            name = list(LOOPS)[(turn + place) % len(LOOPS)]
            network = deepcopy(model)
            rates[name].append(len(task.rows) * given.epochs / seconds(name, network, replace(task, seed=turn + 1)))
            precision[name].append(metrics(label_logits(network, ids), validation.labels)["flagged_ap"])
    print("| loop | rows a second | to Trainer's | to the bare loop's | average precision by turn |")
    print("|---|---|---|---|---|")
    for name in LOOPS:
        ratios = [median(np.divide(rates[name], rates[other]).tolist()) for other in ("Trainer", "bare")]
        found = ", ".join(f"{each:.3f}" for each in precision[name])
        print(f"| {name} | {median(rates[name]):.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} | {found} |")


if __name__ == "__main__":
    main()
