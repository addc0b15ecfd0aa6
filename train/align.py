"""Vocabulary alignment: trains new word embeddings until the encoder's pooled outputs are the original's.

The mean of a word's pieces is a start, not an equal: on FBS categories it cost 2 points of macro-F1. Here the same
layers with their own vocabulary are the teacher, unlabelled messages the data, and only the embeddings learn.
"""

from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor, nn
from transformers import BertModel

from jingyin.model.network import mean_pool
from jingyin.train.data import Encode, Rows, read_split
from jingyin.train.encoder import keep_layers, load_pretrained
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


def run_align(recipe: Align, encoder: str, corpus: Path, out: Path, resume: bool) -> dict[str, float]:
    """Align the lexicon's embeddings and leave the encoder in `out`/encoder; returns validation metrics.

    `cosine` is the mean cosine between the aligned and the original pooled outputs of validation messages.
    """
    torch.manual_seed(recipe.seed)
    train = read_split(corpus, "train").drawn(recipe.rows, recipe.seed)
    validation = read_split(corpus, "validation")
    teacher = load_pretrained(encoder)
    keep_layers(teacher.model, recipe.layers)
    teach = pieces_encode(teacher, recipe.max_tokens)
    start = start_from(recipe, encoder)
    train_set, validation_set = (_dataset(rows, teacher.model, teach, start.encode) for rows in (train, validation))
    model = Pooled(start.encoder)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "word_embeddings" in name
    metrics = fit(
        model, train_set, validation_set, out, epochs=recipe.epochs, batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate, warmup=recipe.warmup, precision=recipe.precision, seed=recipe.seed,
        resume=resume, classify=False,
    )  # fmt: skip
    aligned, original = torch.tensor(predict(model, validation_set["ids"])), torch.tensor(validation_set["target"])
    metrics["cosine"] = float(nn.functional.cosine_similarity(aligned, original).mean())
    if PartialState().is_main_process:
        start.encoder.save_pretrained(out / "encoder")
        (out / "encoder" / "lexicon.txt").write_text(start.lexicon, encoding="utf-8")
    return metrics


def _dataset(rows: Rows, teacher: BertModel, teach: Encode, encode: Encode) -> Dataset:
    target = predict(Pooled(teacher), teach(rows.cleaned))
    ids = encode(rows.cleaned)
    return Dataset.from_dict({"ids": ids, "target": list(target), "length": list(map(len, ids))})
