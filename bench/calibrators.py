"""Compares ways to calibrate: python bench/calibrators.py BUNDLE CORPUS (a folder with calibration.parquet).

Five folds of the calibration split; ECE with equal-mass bins, mean log-likelihood, and how many risks stay distinct.
All but fusion, which is what bundles have, see the logits of the bundle's last network alone.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import StratifiedKFold

from jingyin.model.bundle import read_bundle
from jingyin.model.decision import FLAGGED_INDEX, fuse, softmax
from jingyin.model.labels import LABELS
from jingyin.model.prefilter import code_points, prefilter_scores
from jingyin.serve.networks import open_networks
from jingyin.train.data import Rows, read_split
from jingyin.train.pack.calibrate import is_traffic
from jingyin.train.pack.thresholds import expected_calibration_error, fit_fusion

Array = NDArray[np.float64]
Calibrator = Callable[[Array, Array], Array]
"""Prefilter scores (n,) and logits (networks, n, labels) -> probabilities (n, labels)."""


def log_likelihood(probabilities: Array, labels: NDArray[np.int64]) -> float:
    return float(np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean())


def temperature(scores: Array, logits: Array, rows: Rows) -> Calibrator:
    found: Any = minimize_scalar(
        lambda t: -log_likelihood(softmax(logits[-1] / t), rows.labels), bounds=(0.1, 10), method="bounded"
    )
    return lambda _, new: softmax(new[-1] / found.x)


def vector(scores: Array, logits: Array, rows: Rows) -> Calibrator:
    count = len(LABELS)

    def loss(scales: Array) -> float:
        return -log_likelihood(softmax(logits[-1] * scales[:count] + scales[count:]), rows.labels)

    best = minimize(loss, np.r_[np.ones(count), np.zeros(count)], method="L-BFGS-B").x
    return lambda _, new: softmax(new[-1] * best[:count] + best[count:])


def isotonic(scores: Array, logits: Array, rows: Rows) -> Calibrator:
    first = temperature(scores, logits, rows)
    models = [
        IsotonicRegression(out_of_bounds="clip").fit(first(scores, logits)[:, label], rows.labels == label)
        for label in range(len(LABELS))
    ]

    def calibrate(_: Array, new: Array) -> Array:
        each = np.stack([model.predict(first(_, new)[:, label]) for label, model in enumerate(models)], 1) + 1e-6
        return each / each.sum(1, keepdims=True)

    return calibrate


def fusion(scores: Array, logits: Array, rows: Rows) -> Calibrator:
    fitted = fit_fusion(scores, list(logits), np.isin(rows.labels, FLAGGED_INDEX), is_traffic(rows))
    return lambda others, new: fuse(fitted, others, list(new))


def main(folder: Path, corpus: Path) -> None:
    bundle, rows = read_bundle(folder), read_split(corpus, "calibration")
    logits = np.array([[network.read(each.text).logits for each in rows.cleaned] for network in open_networks(bundle)])
    codes = code_points([each.text for each in rows.cleaned])
    scores = prefilter_scores(bundle.prefilter_weights, codes)[0].astype(np.float64)
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(scores, rows.labels))
    ways = {"temperature": temperature, "vector": vector, "isotonic": isotonic, "fusion": fusion}
    for name, fit in {"none": lambda *_: lambda _, new: softmax(new[-1]), **ways}.items():
        out = np.empty_like(logits[-1])
        for some, rest in folds:
            out[rest] = fit(scores[some], logits[:, some], rows.take(some))(scores[rest], logits[:, rest])
        error, likelihood = expected_calibration_error(out, rows.labels), log_likelihood(out, rows.labels)
        risks = len(np.unique(out[:, FLAGGED_INDEX].sum(1)))
        print(f"{name:<12} ECE {error:.4f}  log-likelihood {likelihood:.4f}  distinct risks {risks} of {len(out)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
