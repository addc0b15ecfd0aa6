"""The training loop: transformers' Trainer, with a faster head, soft targets and row weights."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainingArguments

from jingyin.model.labels import FLAGGED, LABELS
from jingyin.train.data import collate

FLAGGED_INDEX = [LABELS.index(label) for label in FLAGGED]


class SmsTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose targets are distributions (classify) or vectors (align), and whose head learns faster."""

    def __init__(self, *args: Any, head_rate: float = 1.0, **kwargs: Any) -> None:  # noqa: ANN401  Trainer's own
        self.head_rate = head_rate
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with the head's learning rate times `head_rate`."""
        if self.optimizer is None:
            trained = [(n, p) for n, p in (model or self.model).named_parameters() if p.requires_grad]
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
    `out`/checkpoints, TensorBoard's events beside them. With `resume` it goes on from the last checkpoint; the result
    is that of an uninterrupted run. Under torchrun or accelerate launch the batch is that of one process.
    """
    checkpoints = out / "checkpoints"
    arguments = TrainingArguments(
        output_dir=str(checkpoints), num_train_epochs=epochs, per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=64, learning_rate=learning_rate, warmup_steps=warmup, lr_scheduler_type="cosine",
        use_cpu=not torch.cuda.is_available(), bf16=precision == "bf16", seed=seed, data_seed=seed,
        train_sampling_strategy="group_by_length", length_column_name="length", remove_unused_columns=False,
        label_names=["target"], eval_strategy="epoch", save_strategy="epoch", save_total_limit=1, logging_steps=20,
        report_to=["tensorboard"], dataloader_pin_memory=False, disable_tqdm=False, max_grad_norm=1.0,
    )  # fmt: skip
    trainer = SmsTrainer(
        model, arguments, train_dataset=train, eval_dataset=validation, data_collator=collate, head_rate=head_rate,
        compute_metrics=classification_metrics if classify else None,
    )  # fmt: skip
    found = any(checkpoints.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=True if resume and found else None)
    metrics = trainer.evaluate()
    return {key.removeprefix("eval_"): float(value) for key, value in metrics.items() if "_per_second" not in key}


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
