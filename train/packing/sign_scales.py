"""Calibrates signs: how sure a sign's logit is (Platt 1999), and from which confidence verdicts give it as a reason."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from jingyin.model.bundle import Network, SignScale
from jingyin.model.decision import sign_confidence
from jingyin.model.signs import SIGN_IDS
from jingyin.serve.networks import NetworkReader, tokenizers_of
from jingyin.train.corpus.signs import is_annotated
from jingyin.train.data import Rows, read_split, signs_of_rows

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
        fit for split in ("calibration", "validation") if (fit := _read(folder, networks, read_split(corpus, split)))
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


def _read(
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
