"""Alignment: trains a few layers with the lexicon's words until their pooled outputs are those of the original encoder.

Two losses are made up for at once, before any label is seen: that of the layers left out, and that of a word's
embedding being a mean of its pieces'. The original with all of its layers and its own vocabulary is the teacher,
unlabelled messages are the data (distillation of a general encoder, Jiao et al. 2020). Outputs are compared
standardised: those of one message and the next differ by a fraction of what all have in common.
"""

from collections.abc import Sequence

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor, nn

from jingyin.model.text import CleanText
from jingyin.train.data import Encode, examples, read_split
from jingyin.train.encoder import Pooled, load_pretrained, with_own_pieces
from jingyin.train.loop import Schedule, fit, predict, without_dropout
from jingyin.train.recipes import Align
from jingyin.train.saved import Vocabulary, save_encoder
from jingyin.train.stages.job import Job, StageResult
from jingyin.train.start import encoder_of, start_from


def distance(output: Tensor, target: Tensor) -> Tensor:
    """Return one minus the cosine and the mean squared error (batch,) of vectors (batch, hidden), added up."""
    return 1 - nn.functional.cosine_similarity(output, target) + (output - target).square().mean(-1)


def run_align(job: Job[Align]) -> StageResult:
    """Align an encoder and leave it in the run folder; returns validation metrics.

    `cosine` is the mean cosine between aligned and original pooled outputs of validation messages, standardised.
    """
    recipe = job.recipe
    torch.manual_seed(recipe.seed)
    train = read_split(job.corpus, "train").drawn(recipe.rows, recipe.seed)
    validation = read_split(job.corpus, "validation")
    original, read = _original(recipe, train.cleaned)
    wanted = [torch.tensor(predict(original, read(rows.cleaned))) for rows in (train, validation)]
    mean, sd = wanted[0].mean(0), wanted[0].std(0).clamp_min(1e-4)
    start = start_from(recipe, recipe.encoder, train.cleaned)
    encode = encoder_of(start.vocabulary, recipe.max_tokens)
    model = without_dropout(Pooled(start.encoder))  # a vector to match leaves nothing to overfit
    model.mean.copy_(mean)
    model.sd.copy_(sd)
    rows: Dataset = examples(train, encode, ((wanted[0] - mean) / sd).numpy())
    schedule = Schedule(
        recipe.epochs, recipe.tokens, recipe.learning_rate, recipe.warmup, 1.0, recipe.precision, recipe.seed
    )
    loss = fit(model, rows, job.folder, schedule, distance)
    found = torch.tensor(predict(model, encode(validation.cleaned)))
    cosine = float(nn.functional.cosine_similarity(found, (wanted[1] - mean) / sd).mean())
    if PartialState().is_main_process:
        save_encoder(start.encoder, start.vocabulary, job.folder)
    return {"loss": loss, "cosine": cosine}


def _original(recipe: Align, cleaned: Sequence[CleanText]) -> tuple[Pooled, Encode]:
    """Return the original encoder with all of its layers, and what gives it the pieces of its own that it reads.

    Those are the ones that come more than once in `cleaned`, the training messages; the rest is read as smaller ones.
    """
    texts = [each.text for each in cleaned]
    model, pieces = with_own_pieces(load_pretrained(recipe.encoder), texts, recipe.max_tokens)
    return Pooled(model), encoder_of(Vocabulary(pieces=pieces), recipe.max_tokens)
