"""The training loop: transformers' Trainer, with a faster head, soft targets and row weights."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from jingyin.model.errors import ConfigError, InputError
from jingyin.model.labels import FLAGGED, LABELS
from jingyin.train.data import collate

FLAGGED_INDEX = [LABELS.index(label) for label in FLAGGED]


class LengthGrouped(Sampler[int]):
    """Rows of like length side by side, in whole batches; the rest of an epoch, less than a batch, is left out.

    The order depends on seed and epoch alone. transformers' own sampler draws it from the global generator, which
    dropout moves on: processes would then disagree on the order and train on some rows twice, on others never.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next; the Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) // self.batch * self.batch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = get_length_grouped_indices(self.lengths, self.batch, generator=generator)  # type: ignore[no-untyped-call]
        # The grouping goes from long to short inside each block. Left so, a whole run over 22,000 authored rows learnt
        # less than 6,000 rows in shuffled batches do: length goes with the label.
        batches = torch.randperm(len(self) // self.batch, generator=generator).tolist()
        return (row for batch in batches for row in order[batch * self.batch : (batch + 1) * self.batch])


class SmsTrainer(Trainer):
    """A Trainer whose targets are distributions (classify) or vectors (align), and whose head learns faster."""

    def __init__(self, *args: Any, head_rate: float, sampler: LengthGrouped, **kwargs: Any) -> None:  # noqa: ANN401
        self.head_rate, self.sampler = head_rate, sampler
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGrouped:
        return self.sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with the head's learning rate times `head_rate`."""
        if self.optimizer is None:
            network: Any = model or self.model
            trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
            head = [p for n, p in trained if "head." in n]
            rest = [p for n, p in trained if "head." not in n]
            rate = self.args.learning_rate
            groups = [{"params": rest, "lr": rate}, {"params": head, "lr": rate * self.head_rate}]
            self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.01)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy to the target distribution, or one minus cosine to the target vector."""
        output = model(inputs["input_ids"], inputs["attention_mask"]).float()
        if "weight" in inputs:
            each = -(inputs["target"] * output.log_softmax(-1)).sum(-1)
            loss = (each * inputs["weight"]).mean()
        else:
            loss = 1 - nn.functional.cosine_similarity(output, inputs["target"]).mean()
            loss = loss + nn.functional.mse_loss(output, inputs["target"])
        return (loss, {"logits": output}) if return_outputs else loss


def classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Return macro-F1 over the labels, and the average precision of the risk for the flagged ones."""
    logits, target = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    truth = target.argmax(1)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    risk = (powers / powers.sum(1, keepdims=True))[:, FLAGGED_INDEX].sum(1)
    return {
        "macro_f1": float(f1_score(truth, logits.argmax(1), average="macro")),
        "flagged_ap": float(average_precision_score(np.isin(truth, FLAGGED_INDEX), risk)),
    }


def fit(
    model: nn.Module,
    train: Dataset,
    validation: Dataset,
    out: Path,
    *,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    warmup: float,
    precision: str,
    seed: int,
    resume: bool,
    head_rate: float = 1.0,
    classify: bool = True,
) -> dict[str, float]:
    """Train `model` in place and return the metrics on `validation`.

    Datasets have `ids`, `target`, `length` and, to classify, `weight`. Checkpoints of every epoch go to
    `out`/checkpoints, TensorBoard's events beside them. With `resume` it goes on from the last whole checkpoint; the
    result is that of an uninterrupted run. Under torchrun or accelerate launch the processes share each batch, so that
    losses are those of one process but for dropout, which each process draws for itself (and but for validation's
    loss, which counts some rows of the last batch twice).

    Raises ConfigError when the processes can't share a batch evenly, InputError when there is less than one batch.
    """
    checkpoints = out / "checkpoints"
    arguments = TrainingArguments(
        output_dir=str(checkpoints), num_train_epochs=epochs,
        per_device_train_batch_size=_share(batch_size, len(train)),
        per_device_eval_batch_size=64, learning_rate=learning_rate, warmup_steps=warmup, lr_scheduler_type="cosine",
        use_cpu=not torch.cuda.is_available(), bf16=precision == "bf16", seed=seed, data_seed=seed,
        remove_unused_columns=False, label_names=["target"], eval_strategy="epoch", save_strategy="epoch", save_total_limit=1, logging_steps=20,
        report_to=["tensorboard"], dataloader_pin_memory=False, disable_tqdm=False, max_grad_norm=1.0,
    )  # fmt: skip
    trainer = SmsTrainer(
        model, arguments, train_dataset=train, eval_dataset=validation, data_collator=collate, head_rate=head_rate,
        sampler=LengthGrouped(train["length"], batch_size, seed),
        compute_metrics=classification_metrics if classify else None,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints) if resume else None)
    metrics = trainer.evaluate()
    timings = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")  # differ between equal runs
    return {key.removeprefix("eval_"): float(value) for key, value in metrics.items() if key not in timings}


def _share(batch_size: int, rows: int) -> int:
    """Return the rows of a batch that fall to each process."""
    processes: int = PartialState().num_processes
    if batch_size % processes:
        raise ConfigError(f"batch_size {batch_size} can't be shared by {processes} processes; make it a multiple")
    if rows < batch_size:
        raise InputError(f"{rows} training rows are less than a batch of {batch_size}; add rows, or lower batch_size")
    return batch_size // processes


def _last_checkpoint(folder: Path) -> str | None:
    """Return the newest whole checkpoint: trainer_state.json is what is written last."""
    whole = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def predict(model: nn.Module, ids: list[list[int]], *, batch_size: int = 64) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the model's outputs (n, ...) for token ids, in their order; bf16 where the CPU has it."""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    parts = []
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(order), batch_size):
            batch = collate([{"ids": ids[i]} for i in order[start : start + batch_size]])
            parts.append(model(batch["input_ids"], batch["attention_mask"]).float().numpy())
    outputs = np.concatenate(parts)
    restored = np.empty_like(outputs)
    restored[order] = outputs
    return restored
