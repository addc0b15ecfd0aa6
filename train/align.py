"""Alignment: trains a few layers with the lexicon's words until their pooled outputs are those of the whole original encoder.

Two losses are made up for at once, before any label is seen: that of the layers left out, and that of a word's embedding
being a mean of its pieces'. The original with all of its layers and its own vocabulary is the teacher, unlabelled messages
are the data (distillation of a general encoder, Jiao et al. 2020). Outputs are compared standardised: those of one message
and the next differ by a fraction of what all have in common.
"""

from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor, nn
from transformers import BertModel

from jingyin.model.network import mean_pool
from jingyin.train.data import read_split
from jingyin.train.encoder import load_pretrained
from jingyin.train.fit import fit, predict
from jingyin.train.recipe import Align
from jingyin.train.vocabularies import pieces_encode, start_from


class Pooled(nn.Module):
    """An encoder whose output is its pooled hidden state (batch, hidden)."""

    def __init__(self, encoder: BertModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the mean of the last hidden states over the mask."""
        return mean_pool(self.encoder, input_ids, attention_mask)


class _Standardised(Pooled):
    """A pooled encoder, less the mean and over the sd (hidden,) of what it is to become."""

    mean: Tensor
    sd: Tensor

    def __init__(self, encoder: BertModel, mean: Tensor, sd: Tensor) -> None:
        super().__init__(encoder)
        self.register_buffer("mean", mean)
        self.register_buffer("sd", sd)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (super().forward(input_ids, attention_mask) - self.mean) / self.sd


def run_align(recipe: Align, encoder: str, corpus: Path, out: Path, resume: bool) -> dict[str, float]:
    """Align an encoder and leave it in `out`/encoder; returns validation metrics.

    `cosine` is the mean cosine between the aligned and the original pooled outputs of validation messages, standardised.
    """
    torch.manual_seed(recipe.seed)
    splits = [read_split(corpus, "train").drawn(recipe.rows, recipe.seed), read_split(corpus, "validation")]
    teacher = load_pretrained(encoder)
    teach = pieces_encode(teacher, recipe.max_tokens)
    wanted = [torch.tensor(predict(Pooled(teacher.model), teach(rows.cleaned))) for rows in splits]
    mean, sd = wanted[0].mean(0), wanted[0].std(0).clamp_min(1e-4)
    start = start_from(recipe, encoder)
    train_set, validation_set = (
        _dataset(start.encode(rows.cleaned), (target - mean) / sd) for rows, target in zip(splits, wanted, strict=True)
    )
    model = _Standardised(start.encoder, mean, sd)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # a vector to match leaves nothing to overfit
    metrics = fit(
        model, train_set, validation_set, out, epochs=recipe.epochs, batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate, warmup=recipe.warmup, precision=recipe.precision, seed=recipe.seed,
        resume=resume, classify=False,
    )  # fmt: skip
    found, target = torch.tensor(predict(model, validation_set["ids"])), torch.tensor(validation_set["target"])
    metrics["cosine"] = float(nn.functional.cosine_similarity(found, target).mean())
    if PartialState().is_main_process:
        start.encoder.save_pretrained(out / "encoder")
        (out / "encoder" / "lexicon.txt").write_text(start.lexicon, encoding="utf-8")
    return metrics


def _dataset(ids: list[list[int]], target: Tensor) -> Dataset:
    return Dataset.from_dict({"ids": ids, "target": list(target.numpy()), "length": list(map(len, ids))})
