"""What is judged: the bundle through its scorer, and the baselines beside it. Each turns messages into risks."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jingyin.model.bundle import read_bundle
from jingyin.model.decision import FLAGGED_INDEX
from jingyin.model.errors import ConfigError
from jingyin.model.labels import FLAGGED, LABELS, Verdict
from jingyin.model.text import clean
from jingyin.serve.scorer import Scorer
from jingyin.train.evaluate.samples import Messages

# Scores many messages on all cores of this machine.


_PART = 64  # messages


def verdicts(scorer: Scorer, texts: Sequence[str]) -> list[Verdict]:
    """Return the verdicts of `score_many`, in the order of `texts`.

    Networks run outside the interpreter's lock, so threads share one scorer; processes would each load the bundle.
    """
    parts = [texts[start : start + _PART] for start in range(0, len(texts), _PART)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        scored = pool.map(lambda part: list(scorer.score_many(part)), parts)
        return [verdict for part in scored for verdict in part]


_BATCH = 32


class Scores(NamedTuple):
    """Risks (n,), higher is worse, and probabilities (n, labels), None from a system that knows no labels."""

    risks: NDArray[np.float64]
    probabilities: NDArray[np.float64] | None


@dataclass(frozen=True)
class System:
    """A way to flag messages: those whose risk is at least `threshold`."""

    name: str
    judge: Callable[[Sequence[str]], Scores]
    threshold: float


def served(scorer: Scorer) -> System:
    """Return a bundle as it serves, prefilter and windows included; it flags what it would review or block."""

    def judge(texts: Sequence[str]) -> Scores:
        found = verdicts(scorer, texts)
        probabilities = np.array([[each.probabilities[label] for label in LABELS] for each in found])
        return Scores(np.array([each.risk for each in found]), probabilities)

    return System("jingyin", judge, scorer.bundle.manifest.review.risk)


def keywords() -> System:
    """Return the keyword list of train/keywords.txt; the risk is the number of rules that hit, one is enough.

    It sees what was sent, without white space, as carriers' lists do.
    """
    lines = files("jingyin.train").joinpath("keywords.txt").read_text(encoding="utf-8").splitlines()
    rules = [tuple(line.split("+")) for line in lines if line and not line.startswith("#")]

    def judge(texts: Sequence[str]) -> Scores:
        closed = ["".join(text.split()) for text in texts]
        counts = [sum(all(word in text for word in rule) for rule in rules) for text in closed]
        return Scores(np.array(counts, np.float64), None)

    return System("keywords", judge, 1.0)


def ngrams(training: Messages) -> System:
    """Return a linear model over hashed character 1-4-grams of the clean text, trained here."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    hashed = HashingVectorizer(analyzer="char", ngram_range=(1, 4), n_features=1 << 20, alternate_sign=False)
    model = OneVsRestClassifier(LogisticRegression(C=20.0, solver="liblinear"))
    model.fit(hashed.transform([clean(text).text for text in training.texts]), training.labels)

    def judge(texts: Sequence[str]) -> Scores:
        found = model.predict_proba(hashed.transform([clean(text).text for text in texts]))
        return Scores(found[:, FLAGGED_INDEX].sum(1), found)

    return System("n-grams", judge, 0.5)


def hugging_face(path: str) -> System:
    """Return a Hugging Face text-classification model from a path; its risk is the sum over labels named as ours.

    Raises ConfigError when it can't be loaded, or when none of its labels is a flagged one.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"baseline {path} can't be loaded ({type(error).__name__}); give a text-classification model"
        ) from None
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    risky = [i for i, name in enumerate(names) if name in FLAGGED]
    if not risky:
        raise ConfigError(
            f"baseline {path} knows labels {names}; name at least one of them {' or '.join(FLAGGED)} (id2label)"
        )

    def judge(texts: Sequence[str]) -> Scores:
        found = []
        for at in range(0, len(texts), _BATCH):
            batch = tokenizer(list(texts[at : at + _BATCH]), padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                found.append(model(**batch).logits.double().softmax(-1).numpy())
        all_of_it = np.concatenate(found)
        ours = all_of_it[:, [names.index(label) for label in LABELS]] if set(LABELS) <= set(names) else None
        return Scores(all_of_it[:, risky].sum(1), ours)

    return System(Path(path).name, judge, 0.5)


# How long a message takes, and how large a bundle is.


MESSAGES = 300
"""Messages that are timed, taken evenly from the data."""
REPEATS = 3


@dataclass(frozen=True)
class Latency:
    """Milliseconds a message, one at a time on one thread: median, mean, and what 95 of 100 stay below.

    The mean is what traffic costs; the median alone would not see how many messages a prefilter lets through.
    """

    median: float
    mean: float
    p95: float


def timed_sample(texts: Sequence[str]) -> list[str]:
    """Return up to MESSAGES of `texts`, evenly spaced."""
    return [texts[i] for i in np.linspace(0, len(texts) - 1, min(MESSAGES, len(texts))).astype(int)]


def latencies(ways: Sequence[Callable[[str], object]], texts: Sequence[str]) -> list[Latency]:
    """Time each of `ways` on each of `texts`: the best of REPEATS, in an order drawn for each text.

    A busy machine then slows all alike, and nobody always finds the caches that another one filled.
    """
    rng = np.random.default_rng(0)
    seconds = np.full((len(ways), len(texts)), np.inf)
    for _ in range(REPEATS):
        for column, text in enumerate(texts):
            for line in rng.permutation(len(ways)).tolist():
                start = time.perf_counter()
                ways[line](text)
                seconds[line, column] = min(seconds[line, column], time.perf_counter() - start)
    return [_latency(line * 1e3) for line in seconds]


def _latency(milliseconds: NDArray[np.float64]) -> Latency:
    return Latency(float(np.median(milliseconds)), float(milliseconds.mean()), float(np.percentile(milliseconds, 95)))


def bare_scorer(path: Path, *, prefilter: bool) -> Scorer:
    """Load a bundle without cache, and without prefilter if so asked: what a message costs when it is new."""
    return Scorer.load(path, prefilter=prefilter, cache_bytes=0)


def size(path: Path) -> int:
    """Return the bytes of a bundle's files."""
    return sum((path / name).stat().st_size for name in (*read_bundle(path).manifest.files, "manifest.json"))
