"""Calibrates signs: how sure a sign's logit is (Platt 1999), and from which confidence verdicts give it as a reason."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from jingyin.model.bundle import Network, SignScale
from jingyin.model.cascade import sign_confidence
from jingyin.model.labels import LABELS
from jingyin.model.signs import SIGN_IDS
from jingyin.model.text import CleanText
from jingyin.serve.networks import NetworkReader, tokenizers_of
from jingyin.train.data import Rows, signs_of_rows
from jingyin.train.pack.readings import Readings

SIGNED = "model.onnx"
"""The network that has signs."""

PRECISION = 0.9
"""Target precision of a reason on held-out messages."""

_FEWEST = 5  # messages that show a sign, for it to have a scale and a threshold of its own
_CAREFUL = SignScale(slope=1.0, bias=0.0, threshold=0.9, precision=0.0, found=0)
"""Scale of a sign that too few held-out messages show."""


def fit_signs(readings: Readings, validation: Rows) -> dict[str, SignScale]:
    """Return the scale of each sign of the network that has signs; empty if none has.

    Fitted on the annotated messages of the calibration split, which have been read, and of the `validation` split;
    careful without any.
    """
    position = next((i for i, reader in enumerate(readings.networks) if reader.network.file == SIGNED), None)
    if position is None or len(read_whole(readings.networks[position], readings.rows.cleaned[0])) == len(LABELS):
        return {}
    chosen = np.flatnonzero(readings.rows.annotated & readings.rows.first)
    held_out = validation.take(np.flatnonzero(validation.annotated))
    annotated = readings.rows.take(chosen).and_(held_out)
    if not len(annotated):
        return dict.fromkeys(SIGN_IDS, _CAREFUL)
    outputs = [readings.outputs[position, int(i)][0] for i in chosen]
    outputs += [read_whole(readings.networks[position], cleaned) for cleaned in held_out.cleaned]
    targets = signs_of_rows(annotated)
    logits = np.array(outputs, np.float64)[:, len(LABELS) :]
    return {sign: _scale(logits[:, i], targets[:, i] > 0) for i, sign in enumerate(SIGN_IDS)}


def sign_logits(folder: Path, networks: Sequence[Network], texts: Sequence[CleanText]) -> NDArray[np.float64] | None:
    """Return the logits (n, signs) of the network that has signs on whole messages, None if none has."""
    for network, tokenizer in zip(networks, tokenizers_of(folder, networks), strict=True):
        if network.file == SIGNED:
            reader = NetworkReader(folder, network, tokenizer)
            outputs = np.array([read_whole(reader, text) for text in texts], np.float64).reshape(len(texts), -1)
            return outputs[:, len(LABELS) :] if outputs.shape[1] > len(LABELS) else None
    return None


def read_whole(reader: NetworkReader, cleaned: CleanText) -> NDArray[np.float32]:
    """Return a network's outputs (labels + signs,) for a whole message."""
    outputs: NDArray[np.float32] = reader.read(cleaned.text, [(0, len(cleaned.text))], np.zeros(1, np.float32))[0]
    return outputs


def _scale(logits: NDArray[np.float64], has_sign: NDArray[np.bool_]) -> SignScale:
    """Fit the scale of one sign on its logits (n,) and whether messages show it (n,)."""
    if has_sign.sum() < _FEWEST or has_sign.all():
        return _CAREFUL
    model = LogisticRegression(C=1.0).fit(logits[:, None], has_sign)
    slope, bias = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:  # the logit says nothing: what remains is how many messages show the sign
        slope, bias = 0.0, float(logit(has_sign.mean()))
    scale = _CAREFUL.model_copy(update={"slope": slope, "bias": bias})
    confidence = sign_confidence(scale, logits)
    order = np.argsort(-confidence, kind="stable")
    precision = has_sign[order].cumsum() / np.arange(1, len(order) + 1)
    parted = np.diff(confidence[order], append=-1.0) < 0  # a threshold can't separate equal ones
    enough = np.flatnonzero((precision >= PRECISION) & parted)
    if not len(enough):
        return scale
    last = int(enough[-1])
    return scale.model_copy(
        update={
            "threshold": float(confidence[order[last]]),
            "precision": float(precision[last]),
            "found": int(has_sign[order[: last + 1]].sum()),
        }
    )
