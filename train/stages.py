"""The stages of training: align, classify, calibrate."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn

from jingyin.model.bundle import read_bundle
from jingyin.model.cascade import FLAGGED_INDEX, risk_logit, softmax, with_risk
from jingyin.model.prefilter import code_points, prefilter_scores
from jingyin.model.text import CleanText, clean
from jingyin.serve.scorer import Scorer
from jingyin.train.bundles import bundle_folder, is_bundle
from jingyin.train.corpus.company import FRAMES
from jingyin.train.corpus.public import QUOTED
from jingyin.train.data import SIDES, Rows, clauses, examples, examples_in_parts, one_hot, read_split, unlabelled
from jingyin.train.encoder import Pooled, encoder_of, load_pretrained, parts_of_tokens, start_from, with_own_pieces
from jingyin.train.loop import Schedule, fit, predict, without_dropout
from jingyin.train.losses import cross_entropy, margin_loss
from jingyin.train.network import SmsClassifier, annotated_messages, fit_sign_head
from jingyin.train.pack.bundle import pack
from jingyin.train.pack.readings import refuse_abstentions
from jingyin.train.recipes import Align, Calibrate, Classify
from jingyin.train.runs import StageContext, StageResult, run_of, weights_sha256
from jingyin.train.saved import Vocabulary, load_classifier, save_classifier, save_encoder

# The align stage: trains a few layers with the lexicon's words until they give the original encoder's pooled outputs.
#
# This makes up for two losses at once, before any label is seen: that of the layers left out, and that of averaging the
# embeddings of a word's pieces. The original with all of its layers and its own vocabulary is the teacher, unlabelled
# messages are the data (distillation of a general encoder, Jiao et al. 2020). Outputs are compared standardised: the
# differences between messages are a fraction of the part that all outputs share.


def distance(output: Tensor, target: Tensor) -> Tensor:
    """Return one minus the cosine and the mean squared error (batch,) of vectors (batch, hidden), added up."""
    return 1 - nn.functional.cosine_similarity(output, target) + (output - target).square().mean(-1)


def run_align(context: StageContext[Align]) -> StageResult:
    """Align an encoder and leave it in the run folder; returns validation metrics.

    `cosine` is the mean cosine between aligned and original pooled outputs of validation messages, standardised.
    """
    recipe = context.recipe
    torch.manual_seed(recipe.seed)
    train = read_split(context.corpus, "train").drawn(recipe.rows, recipe.seed)
    validation = read_split(context.corpus, "validation")
    # The original reads those of its pieces that training messages use more than once, and the rest as smaller ones.
    texts = [each.text for each in train.cleaned]
    original, pieces = with_own_pieces(load_pretrained(recipe.encoder), texts, recipe.max_tokens)
    encode_original = encoder_of(Vocabulary(pieces), recipe.max_tokens)
    targets = [torch.tensor(predict(Pooled(original), encode_original(rows.cleaned))) for rows in (train, validation)]
    mean, sd = targets[0].mean(0), targets[0].std(0).clamp_min(1e-4)
    start = start_from(recipe, recipe.encoder, train.cleaned)
    encode = encoder_of(start.vocabulary, recipe.max_tokens)
    model = without_dropout(Pooled(start.encoder))  # a vector to match leaves nothing to overfit
    model.mean.copy_(mean)
    model.sd.copy_(sd)
    rows: Dataset = examples(train, encode, ((targets[0] - mean) / sd).numpy())
    loss = fit(model, rows, context.folder, Schedule.of(recipe), distance)
    outputs = torch.tensor(predict(model, encode(validation.cleaned)))
    cosine = float(nn.functional.cosine_similarity(outputs, (targets[1] - mean) / sd).mean())
    if PartialState().is_main_process:
        save_encoder(start.encoder, start.vocabulary, context.folder)
    return {"loss": loss, "cosine": cosine}


def teacher_probabilities(teachers: Sequence[str], texts: Sequence[CleanText], cache: Path) -> NDArray[np.float32]:
    """Return the probabilities (n, labels) of the mean of the teachers' logits on clean texts (Hinton et al. 2015).

    A teacher is the run folder of a classifier, or a bundle, whose networks all read every text. Processes share the
    work, each taking every n-th text. A teacher takes longer than an epoch: its outputs are cached in the folder
    `cache`, for stages with the same teacher.
    """
    logits = []
    for name in teachers:
        if is_bundle(name):
            reader, compute = read_bundle(bundle_folder(name)).manifest.id, partial(_of_bundle, name)
        else:
            reader, compute = weights_sha256({name: name})[name], partial(_of_run, Path(name))
        logits.append(_once(reader, texts, cache, compute))
    return np.asarray(softmax(np.mean(logits, axis=0)), np.float32)


def _once(
    reader: str, texts: Sequence[CleanText], cache: Path, compute: Callable[[Sequence[CleanText]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Return the outputs of `reader` on texts (n, ...): cached in the folder `cache`, or computed by all processes."""
    processes = PartialState()
    # Originals, which also determine the clean texts: a bundle's prefilter abstains by what the cleaning undid.
    key = hashlib.sha256(json.dumps([reader, *(each.original for each in texts)]).encode()).hexdigest()[:16]
    file = cache / f"{key}.npy"
    if not file.is_file():
        own = texts[processes.process_index :: processes.num_processes]
        parts = gather_object([compute(own)] if own or processes.is_main_process else [])
        if processes.is_main_process:
            merged = np.empty((len(texts), *parts[0].shape[1:]), np.float32)
            for index, part in enumerate(parts):
                merged[index :: processes.num_processes] = part
            cache.mkdir(parents=True, exist_ok=True)
            draft = file.with_suffix(".part.npy")
            np.save(draft, merged)
            draft.rename(file)
        processes.wait_for_everyone()
    return np.asarray(np.load(file), np.float32)


def _of_run(run: Path, texts: Sequence[CleanText]) -> NDArray[np.float32]:
    model, vocabulary = load_classifier(run)
    return predict(model, encoder_of(vocabulary, model.encoder.config.max_position_embeddings)(texts))


def _of_bundle(name: str, texts: Sequence[CleanText]) -> NDArray[np.float32]:
    scorer = Scorer.load(bundle_folder(name), prefilter=False, cache_bytes=0)
    own_cores = max(1, len(os.sched_getaffinity(0)) // int(PartialState().num_processes))  # of each training process
    verdicts = scorer.score_many((text.text for text in texts), processes=own_cores)
    probabilities = [list(verdict.probabilities.values()) for verdict in verdicts]
    return np.asarray(np.log(np.maximum(np.array(probabilities), 1e-6)), np.float32)


TEACHERS = "teachers"
"""Folder among the run folders that caches teachers' outputs."""
STANDARD_MESSAGES = 512
"""Training messages from which the head's standardisation is measured."""


def run_classify(context: StageContext[Classify]) -> StageResult:
    """Fine-tune an encoder, or train a classifier further, on labels and teachers' soft labels; returns metrics.

    Leaves it in the run folder, with a bundle of it if the recipe wants one.
    """
    recipe, corpus, out = context.recipe, context.corpus, context.folder
    encoder, teachers = run_of(recipe.encoder, context.out), [run_of(name, context.out) for name in recipe.teachers]
    torch.manual_seed(recipe.seed)
    train = read_split(corpus, "train").drawn(recipe.rows, recipe.seed)
    signed = annotated_messages(train) if recipe.signs else None
    start = start_from(recipe, encoder, train.cleaned)
    encode = encoder_of(start.vocabulary, recipe.max_tokens)
    if recipe.bundle:  # refused now rather than after the training
        refuse_abstentions(start.vocabulary.tokenizer, read_split(corpus, "calibration"), recipe.passed[0])
    if recipe.traffic:
        train = train.take(np.flatnonzero(_read_by(run_of(recipe.traffic, context.out), train, recipe.seed)))
    train, target = taught(recipe, teachers, train, context.out / TEACHERS)
    model = without_dropout(start.classifier or SmsClassifier.on(start.encoder))
    sign_head, model = model.sign_head, model.with_signs(None)  # trained anew below, or kept: the encoder moves little
    if recipe.frozen:
        for part in (model.encoder.embeddings, *model.encoder.encoder.layer[: recipe.frozen]):
            part.requires_grad_(False)
    initial = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    positions = model.encoder.config.max_position_embeddings
    rows = examples_in_parts(train, parts_of_tokens(start.vocabulary, positions), target)
    if start.classifier is None:
        standardise(model, rows["ids"], recipe.seed)
    loss = fit(model, rows, out, Schedule.of(recipe), margin_loss(recipe.margin) if recipe.margin else cross_entropy)
    model = model.cpu()
    validation = read_split(corpus, "validation")
    ids = encode(validation.cleaned)
    share = way_back(model, initial, ids, validation) if recipe.way_back == "chosen" else recipe.way_back
    go_back(model, initial, share)
    model = model.with_signs(sign_head if signed is None else fit_sign_head(model, signed, encode, recipe.seed))
    if PartialState().is_main_process:
        save_classifier(model, start.vocabulary, out / "network")
    chosen = {"way_back": share} if recipe.way_back == "chosen" else {}
    results = {"loss": loss, **metrics(predict(model, ids), validation.labels), **chosen}
    if recipe.bundle and PartialState().is_main_process:
        pack({"model": out}, None, recipe, corpus, out, {**context.facts, "metrics": results})
    return results


WAYS_BACK = (0.0, 0.25, 0.5, 0.75, 1.0)


def way_back(model: SmsClassifier, initial: dict[str, Tensor], ids: Sequence[Sequence[int]], rows: Rows) -> float:
    """Return the share of the weights `initial` that `model` should get back, by held-out `rows` of token `ids`.

    Shares are judged by the cross-entropy of the risk, the user's own messages, if any, counting as much as all others.
    The least share is taken that is not worse than the best by more than one standard error of the difference: a dozen
    held-out messages say little, and by chance they mostly favour no change.
    """
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = [part for part in (rows.own, ~rows.own) if part.any()]
    losses = []
    for share in WAYS_BACK:
        go_back(model, initial, share)
        risks = risk_logit(predict(model, ids))
        losses.append(np.logaddexp(0, np.where(rows.flagged, -risks, risks)))
        model.load_state_dict(trained)
    best = min(losses, key=lambda loss: sum(loss[part].mean() for part in kinds))

    def is_as_good(loss: NDArray[np.float32]) -> bool:
        worse = [(loss - best)[part] for part in kinds]
        return bool(sum(part.mean() for part in worse) <= np.sqrt(sum(part.var() / len(part) for part in worse)))

    return next(share for share, loss in zip(WAYS_BACK, losses, strict=True) if is_as_good(loss))


def go_back(model: SmsClassifier, initial: dict[str, Tensor], share: float) -> None:
    """Mix a `share` of the weights `initial` into those of a classifier, in place."""
    trained = model.state_dict()
    model.load_state_dict({name: trained[name].lerp(tensor, share) for name, tensor in initial.items()})


_OTHERS = 0.1  # share shown of real messages that the prefilter stops: windows and disguises let similar ones through


def _read_by(bundle: str, rows: Rows, seed: int) -> NDArray[np.bool_]:
    """Mark (n,) authored rows, real ones that a bundle's prefilter lets through, and a tenth of the others."""
    loaded = read_bundle(bundle_folder(bundle))
    scores = prefilter_scores(loaded.prefilter_weights, code_points([each.text for each in rows.cleaned]))
    passes = scores[0] >= loaded.manifest.prefilter.ordinary.threshold
    drawn = np.random.default_rng(seed).random(int(rows.messages.max()) + 1)[rows.messages] < _OTHERS
    return np.asarray(~rows.real | passes | drawn)


def metrics(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return macro-F1 over the labels, and the average precision of the risk for the flagged ones."""
    return {
        "macro_f1": float(f1_score(labels, logits.argmax(1), average="macro")),
        "flagged_ap": float(average_precision_score(np.isin(labels, FLAGGED_INDEX), risk_logit(logits))),
    }


def taught(recipe: Classify, teachers: Sequence[str], rows: Rows, cache: Path) -> tuple[Rows, NDArray[np.float32]]:
    """Return the rows to train on and their targets: labels, mixed for authored messages with teachers' probabilities.

    Teachers read each message as it stands, and its copies get the same probabilities: a copy is to be judged as the
    message is. A message on whose side, flagged or not, they are wrong has its label alone, and so have framed copies
    and quoted messages. Clauses of messages have the teachers' probabilities alone. A message of the user's own has its
    label, and no teacher reads it; one labelled only as flagged or not has that side's risk, distributed by the
    teachers' probabilities.
    """
    target = one_hot(rows.labels, recipe.label_smoothing)
    side_only = rows.own & np.array([family in SIDES for family in rows.families])
    # A framed copy has its label alone: the marks around it are what earlier bundles went by.
    framed = np.array([evasion.removeprefix("company:") in FRAMES for evasion in rows.evasions])
    quoted = np.array([source == QUOTED for source in rows.sources])
    read = side_only | ~(rows.own | rows.real | framed | quoted)
    if not teachers or not read.any():
        return rows, target
    numbers, first = np.unique(rows.messages[read], return_index=True)
    plain = rows.take(np.flatnonzero(read)[first])
    pieces = clauses([each.original for each in plain.cleaned], recipe.clauses, recipe.seed)
    clause_rows = unlabelled([*map(clean, pieces)])
    probabilities = teacher_probabilities(teachers, [*plain.cleaned, *clause_rows.cleaned], cache)
    message = np.searchsorted(numbers, rows.messages[read])
    teacher_targets, same = probabilities[message], rows.labels[read] == plain.labels[message]
    # A teacher on the other side of the label would teach its mistake. Copies whose company or quotation changes the
    # label keep that label.
    flagged = rows.flagged[read]
    agrees = (teacher_targets[:, FLAGGED_INDEX].sum(1) >= 0.5) == flagged
    share = (recipe.distillation_weight * (same & agrees))[:, None]
    mixed = (1 - share) * target[read] + share * teacher_targets
    sided = side_only[read]
    odds = np.log(1 / max(recipe.label_smoothing, 1e-3) - 1)
    mixed[sided] = with_risk(np.log(np.maximum(teacher_targets[sided], 1e-6)), np.where(flagged[sided], odds, -odds))
    target[read] = mixed
    sure = (probabilities[np.arange(len(plain)), plain.labels] >= _SURE) & ~plain.own
    left_out = numbers[sure & (np.random.default_rng(recipe.seed).random(len(plain)) >= recipe.sure)]
    shown = np.flatnonzero(~np.isin(rows.messages, left_out))
    target = np.concatenate([target[shown], probabilities[len(plain) :]]).astype(np.float32)
    return rows.take(shown).and_(clause_rows), target


_SURE = 0.95  # of the teachers' probability of a message's label


def standardise(model: SmsClassifier, ids: list[list[int]], seed: int) -> None:
    """Set the head's mean and sd from pooled outputs of STANDARD_MESSAGES messages, in place."""
    chosen = np.random.default_rng(seed).permutation(len(ids))[:STANDARD_MESSAGES]
    pooled = torch.tensor(predict(Pooled(model.encoder), [ids[i] for i in chosen]))
    model.mean.copy_(pooled.mean(0))
    model.sd.copy_(pooled.std(0).clamp_min(1e-4) if len(pooled) > 1 else torch.ones_like(model.sd))


def run_calibrate(context: StageContext[Calibrate]) -> StageResult:
    """Leave a bundle of earlier stages' networks, or of a bundle's; the first process returns its calibration error."""
    recipe = context.recipe
    if not PartialState().is_main_process:
        return {}
    runs: dict[str, Path] = {name: Path(run_of(run, context.out)) for name, run in (recipe.networks or {}).items()}
    manifest = pack(runs, source_of(recipe, context.out), recipe, context.corpus, context.folder, context.facts)
    return {"ece": manifest.calibration.ece_after}


def source_of(recipe: Calibrate, out: Path) -> Path | None:
    """Return the folder of the bundle that a recipe starts from, or None; `out` holds the run folders."""
    if recipe.bundle is None and recipe.networks:
        return None
    return bundle_folder(run_of(recipe.bundle or "bundle", out))


STAGES: dict[str, Callable[[StageContext[Any]], StageResult]] = {
    "align": run_align, "classify": run_classify, "calibrate": run_calibrate,
}  # fmt: skip
"""A recipe's `stage` -> the function that runs it."""
