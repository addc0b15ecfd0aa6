"""Fits the cascade on held-out rows: prefilter, fusion, how far networks read, thresholds, and what is lost on the way.

Every number comes from the int8 networks and the decision code that are served (model/decision.py, serve/networks.py),
long messages in their windows included.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from jingyin.model.bundle import Bundle, Calibration, Network, Prefilter, SignScale, Stop, Threshold
from jingyin.model.decision import FLAGGED_INDEX, fuse, fused_logit, reads_on, sign_confidence, softmax
from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.model.prefilter import (
    BUCKETS,
    code_points,
    features,
    is_opaque,
    known_characters,
    prefilter_scores,
    unknown_shares,
)
from jingyin.model.signs import SIGN_IDS
from jingyin.model.tokenizer import SmsTokenizer
from jingyin.serve.networks import NetworkReader, tokenizers_of
from jingyin.train.corpus.rows import is_annotated
from jingyin.train.data import Rows, read_split, signs_of_rows
from jingyin.train.pack.thresholds import (
    choose_threshold,
    expected_calibration_error,
    fit_fusion,
    loss_of,
    share_threshold,
)
from jingyin.train.recipes import Calibrate, Classify

# Trains the prefilter, and tunes one that is there.


def train_prefilter(texts: Sequence[str], flagged: NDArray[np.bool_], seed: int) -> NDArray[np.float16]:
    """Return weights (BUCKETS,) of one score that separate clean texts to let through, `flagged` (n,), from the rest.

    By labels and not by what a network says: the score is a second opinion, which fusion weighs in. Where all texts are
    on one side all weights are 0.
    """
    weights = np.zeros(BUCKETS, np.float16)
    if flagged.all() or not flagged.any():
        return weights
    model = LogisticRegression(C=30.0, class_weight="balanced", max_iter=300, random_state=seed, solver="liblinear")
    model.fit(_matrix(texts), flagged)
    weights[:-1] = model.coef_[0].astype(np.float16)
    weights[-1] = np.float16(model.intercept_[0])
    return weights


_TUNING_PENALTY = 2e-5  # 2e-3 lost: it let no more threats of a new kind through than before (train/LOG.md)
_TUNING_STEPS = 100


def tune_prefilter(
    weights: NDArray[np.floating[Any]], texts: Sequence[str], flagged: NDArray[np.bool_], times: NDArray[np.int64]
) -> NDArray[np.float16]:
    """Return prefilter weights (BUCKETS,) that also separate the `flagged` of clean `texts`, and else stay as they are.

    Logistic regression whose weights are drawn to `weights` instead of to 0: of features that `texts` do not hold,
    nothing that was learnt is lost. Each text counts `times` (n,), and both sides alike.
    """
    matrix = _matrix(texts)
    before = weights.astype(np.float64)
    signs = np.where(flagged, 1.0, -1.0)
    share = 0.5 * times / np.where(flagged, max(1, times[flagged].sum()), max(1, times[~flagged].sum()))

    def loss(change: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = signs * (matrix @ (before[:-1] + change[:-1]) + before[-1] + change[-1])
        slope = -signs * share / (1 + np.exp(np.clip(margins, -700, 700)))
        value = float((share * np.logaddexp(0, -margins)).sum() + _TUNING_PENALTY * (change[:-1] ** 2).sum())
        return value, np.append(matrix.T @ slope, slope.sum()) + 2 * _TUNING_PENALTY * np.append(change[:-1], 0)

    change = minimize(loss, np.zeros(BUCKETS), jac=True, method="L-BFGS-B", options={"maxiter": _TUNING_STEPS}).x
    return np.asarray(before + change, np.float16)


def _matrix(texts: Sequence[str]) -> csr_matrix:
    rows = [features(code_points([text])[0]) for text in texts]
    lengths = np.array([len(row) for row in rows])
    values = np.repeat(1 / np.sqrt(lengths), lengths).astype(np.float32)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    matrix = csr_matrix((values, np.concatenate(rows), bounds), shape=(len(texts), BUCKETS - 1))
    matrix.sum_duplicates()
    return matrix


_ORDINARY, _LAWFUL = LABELS.index("ordinary"), LABELS.index("lawful_collection")
_BENIGN = [_ORDINARY, _LAWFUL]
_CHOSEN = ("authored", "own")  # sources whose messages were written or picked: no sample of traffic
FEWEST_REAL = 300
"""Real messages from which thresholds can be set on them alone."""


@dataclass(frozen=True)
class _Readings:
    """What all steps say of n rows: the prefilter's scores (2, n), if it may not judge (n,), each network's logits."""

    rows: Rows
    prefilter: NDArray[np.float32]
    opaque: NDArray[np.bool_]
    logits: list[NDArray[np.float64]]

    @property
    def scores(self) -> NDArray[np.float32]:
        """The prefilter's first scores (n,), which fusion weighs in."""
        return np.asarray(self.prefilter[0], np.float32)


@dataclass
class _Steps:
    """The fitted steps: the prefilter's two thresholds and, per network, fusion and how far it lets messages go on."""

    prefilter: tuple[float, float]
    networks: list[Network] = field(default_factory=list)


def fit_cascade(
    folder: Path, networks: Sequence[Network], weights: NDArray[np.float16], recipe: Classify | Calibrate, corpus: Path
) -> dict[str, object]:
    """Fit the cascade of the networks in `folder` by a recipe's rates and shares, on the calibration split of `corpus`.

    `weights` (2, BUCKETS) are the prefilter's. Returns the manifest's parts that were fitted.
    """
    readings = _read(folder, networks, weights, read_split(corpus, "calibration"))
    steps = _fit_steps(networks, readings, recipe)
    probabilities, depth = _served(steps, readings)
    review, block = _thresholds(recipe, readings.rows, probabilities)
    full = fuse(steps.networks[-1].fusion, readings.scores, readings.logits)
    flagged = full[:, FLAGGED_INDEX].sum(1) >= review.risk
    unread = depth < _main_depth(steps.networks)
    lost = unread & (probabilities[:, FLAGGED_INDEX].sum(1) < review.risk)
    labels = readings.rows.labels
    threat = np.isin(labels, FLAGGED_INDEX)
    cases = np.array([bool(case) for case in readings.rows.cases])
    loss = {"in corpus": loss_of(lost, flagged & threat & ~cases)}
    if (flagged & threat & cases).any():
        loss["on unseen situations"] = loss_of(lost, flagged & threat & cases)
    ordinary = is_traffic(readings.rows)
    return {
        "review": review, "block": block, "loss": loss,
        "prefilter": Prefilter(
            ordinary=Stop(threshold=steps.prefilter[0], probabilities=_mean_verdict(full, depth, labels, _ORDINARY)),
            lawful=Stop(threshold=steps.prefilter[1], probabilities=_mean_verdict(full, depth, labels, _LAWFUL)),
        ),
        "networks": tuple(steps.networks),
        "passed": tuple(float((depth[ordinary] > i).mean()) for i in range(len(steps.networks))),
        "calibration": Calibration(
            ece_before=expected_calibration_error(softmax(readings.logits[-1]), labels),
            ece_after=expected_calibration_error(probabilities, labels), rows=len(labels),
        ),
    }  # fmt: skip


def read_shares(bundle: Bundle, rows: Rows) -> tuple[float, ...]:
    """Return the share of `rows` that each network of a bundle reads.

    Of the first network what the prefilter does not stop as ordinary, as in recipes: what it stops as lawful it might
    read too.
    """
    manifest = bundle.manifest
    readings = _read(bundle.path, manifest.networks, bundle.prefilter_weights, rows)
    stops = manifest.prefilter.ordinary.threshold, manifest.prefilter.lawful.threshold
    _, depth = _served(_Steps(stops, list(manifest.networks)), readings)
    first = readings.opaque | (readings.scores >= stops[0])
    return float(first.mean()), *(float((depth > i).mean()) for i in range(1, len(manifest.networks)))


def train_prefilter_on(corpus: Path, recipe: Classify | Calibrate) -> NDArray[np.float16]:
    """Return weights (2, BUCKETS) trained on all rows of the training split, disguised and dressed copies included.

    The first separate the ordinary from all else, so that what they stop is rightly called ordinary; the second,
    trained on that rest alone, what is lawful from threats.
    """
    rows = recipe.rows if isinstance(recipe, Classify) else None
    train = read_split(corpus, "train").drawn(rows, recipe.seed)
    texts, other = [each.text for each in train.cleaned], train.labels != _ORDINARY
    rest = np.flatnonzero(other)
    first = train_prefilter(texts, other, recipe.seed)
    return np.stack([first, train_prefilter([texts[i] for i in rest], train.labels[rest] != _LAWFUL, recipe.seed)])


def _read(folder: Path, networks: Sequence[Network], weights: NDArray[np.floating[Any]], rows: Rows) -> _Readings:
    """Let every step read every row, as it is served."""
    tokenizers = tokenizers_of(folder, networks)
    codes = code_points([each.text for each in rows.cleaned])
    words = SmsTokenizer.from_file(folder / "tokenizer.json")
    shares = unknown_shares(known_characters(words.backend.get_vocab()), codes)
    opaque = np.array([is_opaque(share, each.edits) for share, each in zip(shares, rows.cleaned, strict=True)])
    logits = []
    for network, tokenizer in zip(networks, tokenizers, strict=True):
        reader = NetworkReader(folder, network, tokenizer)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # a session runs outside the interpreter's lock
            readings = pool.map(reader.read, (each.text for each in rows.cleaned))
            progress = tqdm(readings, desc=network.file, total=len(rows), unit=" rows", disable=None)
            logits.append(np.array([each.logits for each in progress]))
    return _Readings(rows, prefilter_scores(weights.astype(np.float32), codes), opaque, logits)


def is_traffic(rows: Rows) -> NDArray[np.bool_]:
    """Mark what stands for ordinary traffic: real messages where there are enough, else all benign rows."""
    benign = np.isin(rows.labels, _BENIGN)
    real = benign & np.array([source not in _CHOSEN for source in rows.sources])
    return real if real.sum() >= FEWEST_REAL else benign


def _fit_steps(networks: Sequence[Network], readings: _Readings, recipe: Classify | Calibrate) -> _Steps:
    """Fit fusions on all rows, and bounds so that each network reads its share of ordinary messages.

    What model.onnx is certain of the verifier need not read: log-odds beyond any ordinary calibration message's. Raises
    InputError when more ordinary messages than the first network is to read are such that the prefilter may not judge
    them.
    """
    flagged = np.isin(readings.rows.labels, FLAGGED_INDEX)
    ordinary = is_traffic(readings.rows)
    passed, scores = recipe.passed, np.where(readings.opaque, np.inf, readings.prefilter)
    if (opaque := float(readings.opaque[ordinary].mean())) > passed[0]:
        raise InputError(
            f"the prefilter may not judge {opaque:.2%} of the {int(ordinary.sum())} ordinary calibration messages, "
            f"which are disguised or in characters that it does not know; the first share in passed is "
            f"{passed[0]:.2%}: raise it above the former, or take such messages out of the corpus"
        )
    first = share_threshold(scores[0][ordinary], passed[0])
    threats = scores[1][flagged & (scores[0] >= first)]
    # What the second score takes for a threat itself, above 0, is never stopped as lawful.
    second = min(0.0, share_threshold(threats, 1 - recipe.lawful_loss)) if len(threats) else float(scores[1].min())
    steps = _Steps((first, second))
    reached = _reached(steps, readings)
    for i, network in enumerate(networks):
        fusion = fit_fusion(readings.scores, readings.logits[: i + 1], flagged, ordinary)
        threshold, certain = None, None
        if i + 1 < len(networks):
            risks = fused_logit(fusion, readings.scores, readings.logits[: i + 1])
            here = ordinary & reached
            if here.any():
                threshold = share_threshold(risks[here], min(1.0, passed[i + 1] * ordinary.sum() / here.sum()))
            if network.file == "model.onnx":
                certain = float(np.nextafter(risks[ordinary].max(), np.inf))
            reached = reached & reads_on(threshold, certain, risks)
        bounds = {"fusion": fusion, "threshold": threshold, "certain": certain}
        steps.networks.append(network.model_copy(update=bounds))
    return steps


def _reached(steps: _Steps, readings: _Readings) -> NDArray[np.bool_]:
    """Return whether the prefilter lets a message go on (n,)."""
    return readings.opaque | (readings.prefilter >= np.array(steps.prefilter)[:, None]).all(0)


def _served(steps: _Steps, readings: _Readings) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the probabilities (n, labels) that are served, and how many networks read each row (n,)."""
    goes_on = _reached(steps, readings)
    depth = np.zeros(len(readings.scores), np.int64)
    out = np.zeros_like(readings.logits[0])
    out[:, _ORDINARY] = 1.0  # no threat, in whatever kind
    for i, network in enumerate(steps.networks):
        found = fuse(network.fusion, readings.scores, readings.logits[: i + 1])
        out[goes_on] = found[goes_on]
        depth[goes_on] = i + 1
        risks = fused_logit(network.fusion, readings.scores, readings.logits[: i + 1])
        goes_on = goes_on & reads_on(network.threshold, network.certain, risks)
    return out, depth


def _main_depth(networks: Sequence[Network]) -> int:
    """Return how many networks have read a message once model.onnx has; what is lost before is the prefilter's loss."""
    names = [network.file for network in networks]
    return names.index("model.onnx") + 1 if "model.onnx" in names else 1


def _mean_verdict(
    full: NDArray[np.float64], depth: NDArray[np.int64], labels: NDArray[np.int64], label: int
) -> tuple[float, ...]:
    """Return the networks' mean verdict on rows of a label that the prefilter stops, or on all of that label."""
    own = labels == label
    stopped = own & (depth == 0)
    rows = full[stopped] if stopped.any() else full[own]
    mean = rows.mean(0) if len(rows) else np.eye(len(LABELS))[label]
    return tuple(map(float, mean))


def _thresholds(
    recipe: Classify | Calibrate, rows: Rows, probabilities: NDArray[np.float64]
) -> tuple[Threshold, Threshold]:
    risks = probabilities[:, FLAGGED_INDEX].sum(1)
    ordinary = is_traffic(rows)
    families = [
        family or source for family, source, keep in zip(rows.families, rows.sources, ordinary, strict=True) if keep
    ]
    review = choose_threshold(risks[ordinary], families, recipe.review_rate, recipe.review_floor)
    floor = max(review.risk, recipe.block_floor)
    return review, choose_threshold(risks[ordinary], families, recipe.block_rate, floor)


# Calibrates signs: how sure a sign's logit is (Platt 1999), and from which confidence verdicts give it as a reason.


PRECISION = 0.9
"""What a reason's precision is to be on held-out messages."""

_FEWEST = 5  # messages that show a sign, for it to have a scale and a threshold of its own
_CAREFUL = SignScale(slope=1.0, bias=0.0, threshold=0.9, precision=0.0, found=0)
"""Scale of a sign that too few held-out messages show."""


def fit_signs(folder: Path, networks: Sequence[Network], corpus: Path) -> dict[str, SignScale]:
    """Return the scale of each sign of the network in `folder` that has signs; none where none has.

    Fitted on the annotated messages of the splits that are held out for calibration and validation.
    """
    found = [
        fit
        for split in ("calibration", "validation")
        if (fit := _sign_rows(folder, networks, read_split(corpus, split)))
    ]
    if not found:
        return {}
    logits, targets = (np.concatenate(each) for each in zip(*found, strict=True))
    return {sign: _scale(logits[:, i], targets[:, i] > 0) for i, sign in enumerate(SIGN_IDS)}


def annotated(rows: Rows) -> NDArray[np.bool_]:
    """Return whether people said of a row (n,) which signs it shows."""
    return np.array([is_annotated(signs) for signs in rows.signs], np.bool_)


def sign_logits(folder: Path, networks: Sequence[Network], rows: Rows) -> NDArray[np.float64] | None:
    """Return the logits (n, signs) of the first network in `folder` that has signs, None where none has."""
    for network, tokenizer in zip(networks, tokenizers_of(folder, networks), strict=True):
        reader = NetworkReader(folder, network, tokenizer)
        found = [reader.read(each.text).signs for each in rows.cleaned]
        if found and len(found[0]):
            return np.array(found)
    return None


def _sign_rows(
    folder: Path, networks: Sequence[Network], rows: Rows
) -> tuple[NDArray[np.float64], NDArray[np.float32]] | None:
    chosen = rows.take(np.flatnonzero(annotated(rows)))
    logits = sign_logits(folder, networks, chosen) if len(chosen) else None
    return None if logits is None else (logits, signs_of_rows(chosen))


def _scale(logits: NDArray[np.float64], there: NDArray[np.bool_]) -> SignScale:
    """Fit the scale of one sign on its logits (n,) and whether messages show it (n,)."""
    if there.sum() < _FEWEST or there.all():
        return _CAREFUL
    model = LogisticRegression(C=1.0).fit(logits[:, None], there)
    scale = _CAREFUL.model_copy(
        update={"slope": max(0.0, float(model.coef_[0, 0])), "bias": float(model.intercept_[0])}
    )
    confidence = sign_confidence(scale, logits)
    order = np.argsort(-confidence, kind="stable")
    precision = there[order].cumsum() / np.arange(1, len(order) + 1)
    parted = np.diff(confidence[order], append=-1.0) < 0  # no threshold parts equal ones
    enough = np.flatnonzero((precision >= PRECISION) & parted)
    if not len(enough):
        return scale
    last = int(enough[-1])
    return scale.model_copy(
        update={
            "threshold": float(confidence[order[last]]),
            "precision": float(precision[last]),
            "found": int(there[order[: last + 1]].sum()),
        }
    )
