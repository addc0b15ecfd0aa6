"""Makes a bundle of a trained classifier: export, calibration, thresholds, gate, golden messages, card."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from tqdm import tqdm

from jingyin.model.bundle import (
    Bundle,
    Calibration,
    Gate,
    Join,
    Manifest,
    Threshold,
    default_path,
    read_bundle,
    write_bundle,
)
from jingyin.model.errors import BundleError
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
from jingyin.train.corpus.evade import FAMILIES, TRAINING, evade
from jingyin.train.data import Encode, Rows, read_split
from jingyin.train.export import export_fp32, open_session, quantize, run, write_golden
from jingyin.train.fit import FLAGGED_INDEX
from jingyin.train.gate import set_threshold, train_gate
from jingyin.train.recipe import Calibrate, Classify
from jingyin.train.vocabularies import lexicon_encode

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


_NETWORK_FILES = ("model.onnx", "tokenizer.json", "lexicon.txt", "golden.json")


def make_bundle(recipe: Classify, corpus: Path, run_folder: Path, provenance: dict[str, object]) -> Manifest:
    """Write `run_folder`/bundle from the classifier in `run_folder`; returns its manifest.

    Temperature, join and thresholds use the calibration split, through the int8 network that is served. The gate learns
    from the training split; its loss is measured on the validation and calibration splits and their disguised copies.
    """
    classifier, encode, lexicon = load_classifier(run_folder)
    path = _emptied(run_folder / "bundle")
    samples = encode(read_split(corpus, "calibration").cleaned[:AGREEMENT_SAMPLES])
    fp32 = run_folder / "model.fp32.onnx"
    export_fp32(classifier, fp32, samples[:20])
    agreement = quantize(fp32, path / "model.onnx", samples)
    tokenizer = SmsTokenizer.from_lexicon(lexicon)
    tokenizer.backend.save(str(path / "tokenizer.json"), pretty=False)
    (path / "lexicon.txt").write_text(lexicon, encoding="utf-8")
    write_golden(path / "golden.json", open_session(path / "model.onnx"), encode([clean(m) for m in GOLDEN_MESSAGES]))
    versions = {name: version(name) for name in ("torch", "transformers", "onnxruntime", "tokenizers", "numpy")}
    return _decide(
        recipe, corpus, path, recipe, {**provenance, "int8_agreement": agreement, "versions": versions},
    )  # fmt: skip


def remake_bundle(
    recipe: Calibrate, bundle: Path | None, corpus: Path, run_folder: Path, provenance: dict[str, object]
) -> Manifest:
    """Write `run_folder`/bundle with the network of `bundle` and all else made anew, as make_bundle does; returns its manifest."""
    read = read_bundle(bundle or default_path())
    path = _emptied(run_folder / "bundle")
    for name in _NETWORK_FILES:
        shutil.copyfile(read.path / name, path / name)
    return _decide(recipe, corpus, path, _recipe_of(read), {**read.manifest.provenance, "calibrated": provenance})


def _recipe_of(bundle: Bundle) -> Classify:
    """Return the recipe that the network of `bundle` was trained by."""
    try:
        return Classify.model_validate(bundle.manifest.provenance.get("recipe"))
    except ValidationError as error:
        raise BundleError(
            f"bundle {bundle.manifest.id} does not say how its network was trained, or says so as another jingyin does "
            f"({error.error_count()} faults); calibrate it with the jingyin that made it, or train anew"
        ) from None


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _decide(
    recipe: Classify | Calibrate, corpus: Path, path: Path, network: Classify, provenance: dict[str, object]
) -> Manifest:
    """Add to the network in `path`, which was trained by the recipe `network`, what turns its outputs into verdicts."""
    tokenizer = SmsTokenizer.from_file(path / "tokenizer.json")
    weights = _train_gate(recipe, corpus)
    np.savez_compressed(path / "gate.npz", weights=weights)
    calibration = read_split(corpus, "calibration")
    judge = _fit_judge(path, lexicon_encode(tokenizer, network.max_tokens), weights, calibration)
    review, block = _thresholds(recipe, calibration, judge(calibration))
    parts = {
        "labels": LABELS, "max_tokens": network.max_tokens, "review": review, "block": block,
        "calibration": judge.calibration, "join": judge.join,
        "gate": _gate(recipe, corpus, tokenizer, judge, review), "provenance": provenance,
    }  # fmt: skip
    write_card(path / "card.md", network, parts)
    return write_bundle(path, parts)


def _train_gate(recipe: Classify | Calibrate, corpus: Path) -> NDArray[np.float16]:
    """Train on each row and a disguised copy of it: a bag of pairs needs to have seen a disguise more than the network does."""
    rows = recipe.rows if isinstance(recipe, Classify) else None
    train = read_split(corpus, "train").drawn(rows, recipe.seed)
    rng = Random(recipe.seed)
    copies = [evade(each.original, rng.choice(TRAINING), rng.uniform(0.2, 0.8), rng) for each in train.cleaned]
    texts = [each.text for each in (*train.cleaned, *map(clean, copies))]
    return train_gate(texts, np.tile(np.isin(train.labels, FLAGGED_INDEX), 2), recipe.seed)


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


def _thresholds(
    recipe: Classify | Calibrate, rows: Rows, probabilities: NDArray[np.float64]
) -> tuple[Threshold, Threshold]:
    risks = probabilities[:, FLAGGED_INDEX].sum(1)
    benign = np.isin(rows.labels, [LABELS.index("ordinary"), LABELS.index("lawful_collection")])
    families = [family for family, keep in zip(rows.families, benign, strict=True) if keep]
    review = choose_threshold(risks[benign], families, recipe.review_rate, recipe.review_floor)
    return review, choose_threshold(risks[benign], families, recipe.block_rate, review.risk)


def _with_copies(corpus: Path, split: str, seed: int) -> Iterator[tuple[Rows, bool]]:
    """Yield a split, then its flagged rows once more in the disguise of each evasion family; with each whether it is plain."""
    rows = read_split(corpus, split)
    yield rows, True
    flagged = rows.take(np.flatnonzero(np.isin(rows.labels, FLAGGED_INDEX)))
    rng = Random(seed)
    for family in FAMILIES:
        copies = [clean(evade(each.original, family, 0.5, rng)) for each in flagged.cleaned]
        yield replace(flagged, cleaned=copies), False


def _gate(
    recipe: Classify | Calibrate, corpus: Path, tokenizer: SmsTokenizer, judge: _Judge, review: Threshold
) -> Gate:
    held = [each for split in ("validation", "calibration") for each in _with_copies(corpus, split, recipe.seed)]
    plain = np.concatenate([np.full(len(rows), unchanged) for rows, unchanged in held])
    probabilities = np.concatenate([judge(rows) for rows, _ in held])
    cleaned = [each for rows, _ in held for each in rows.cleaned]
    known = known_characters(tokenizer.backend.get_vocab())
    shares = unknown_shares(known, code_points([each.text for each in cleaned]))
    opaque = np.array([is_opaque(share, each.hits) for share, each in zip(shares, cleaned, strict=True)])
    flagged = probabilities[:, FLAGGED_INDEX].sum(1) >= review.risk
    return set_threshold(judge.scores(cleaned), opaque, flagged, probabilities, plain)
