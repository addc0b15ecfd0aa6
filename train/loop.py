"""The training loop: AdamW on batches of equally many tokens, a faster head, resumable, on one process or several.

transformers' Trainer lost: its own samplers batch by rows, and on short messages it took 1.4 times as long
(train/LOG.md). accelerate handles processes and devices.
"""

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from jingyin.model.errors import InputError
from jingyin.train.losses import Loss, pair_loss

_PLAIN = 0.5  # share of messages shown in a plain row; of the others any row is drawn, plain ones included
_POOL = 64  # batches whose rows are sorted by length together: enough to pad little, few enough to stay random


def one_variant_each(
    messages: NDArray[np.int64], plain: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return a row index for each message, in random order: by even chance a `plain` (n,) row, else any of its rows.

    Copies take turns over the epochs: as much variety in a fraction of the time that all of them in each epoch would
    take. A message without a plain row is shown in any.
    """
    order = rng.permutation(len(messages))
    plain_first = order[np.argsort(~plain[order], kind="stable")]
    _, any_row = np.unique(messages[order], return_index=True)
    _, plain_row = np.unique(messages[plain_first], return_index=True)
    chosen = np.where(rng.random(len(any_row)) < _PLAIN, plain_first[plain_row], order[any_row])
    return rng.permutation(chosen)


def token_batches(
    lengths: NDArray[np.int64], rows: NDArray[np.int64], tokens: int, rng: np.random.Generator
) -> list[list[int]]:
    """Cut `rows` into batches of at most `tokens` tokens with padding, rows of like length together, in random order.

    `lengths` (n,) are those of all rows. The order of batches is drawn anew: length goes with the label, and a run
    whose batches went from long to short learnt less from 22,000 rows than from 6,000 shuffled ones.
    """
    batches: list[list[int]] = []
    pool = max(1, int(_POOL * tokens / max(1.0, float(lengths[rows].mean()))))
    for start in range(0, len(rows), pool):
        part = rows[start : start + pool]
        batches += _cut(part[np.argsort(lengths[part], kind="stable")].tolist(), lengths, tokens)
    return [batches[i] for i in rng.permutation(len(batches))]


def _cut(rows: Iterable[int], lengths: NDArray[np.int64], tokens: int) -> Iterator[list[int]]:
    """Cut rows, shortest first, into batches of at most `tokens` tokens."""
    batch: list[int] = []
    for row in rows:
        if batch and (len(batch) + 1) * lengths[row] > tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def pad(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return ids (batch, length) padded with 0 to the longest, and the mask, 1 for tokens."""
    lengths = torch.tensor([len(row) for row in ids])
    padded = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
    padded[mask.bool()] = torch.tensor([i for row in ids for i in row])
    return padded, mask


M = TypeVar("M", bound=nn.Module)

MOST_TIMES = 10
"""Most times that an epoch shows a message that weighs more than others."""

_CHECKPOINTS = 20  # a run
_PREDICTED = 4096  # tokens at once
_LOG_STEPS = 20


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: `tokens` a batch of all processes. `pairs` is the weight of pair_loss."""

    epochs: float
    tokens: int
    learning_rate: float
    precision: str
    seed: int
    head_rate: float = 1.0
    pairs: float = 0.0

    @classmethod
    def of(cls, recipe: BaseModel) -> "Schedule":
        """Return the schedule of a recipe that has these fields."""
        return cls(**recipe.model_dump(include={field.name for field in fields(cls)}))


def without_dropout(model: M) -> M:
    """Switch dropout off in place: in few epochs nothing overfits, and its random numbers take a sixth of the time."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def fit(model: nn.Module, train: Dataset, out: Path, schedule: Schedule, loss: Loss) -> float:
    """Train `model` in place on the output of data.examples; returns the mean loss of the last epoch's steps.

    Rows of data.examples_in_parts have windows, whose losses count as much as those of wholes. Each epoch shows every
    message once, in one of its variants; one that weighs several times as much as the median is shown as many times, at
    most MOST_TIMES, in several variants that share its weight. A checkpoint is written twenty times a run to
    `out`/checkpoint and TensorBoard's events to `out`/events; a run resumes from an existing checkpoint, with the
    result of an uninterrupted one. Processes (torchrun) share each batch. Raises InputError without rows.
    """
    if not len(train):
        raise InputError("no training rows; add some to the corpus")
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")  # _step casts: stages differ
    if accelerator.device.type == "cpu":
        # Attention as two products and a softmax: the backward pass of PyTorch's fused kernel over short messages takes
        # a third of a step of 4 layers (train/LOG.md).
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.set_attn_implementation("eager")
    return _TrainingRun(accelerator, model, train, out, schedule, loss).to_the_end()


@dataclass
class _Progress:
    """Where a run stands: steps done, and the losses of the last epoch's steps added up."""

    step: int = 0
    loss: float = 0.0
    counted: int = 0


class _TrainingRun:
    """A run under way; `plan` is the rows of every step, fixed by seed and data alone."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, train: Dataset, out: Path, schedule: Schedule, loss: Loss
    ) -> None:
        self.accelerator, self.schedule, self.loss_of, self.out = accelerator, schedule, loss, out
        self.ids: list[list[int]] = train["ids"][:]
        self.target = torch.tensor(np.array(train["target"][:], np.float32))
        self.weight = torch.tensor(np.array(train["weight"][:], np.float32))
        self.pairs: list[str] = train["pair"][:]
        self.windows = _Windows.of(train) if "spans" in train.column_names else None
        messages, plain = np.array(train["message"][:]), np.array(train["plain"][:])
        usual = max(1e-6, float(self.weight.median()))
        times = np.clip(np.round(self.weight.numpy() / usual), 1, MOST_TIMES).astype(np.int64)
        self.weight /= torch.tensor(times)
        pairs = self.pairs if schedule.pairs else [""] * len(self.ids)
        self.plan, self.last_epoch = _plan(self.ids, messages, plain, times, pairs, schedule)
        torch.manual_seed(schedule.seed + accelerator.process_index)
        self.model, self.optimizer = accelerator.prepare(model, _optimizer(model, schedule))
        self.progress = _Progress()

    def to_the_end(self) -> float:
        states = (self.out / name / "progress.json" for name in ("checkpoint", "checkpoint-before"))
        if state := next((state for state in states if state.is_file()), None):
            self.accelerator.load_state(str(state.parent))
            self.progress = _Progress(**json.loads(state.read_text(encoding="utf-8")))
        self.model.train()
        between = math.ceil(len(self.plan) / _CHECKPOINTS)
        main = self.accelerator.is_main_process
        with SummaryWriter(str(self.out / "events")) if main else nullcontext() as events, tqdm(
            total=len(self.plan), initial=self.progress.step, desc=self.out.name, unit=" steps",
            disable=None if main else True,
        ) as bar:  # fmt: skip
            for rows in self.plan[self.progress.step :]:
                value = self._step(rows)
                bar.update()
                if events and self.progress.step % _LOG_STEPS == 0:
                    events.add_scalar("loss", value, self.progress.step)
                    bar.set_postfix(loss=f"{value:.3f}")
                if self.progress.step % between == 0:
                    self.save()
        return self.progress.loss / max(1, self.progress.counted)

    def _step(self, rows: Sequence[int]) -> float:
        progress, schedule = self.progress, self.schedule
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * _rate(progress.step, len(self.plan))
        index, count = self.accelerator.process_index, self.accelerator.num_processes
        own_rows = rows[len(rows) * index // count : len(rows) * (index + 1) // count]  # neighbours are often a pair
        share = list(own_rows or rows[:1])  # a process without rows reads one of weight 0
        ids, mask = pad([self.ids[i] for i in share])
        device = self.accelerator.device
        target, weight = self.target[share].to(device), self.weight[share].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=schedule.precision == "bf16"):
            if self.windows:
                spans, targets, weights = self.windows.padded(share, mask, self.target)
                output = logits_of(self.model(ids.to(device), mask.to(device), spans=spans.to(device))).float()
                losses = (self.loss_of(output, targets.to(device)) * weights.to(device)).sum(-1) * weight
                output = output[:, 0]
            else:
                output = logits_of(self.model(ids.to(device), mask.to(device))).float()
                losses = self.loss_of(output, target) * weight
        if schedule.pairs:
            losses = losses + schedule.pairs * pair_loss(output, target, [self.pairs[i] for i in share]) / len(share)
        # Gradients are averaged over processes, so each process's part of the sum is multiplied by their number.
        loss = losses.sum() * len(own_rows) / len(share) / len(rows) * self.accelerator.num_processes
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress.step += 1
        value = float(self.accelerator.reduce(loss.detach(), reduction="mean"))
        if progress.step > self.last_epoch:
            progress.loss += value
            progress.counted += 1
        return value

    def save(self) -> None:
        """Write a checkpoint in place of the one before."""
        draft, checkpoint = self.out / "checkpoint-new", self.out / "checkpoint"
        self.accelerator.save_state(str(draft))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (draft / "progress.json").write_text(json.dumps(asdict(self.progress)), encoding="utf-8")
            previous = self.out / "checkpoint-before"  # a kill between two renames loses neither
            shutil.rmtree(previous, ignore_errors=True)
            if checkpoint.exists():
                checkpoint.rename(previous)
            draft.rename(checkpoint)
            shutil.rmtree(previous, ignore_errors=True)
        self.accelerator.wait_for_everyone()


@dataclass(frozen=True)
class _Windows:
    """The windows of all rows: spans of tokens, whether each is a part of the message, and the other ones' label."""

    spans: list[NDArray[np.int64]]
    inside: list[list[bool]]
    beside: list[int]

    @classmethod
    def of(cls, train: Dataset) -> "_Windows":
        spans = [np.array(each, np.int64).reshape(-1, 2) for each in train["spans"][:]]
        return cls(spans, train["inside"][:], train["beside"][:])

    def padded(self, rows: Sequence[int], mask: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return spans (batch, units, 2), targets (batch, units, labels) and weights (batch, units) of `rows`.

        The whole, the first unit, has weight 1; the windows share as much.
        """
        units = 1 + max(len(self.spans[row]) for row in rows)
        spans = torch.zeros(len(rows), units, 2, dtype=torch.long)
        weights = torch.zeros(len(rows), units)
        targets = target[list(rows)][:, None].repeat(1, units, 1)
        spans[:, 0, 1], weights[:, 0] = mask.sum(1), 1.0
        for i, row in enumerate(rows):
            if count := len(self.spans[row]):
                spans[i, 1 : 1 + count] = torch.from_numpy(self.spans[row])
                weights[i, 1 : 1 + count] = 1 / count
                if self.beside[row] >= 0:
                    outside = [1 + j for j, inside in enumerate(self.inside[row]) if not inside]
                    targets[i, outside] = torch.eye(target.shape[1])[self.beside[row]]
        return spans, targets, weights


def _plan(
    ids: Sequence[Sequence[int]], messages: NDArray[np.int64], plain: NDArray[np.bool_], times: NDArray[np.int64],
    pairs: Sequence[str], schedule: Schedule,
) -> tuple[list[list[int]], int]:  # fmt: skip
    """Return the rows of every step, and the number of steps before the last epoch; rows are shown `times` an epoch."""
    lengths = np.array([len(row) for row in ids])
    plan: list[list[int]] = []
    steps_before_last = 0
    for epoch in range(math.ceil(schedule.epochs)):
        rng = np.random.default_rng((schedule.seed, epoch))
        rounds = [np.flatnonzero(times > done) for done in range(times.max())]
        order = rng.permutation(
            np.concatenate([rows[one_variant_each(messages[rows], plain[rows], rng)] for rows in rounds])
        )
        batches = token_batches(*_side_by_side(lengths, order, pairs), schedule.tokens, rng)
        steps_before_last = len(plan)
        plan += batches[: max(1, round(len(batches) * min(1.0, schedule.epochs - epoch)))]
    return plan, steps_before_last


def _side_by_side(
    lengths: NDArray[np.int64], order: NDArray[np.int64], pairs: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return lengths and order so that the rows of a pair come one after another, each as long as the longest of them.

    Batches sort by length, so that a pair shares a batch unless it ends there.
    """
    lengths, rows_of = lengths.copy(), dict[str, list[int]]()
    for row in order.tolist():
        rows_of.setdefault(pairs[row] or str(row), []).append(row)
    for rows in rows_of.values():
        lengths[rows] = lengths[rows].max()
    return lengths, np.array([row for rows in rows_of.values() for row in rows], np.int64)


def _optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW, fused, with the head's learning rate times `head_rate`."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    head = [p for name, p in trained if name.startswith("head.")]
    rest = [p for name, p in trained if not name.startswith("head.")]
    rate = schedule.learning_rate
    groups = [{"params": rest, "base_lr": rate}, {"params": head, "base_lr": rate * schedule.head_rate}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, weight_decay=0.01, fused=True)


def _rate(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: linear warm-up over 6% of the steps, then cosine decay to 0."""
    first = 0.06 * steps
    if step < first:
        return (step + 1) / (first + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - first) / max(1.0, steps - first)))


def logits_of(output: Tensor | ModelOutput) -> Tensor:
    """Return a network's output: a tensor, or the logits in the output of a transformers model."""
    return output if isinstance(output, Tensor) else output["logits"]


def predict(model: nn.Module, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Return the model's outputs (n, ...) for token ids, in their order; in bf16."""
    lengths = np.array([len(row) for row in ids])
    order = np.argsort(lengths, kind="stable")
    outputs: list[NDArray[np.float32]] = []
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for batch in _cut(tqdm(order.tolist(), desc="predict", unit=" rows", disable=None), lengths, _PREDICTED):
            padded, mask = pad([ids[i] for i in batch])
            outputs.append(logits_of(model(padded.to(device), mask.to(device))).float().cpu().numpy())
    return np.concatenate(outputs)[np.argsort(order)]
