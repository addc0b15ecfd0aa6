"""Signs on rows whose signs people read: how often the network is right, which co-occur, which missed threats show."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from jingyin.model.bundle import Bundle
from jingyin.model.decision import sign_confidence
from jingyin.model.errors import BundleError
from jingyin.model.signs import SIGN_IDS
from jingyin.model.text import clean
from jingyin.train.corpus.signs import is_annotated, sign_targets
from jingyin.train.data import unlabelled
from jingyin.train.evaluate.figures import Bools, rate
from jingyin.train.evaluate.judge import Judged
from jingyin.train.evaluate.messages import Messages
from jingyin.train.evaluate.results import MacroF1, SignPair, SignResult, SignsResult
from jingyin.train.packing.sign_scales import sign_logits

FEWEST = 30
"""Rows that must show a sign for its F1 to count in the mean over frequent ones."""

COMMONEST = 10
"""Signs in the mean over the commonest."""

PAIRS = 15
"""Pairs of signs that are listed, the most frequent."""


def why_left_out(bundle: Bundle, messages: Messages) -> str:
    """Return why signs can't be judged, "" if they can."""
    signs = bundle.manifest.signs
    if not signs:
        return "signs are left out: the bundle has none, so its verdicts give no reasons"
    if strange := sorted(set(signs) - set(SIGN_IDS)):
        return f"signs are left out: the bundle has {', '.join(strange)}, which data can't be annotated with"
    if not any(map(is_annotated, messages.signs)):
        return "signs are left out: no row of the data names those that people read in it, in a column `signs`"
    return ""


def sign_results(bundle: Bundle, model: Judged, messages: Messages) -> SignsResult:
    """Judge the signs of a bundle, at its thresholds, on the messages whose signs people read.

    The network reads them all, those too that the cascade stops before it, and those that pass: such a frame as a joke
    is why a message passes. Raises BundleError when no network of the bundle has signs.
    """
    rows = np.flatnonzero([is_annotated(each) for each in messages.signs])
    read = messages.take(rows)
    names = list(bundle.manifest.signs)
    shown = np.stack([sign_targets(each) for each in read.signs])[:, [SIGN_IDS.index(name) for name in names]] > 0
    given = _given(bundle, read.texts)
    passes = ~model.flags[rows]
    signs = [
        _sign_result(name, shown[:, i], given[:, i], passes[shown[:, i] & read.flagged]) for i, name in enumerate(names)
    ]
    signs.sort(key=lambda each: -each.shown)
    return SignsResult(
        rows=len(rows),
        signs=signs,
        frequent=_macro_f1([each for each in signs if each.shown >= FEWEST]),
        commonest=_macro_f1(signs[:COMMONEST]),
        pairs=_pairs(names, shown, given),
    )


def _given(bundle: Bundle, texts: Sequence[str]) -> Bools:
    """Return which signs the network gives to texts, at their thresholds (n, signs)."""
    scales = bundle.manifest.signs.values()
    logits = sign_logits(bundle.path, bundle.manifest.networks, unlabelled([clean(text) for text in texts]))
    if logits is None:
        raise BundleError(f"bundle {bundle.manifest.id} names signs, and no network of it has any; export it again")
    return np.stack([sign_confidence(s, logits[:, i]) >= s.threshold for i, s in enumerate(scales)], axis=1)


def _sign_result(sign: str, shown: Bools, given: Bools, passes: Bools) -> SignResult:
    """Return the result of a sign that rows (n,) show or are given; `passes` is of the flagged rows that show it."""
    right = int((shown & given).sum())
    return SignResult(
        sign=sign,
        shown=int(shown.sum()),
        given=int(given.sum()),
        right=right,
        precision=_share(right, given),
        recall=_share(right, shown),
        f1=2 * right / max(1, int(shown.sum() + given.sum())),
        missed=rate(passes),
    )


def _share(right: int, among: Bools) -> float:
    return right / max(1, int(among.sum()))


def _macro_f1(signs: Sequence[SignResult]) -> MacroF1:
    return MacroF1(len(signs), sum(each.f1 for each in signs) / len(signs) if signs else None)


def _pairs(names: Sequence[str], shown: Bools, given: Bools) -> list[SignPair]:
    """Return the pairs of signs that most rows show together; `shown` and `given` are (n, signs)."""
    together, said = _together(shown), _together(given)
    found = [
        SignPair((names[i], names[j]), int(together[i, j]), int(said[i, j]))
        for i, j in combinations(range(len(names)), 2)
        if together[i, j]
    ]
    return sorted(found, key=lambda each: -each.shown)[:PAIRS]


def _together(rows: Bools) -> NDArray[np.int64]:
    """Return how many rows (n, signs) have each pair of signs (signs, signs)."""
    counts = rows.astype(np.int64)
    return np.asarray(counts.T @ counts, np.int64)
