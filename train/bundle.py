"""Makes a bundle of a trained classifier: export, calibration, thresholds, gate, golden messages, card."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jingyin.model.bundle import Calibration, Gate, Join, Manifest, Threshold, write_bundle
from jingyin.model.gate import code_points, gate_scores, is_opaque, known_characters, unknown_shares
from jingyin.model.join import joined, risk_odds
from jingyin.model.labels import LABELS
from jingyin.model.text import CleanText, clean
from jingyin.model.tokenizer import SmsTokenizer
from jingyin.train.calibrate import (
    choose_threshold,
    expected_calibration_error,
    fit_join,
    fit_temperature,
    softmax,
)
from jingyin.train.card import write_card
from jingyin.train.classify import load_classifier
from jingyin.train.corpus.evade import FAMILIES, evade
from jingyin.train.data import Encode, Rows, read_split
from jingyin.train.export import export_fp32, open_session, quantize, run, write_golden
from jingyin.train.fit import FLAGGED_INDEX
from jingyin.train.gate import set_threshold, train_gate
from jingyin.train.recipe import Classify

AGREEMENT_SAMPLES = 1000

GOLDEN_MESSAGES = (
    "【XX银行】您尾号1234的信用卡本期账单3,482.15元，最后还款日3月15日，如已还款请忽略。",
    "明天下午三点老地方见，记得带伞",
    "再不还钱就把你借钱的事发给你通讯录里每一个人，今晚6点前",
    "想让你的电话安静就转300块，不转接着打",
    "您的验证码是482913，5分钟内有效，请勿告诉他人。",
    "你给我等着，下班路上小心点",
)
"""Made-up messages, one or two a label, whose logits a scorer checks when it loads."""


def make_bundle(recipe: Classify, corpus: Path, run_folder: Path, provenance: dict[str, object]) -> Manifest:
    """Write `run_folder`/bundle from the classifier in `run_folder`; returns its manifest.

    Temperature, join and thresholds use the calibration split, through the int8 network that is served. The gate learns
    from the training split; its loss is measured on the validation and calibration splits and their disguised copies.
    """
    classifier, encode, lexicon = load_classifier(run_folder)
    path = run_folder / "bundle"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    calibration = read_split(corpus, "calibration")
    samples = encode(calibration.cleaned[:AGREEMENT_SAMPLES])
    fp32 = run_folder / "model.fp32.onnx"
    export_fp32(classifier, fp32, samples[:20])
    agreement = quantize(fp32, path / "model.onnx", samples)
    tokenizer = SmsTokenizer.from_lexicon(lexicon)
    tokenizer.backend.save(str(path / "tokenizer.json"), pretty=False)
    (path / "lexicon.txt").write_text(lexicon, encoding="utf-8")
    write_golden(path / "golden.json", open_session(path / "model.onnx"), encode([clean(m) for m in GOLDEN_MESSAGES]))
    weights = _train_gate(recipe, corpus)
    np.savez_compressed(path / "gate.npz", weights=weights)
    judge = _fit_judge(path, encode, weights, calibration)
    review, block = _thresholds(recipe, calibration, judge(calibration))
    gate = _gate(recipe, corpus, path, judge, review)
    versions = {name: version(name) for name in ("torch", "transformers", "onnxruntime", "tokenizers", "numpy")}
    parts = {
        "labels": LABELS, "max_tokens": recipe.max_tokens, "review": review, "block": block,
        "calibration": judge.calibration, "join": judge.join, "gate": gate,
        "provenance": {**provenance, "int8_agreement": agreement, "versions": versions},
    }  # fmt: skip
    write_card(path / "card.md", recipe, parts)
    return write_bundle(path, parts)


def _train_gate(recipe: Classify, corpus: Path) -> NDArray[np.float16]:
    train = read_split(corpus, "train").drawn(recipe.rows, recipe.seed)
    return train_gate([each.text for each in train.cleaned], np.isin(train.labels, FLAGGED_INDEX), recipe.seed)


@dataclass(frozen=True)
class _Judge:
    """Gives the verdict that rows have when the network reads every message."""

    path: Path
    encode: Encode
    weights: NDArray[np.float32]
    calibration: Calibration
    join: Join

    def __call__(self, rows: Rows) -> NDArray[np.float64]:
        """Return calibrated probabilities (n, labels)."""
        probabilities = softmax(_logits(self.path, self.encode, rows) / self.calibration.temperature)
        return joined(self.join, probabilities.astype(np.float64), self.scores(rows.cleaned), FLAGGED_INDEX)

    def scores(self, cleaned: Sequence[CleanText]) -> NDArray[np.float32]:
        """Return the gate's scores (n,)."""
        return gate_scores(self.weights, code_points([each.text for each in cleaned]))


def _fit_judge(path: Path, encode: Encode, weights: NDArray[np.float16], rows: Rows) -> _Judge:
    """Fit temperature and join on the calibration split, through the int8 network that is served."""
    logits = _logits(path, encode, rows)
    calibration = fit_temperature(logits, rows.labels)
    probabilities = softmax(logits / calibration.temperature).astype(np.float64)
    flagged = np.isin(rows.labels, FLAGGED_INDEX)
    scores = gate_scores(weights.astype(np.float32), code_points([each.text for each in rows.cleaned]))
    join = fit_join(risk_odds(probabilities, FLAGGED_INDEX), scores, flagged)
    after = expected_calibration_error(joined(join, probabilities, scores, FLAGGED_INDEX), rows.labels)
    return _Judge(path, encode, weights.astype(np.float32), calibration.model_copy(update={"ece_after": after}), join)


def _logits(path: Path, encode: Encode, rows: Rows) -> NDArray[np.float64]:
    session = open_session(path / "model.onnx")
    progress = tqdm(encode(rows.cleaned), desc="int8", unit=" rows", disable=None)
    return np.concatenate([run(session, [ids]) for ids in progress]).astype(np.float64)


def _thresholds(recipe: Classify, rows: Rows, probabilities: NDArray[np.float64]) -> tuple[Threshold, Threshold]:
    risks = probabilities[:, FLAGGED_INDEX].sum(1)
    benign = np.isin(rows.labels, [LABELS.index("ordinary"), LABELS.index("lawful_collection")])
    families = [family for family, keep in zip(rows.families, benign, strict=True) if keep]
    review = choose_threshold(risks[benign], families, recipe.review_rate, recipe.review_floor)
    return review, choose_threshold(risks[benign], families, recipe.block_rate, review.risk)


def _with_copies(corpus: Path, split: str, seed: int) -> Iterator[Rows]:
    """Yield a split, then its flagged rows once more in the disguise of each evasion family."""
    rows = read_split(corpus, split)
    yield rows
    flagged = rows.take(np.flatnonzero(np.isin(rows.labels, FLAGGED_INDEX)))
    rng = Random(seed)
    for family in FAMILIES:
        yield replace(flagged, cleaned=[clean(evade(each.original, family, 0.5, rng)) for each in flagged.cleaned])


def _gate(recipe: Classify, corpus: Path, path: Path, judge: _Judge, review: Threshold) -> Gate:
    held = [rows for split in ("validation", "calibration") for rows in _with_copies(corpus, split, recipe.seed)]
    probabilities = np.concatenate([judge(rows) for rows in held])
    cleaned = [each for rows in held for each in rows.cleaned]
    known = known_characters(SmsTokenizer.from_file(path / "tokenizer.json").backend.get_vocab())
    shares = unknown_shares(known, code_points([each.text for each in cleaned]))
    opaque = np.array([is_opaque(share, each.hits) for share, each in zip(shares, cleaned, strict=True)])
    flagged = probabilities[:, FLAGGED_INDEX].sum(1) >= review.risk
    return set_threshold(judge.scores(cleaned), opaque, flagged, probabilities)
