"""Compares ways to calibrate: python tests/bench/calibrators.py BUNDLE CORPUS (a folder with calibration.parquet).

Five folds of the calibration split; ECE with equal-mass bins, mean log-likelihood, and how many risks stay distinct.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import StratifiedKFold

from jingyin.model.bundle import read_bundle
from jingyin.model.labels import LABELS
from jingyin.model.tokenizer import SmsTokenizer
from jingyin.serve.networks import Network
from jingyin.train.data import read_split
from jingyin.train.evaluate.messages import FLAGGED_INDEX
from jingyin.train.packing.thresholds import expected_calibration_error, fit_temperature, softmax

Array = NDArray[np.float64]
Calibrator = Callable[[Array], Array]


def log_likelihood(probabilities: Array, labels: NDArray[np.int64]) -> float:
    return float(np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean())


def temperature(logits: Array, labels: NDArray[np.int64]) -> Calibrator:
    fitted = fit_temperature(logits, labels).temperature
    return lambda new: softmax(new / fitted)


def vector(logits: Array, labels: NDArray[np.int64]) -> Calibrator:
    count = len(LABELS)

    def loss(scales: Array) -> float:
        return -log_likelihood(softmax(logits * scales[:count] + scales[count:]), labels)

    best = minimize(loss, np.r_[np.ones(count), np.zeros(count)], method="L-BFGS-B").x
    return lambda new: softmax(new * best[:count] + best[count:])


def isotonic(logits: Array, labels: NDArray[np.int64]) -> Calibrator:
    first = temperature(logits, labels)
    models = [
        IsotonicRegression(out_of_bounds="clip").fit(first(logits)[:, label], labels == label)
        for label in range(len(LABELS))
    ]

    def calibrate(new: Array) -> Array:
        each = np.stack([model.predict(first(new)[:, label]) for label, model in enumerate(models)], 1) + 1e-6
        return each / each.sum(1, keepdims=True)

    return calibrate


def main(bundle: Path, corpus: Path) -> None:
    read = read_bundle(bundle)
    rows = read_split(corpus, "calibration")
    network = Network(bundle / "model.onnx", read.manifest.max_tokens, 1)
    ids = SmsTokenizer.from_file(bundle / "tokenizer.json").encode([each.text for each in rows.cleaned])
    logits = np.concatenate([network.logits(message)[:1] for message in ids]).astype(np.float64)
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(logits, rows.labels))
    ways = {"none": lambda logits, labels: softmax, "temperature": temperature, "vector": vector, "isotonic": isotonic}
    for name, fit in ways.items():
        out = np.empty_like(logits)
        for some, rest in folds:
            out[rest] = fit(logits[some], rows.labels[some])(logits[rest])
        error, likelihood = expected_calibration_error(out, rows.labels), log_likelihood(out, rows.labels)
        risks = len(np.unique(out[:, FLAGGED_INDEX].sum(1)))
        print(f"{name:<12} ECE {error:.4f}  log-likelihood {likelihood:.4f}  distinct risks {risks} of {len(out)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
