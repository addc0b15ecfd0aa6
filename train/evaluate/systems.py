"""The systems under evaluation: a bundle through its scorer, and the baselines next to it; the cost of each."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from jingyin.model.bundle import read_bundle
from jingyin.model.cascade import FLAGGED_INDEX, likeliest
from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS, Verdict
from jingyin.model.text import clean
from jingyin.serve.scorer import Scorer
from jingyin.train.evaluate.samples import label_indices, read_rows, refuse_unlabelled
from jingyin.train.evaluate.statistics import Bools, Ints, threshold_at

_PART = 64  # messages

Scores = tuple[NDArray[np.float64], NDArray[np.float64] | None]
"""Risks (n,), higher is worse, and probabilities (n, labels), None from a system that knows no labels."""


@dataclass(frozen=True)
class System:
    """A way to flag messages: those whose risk is at least `review`; from `block` on they are blocked."""

    name: str
    score: Callable[[Sequence[str]], Scores]
    review: float
    block: float = float("inf")
    label_weights: Mapping[str, float] = field(default_factory=dict)

    def judge(self, texts: Sequence[str]) -> "Judged":
        """Score messages."""
        return Judged(self, *self.score(texts)) if texts else Judged(self, np.zeros(0), None)


@dataclass(frozen=True)
class Judged:
    """A system, and the risks (n,) and probabilities (n, labels) that it gives to messages."""

    system: System
    risks: NDArray[np.float64]
    probabilities: NDArray[np.float64] | None

    @property
    def flags(self) -> Bools:
        """Which rows (n,) it flags."""
        return self.risks >= self.system.review

    @property
    def blocked(self) -> Bools:
        """Which rows (n,) it blocks."""
        return self.risks >= self.system.block

    @property
    def actions(self) -> Ints:
        """The action (n,) of each row: 0 pass, 1 review, 2 block."""
        return self.flags.astype(np.int64) + self.blocked

    @property
    def predicted(self) -> Ints:
        """The label (n,) of each row, by its index; only of a system that knows labels, as bundles do."""
        if self.probabilities is None:
            raise TypeError(f"{self.system.name} knows no labels")
        return likeliest(self.probabilities, self.system.label_weights)

    def take(self, rows: Ints) -> "Judged":
        """Return the outputs for some rows."""
        return Judged(self.system, self.risks[rows], None if self.probabilities is None else self.probabilities[rows])

    def matched(self, model: "Judged", benign: Bools) -> "Judged":
        """Return these outputs with a threshold that flags at most as many `benign` rows (n,) as `model` does."""
        review = threshold_at(self.risks[benign], int(model.flags[benign].sum()))
        return replace(self, system=replace(self.system, review=review))


def open_bundle(path: Path) -> Scorer:
    """Load a bundle to be judged; raises InputError when its labels are not those that messages are labelled with."""
    labels = read_bundle(path).manifest.labels
    if set(labels) != set(LABELS):
        raise InputError(
            f"bundle {path} has labels {', '.join(labels)}; wanted {', '.join(LABELS)}: bundles of different label "
            "sets can't be compared, train one on the same labels"
        )
    return Scorer.load(path)


def verdicts(scorer: Scorer, texts: Sequence[str]) -> list[Verdict]:
    """Return the verdicts of `score_many`, in the order of `texts`.

    Networks run outside the interpreter's lock, so threads share one scorer; processes would each load the bundle.
    """
    parts = [texts[start : start + _PART] for start in range(0, len(texts), _PART)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        scored = pool.map(lambda part: list(scorer.score_many(part)), parts)
        return [verdict for part in scored for verdict in part]


def served(scorer: Scorer, name: str = "jingyin") -> System:
    """Return a bundle as it serves, prefilter and windows included."""

    def score(texts: Sequence[str]) -> Scores:
        found = verdicts(scorer, texts)
        probabilities = np.array([[each.probabilities[label] for label in LABELS] for each in found])
        return np.array([each.risk for each in found]), probabilities

    manifest = scorer.bundle.manifest
    return System(name, score, manifest.review.risk, manifest.block.risk, manifest.label_weights)


def keywords() -> System:
    """Return the keyword list of train/keywords.txt; the risk is the number of rules that hit, one is enough.

    It sees the message as sent, without white space, as carriers' lists do.
    """
    lines = files("jingyin.train").joinpath("keywords.txt").read_text(encoding="utf-8").splitlines()
    rules = [tuple(line.split("+")) for line in lines if line and not line.startswith("#")]

    def score(texts: Sequence[str]) -> Scores:
        closed = ["".join(text.split()) for text in texts]
        counts = [sum(all(word in text for word in rule) for rule in rules) for text in closed]
        return np.array(counts, np.float64), None

    return System("keyword list", score, 1.0)


_LEARNT = 100_000  # rows that the n-gram model learns from: with them it takes a minute


def ngrams(training: Path) -> System:
    """Return a linear model over hashed character 1-4-grams of the clean text, trained here on drawn rows.

    Raises InputError for a row without text or label, and for rows of a single label.
    """
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    hashed = HashingVectorizer(analyzer="char", ngram_range=(1, 4), n_features=1 << 18, alternate_sign=False)
    model = OneVsRestClassifier(LogisticRegression(C=20.0, solver="liblinear"))
    rows = read_rows(training, ("text", "label"))
    for number, row in enumerate(rows, 1):
        refuse_unlabelled(row, f"{training}:{number}")
    if len({row["label"] for row in rows}) == 1:
        raise InputError(f"all rows of {training} are {rows[0]['label']}; name a training split with several labels")
    rows = Random(0).sample(rows, min(_LEARNT, len(rows)))
    model.fit(hashed.transform([clean(row["text"]).text for row in rows]), label_indices(rows))

    def score(texts: Sequence[str]) -> Scores:
        found = np.zeros((len(texts), len(LABELS)))
        found[:, model.classes_] = model.predict_proba(hashed.transform([clean(text).text for text in texts]))
        return found[:, FLAGGED_INDEX].sum(1), found

    return System("n-grams, linear", score, 0.5)


TIMED = 300
"""Messages that are timed, taken evenly from the data."""

_REPEATS = 3


def milliseconds(ways: Sequence[Callable[[str], object]], texts: Sequence[str]) -> NDArray[np.float64]:
    """Time each of `ways` on up to TIMED of `texts`, one at a time: the best of three (ways, n), in random order.

    So a busy machine slows all of them alike, and none always profits from caches that another filled.
    """
    texts = [texts[i] for i in np.linspace(0, len(texts) - 1, min(TIMED, len(texts))).astype(int)]
    rng = np.random.default_rng(0)
    seconds = np.full((len(ways), len(texts)), np.inf)
    for _ in range(_REPEATS):
        for column, text in enumerate(texts):
            for line in rng.permutation(len(ways)).tolist():
                start = time.perf_counter()
                ways[line](text)
                seconds[line, column] = min(seconds[line, column], time.perf_counter() - start)
    return seconds * 1e3


def size(path: Path) -> int:
    """Return the bytes of a bundle's files."""
    return sum((path / name).stat().st_size for name in (*read_bundle(path).manifest.files, "manifest.json"))
