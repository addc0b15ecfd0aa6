"""Makes a bundle of a trained classifier: export, calibration, thresholds, gate, golden messages, card."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jingyin.model.bundle import Calibration, Gate, Manifest, Threshold, write_bundle
from jingyin.model.gate import code_points, is_opaque, known_characters, unknown_shares
from jingyin.model.labels import LABELS
from jingyin.model.text import CleanText, clean
from jingyin.model.tokenizer import SmsTokenizer
from jingyin.train.calibrate import choose_threshold, fit_temperature, softmax
from jingyin.train.card import write_card
from jingyin.train.classify import load_classifier
from jingyin.train.corpus.evade import FAMILIES, evade
from jingyin.train.data import Encode, Rows, read_split
from jingyin.train.export import export_fp32, open_session, quantize, run, write_golden
from jingyin.train.fit import FLAGGED_INDEX
from jingyin.train.gate import set_threshold, train_gate
from jingyin.train.recipe import Classify

AGREEMENT_SAMPLES = 1000
SUSPICION = 0.1
"""The gate learns to keep what reaches this share of the review threshold: a margin below what must not be lost."""

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

    Calibration and thresholds use the calibration split, through the int8 network that is served. The gate learns
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
    temperature, review, block = _calibrate(recipe, calibration, _logits(path, encode, calibration))
    gate, weights = _gate(recipe, corpus, path, encode, temperature, review)
    np.savez_compressed(path / "gate.npz", weights=weights)
    versions = {name: version(name) for name in ("torch", "transformers", "onnxruntime", "tokenizers", "numpy")}
    parts = {
        "labels": LABELS, "max_tokens": recipe.max_tokens, "review": review, "block": block, "calibration": temperature,
        "gate": gate, "provenance": {**provenance, "int8_agreement": agreement, "versions": versions},
    }  # fmt: skip
    write_card(path / "card.md", recipe, parts)
    return write_bundle(path, parts)


def _logits(path: Path, encode: Encode, rows: Rows) -> NDArray[np.float64]:
    session = open_session(path / "model.onnx")
    progress = tqdm(encode(rows.cleaned), desc="int8", unit=" rows", disable=None)
    return np.concatenate([run(session, [ids]) for ids in progress]).astype(np.float64)


def _calibrate(recipe: Classify, rows: Rows, logits: NDArray[np.float64]) -> tuple[Calibration, Threshold, Threshold]:
    calibration = fit_temperature(logits, rows.labels)
    risks = softmax(logits / calibration.temperature)[:, FLAGGED_INDEX].sum(1)
    benign = np.isin(rows.labels, [LABELS.index("ordinary"), LABELS.index("lawful_collection")])
    families = [family for family, keep in zip(rows.families, benign, strict=True) if keep]
    review = choose_threshold(risks[benign], families, recipe.review_rate, recipe.review_floor)
    block = choose_threshold(risks[benign], families, recipe.block_rate, review.risk)
    return calibration, review, block


def _with_copies(corpus: Path, split: str, seed: int) -> Iterator[Rows]:
    """Yield a split, then its flagged rows once more in the disguise of each evasion family."""
    rows = read_split(corpus, split)
    yield rows
    flagged = rows.take(np.flatnonzero(np.isin(rows.labels, FLAGGED_INDEX)))
    rng = Random(seed)
    for family in FAMILIES:
        yield replace(flagged, cleaned=[clean(evade(each.original, family, 0.5, rng)) for each in flagged.cleaned])


def _gate(
    recipe: Classify, corpus: Path, path: Path, encode: Encode, calibration: Calibration, review: Threshold
) -> tuple[Gate, NDArray[np.float16]]:
    def judged(rows: Rows) -> tuple[list[CleanText], NDArray[np.float64]]:
        return rows.cleaned, softmax(_logits(path, encode, rows) / calibration.temperature).astype(np.float64)

    train = read_split(corpus, "train").drawn(recipe.rows, recipe.seed)
    risky = judged(train)[1][:, FLAGGED_INDEX].sum(1) >= SUSPICION * review.risk
    texts = [each.text for each in train.cleaned]
    weights = train_gate(texts, risky | np.isin(train.labels, FLAGGED_INDEX), recipe.seed)
    held = [
        judged(rows) for split in ("validation", "calibration") for rows in _with_copies(corpus, split, recipe.seed)
    ]
    cleaned = [each for messages, _ in held for each in messages]
    texts = [each.text for each in cleaned]
    known = known_characters(SmsTokenizer.from_file(path / "tokenizer.json").backend.get_vocab())
    shares = unknown_shares(known, code_points(texts))
    opaque = np.array([is_opaque(share, each.hits) for share, each in zip(shares, cleaned, strict=True)])
    probabilities = np.concatenate([p for _, p in held])
    flagged = probabilities[:, FLAGGED_INDEX].sum(1) >= review.risk
    return set_threshold(weights, texts, opaque, flagged, probabilities), weights
