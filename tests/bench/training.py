"""Rows a second of training: our loop, transformers' Trainer, and a bare PyTorch loop; the same network, rows and machine.

    python tests/bench/training.py CORPUS --encoder bundle --layers 4 --rows 4000 --seeds 1 2 3

All three see every row once an epoch in bf16, in batches of as many rows on average. Average precision of the risk on validation rows
says whether what is faster learns as well.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from jingyin.model.network import SmsClassifier
from jingyin.train.batches import pad
from jingyin.train.data import examples, one_hot, read_split
from jingyin.train.loop import Schedule, cross_entropy, fit, predict
from jingyin.train.recipes import Classify
from jingyin.train.stages.classify import metrics, standardise, without_dropout
from jingyin.train.start import encoder_of, new_classifier, start_from

LEARNING_RATE = 2e-4
TOKENS = 2560


@dataclass(frozen=True)
class Task:
    """What each loop is given: rows (`ids`, `target`), the rows of an average batch, epochs and seed."""

    rows: Any
    batch: int
    epochs: int
    seed: int


def ours(model: SmsClassifier, task: Task, folder: Path) -> None:
    """Train by jingyin.train.loop."""
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
    return {"input_ids": ids, "attention_mask": mask, "target": torch.tensor([row["target"] for row in rows])}


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


def main() -> None:
    """Print a table: loop, rows a second, and average precision for each seed."""
    parser = argparse.ArgumentParser(description="Rows a second of training.")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--encoder", default="bundle")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    given = parser.parse_args()
    recipe = Classify(
        stage="classify", corpus=str(given.corpus), encoder=given.encoder, layers=given.layers, epochs=given.epochs
    )
    rows = read_split(given.corpus, "train").drawn(given.rows, 0)
    validation = read_split(given.corpus, "validation").drawn(given.rows, 0)
    start = start_from(recipe, given.encoder, rows.cleaned)
    encode = encoder_of(start.vocabulary, min(recipe.max_tokens, start.encoder.config.max_position_embeddings))
    data = examples(rows, encode, one_hot(rows.labels, recipe.label_smoothing))
    data = data.remove_columns(["message", "weight"])
    data = data.add_column("message", list(range(len(data)))).add_column("weight", [1.0] * len(data))
    model = without_dropout(new_classifier(start))
    if start.classifier is None:
        standardise(model, data["ids"], 0)
    batch = max(1, round(TOKENS / float(np.mean([len(ids) for ids in data["ids"]]))))
    print(f"{len(data)} rows, {given.layers} layers, batches of {batch} rows, {torch.get_num_threads()} threads")
    print("| loop | rows a second | average precision by seed |\n|---|---|---|")
    for name, loop in LOOPS.items():
        rates, found = [], []
        for seed in given.seeds:
            network = deepcopy(model)
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                loop(network, Task(data, batch, given.epochs, seed), Path(folder))
                rates.append(len(data) * given.epochs / (time.perf_counter() - began))
            found.append(metrics(predict(network, encode(validation.cleaned)), validation.labels)["flagged_ap"])
        print(f"| {name} | {np.mean(rates):.0f} | {', '.join(f'{value:.3f}' for value in found)} |", flush=True)


if __name__ == "__main__":
    main()
