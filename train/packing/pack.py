"""Makes a bundle of trained networks: their files, then all that turns their outputs into verdicts (packing/cascade.py)."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from jingyin.model.bundle import (
    NETWORK_FILES,
    PIECES,
    Fusion,
    Golden,
    Manifest,
    Network,
    read_bundle,
    write_bundle,
)
from jingyin.model.labels import LABELS
from jingyin.model.text import CleanText, clean
from jingyin.model.tokenizer import default_lexicon
from jingyin.train.data import read_split
from jingyin.train.packing.bundle_card import write_card
from jingyin.train.packing.cascade import fit_cascade
from jingyin.train.packing.export import export_fp32, golden, open_session, quantize
from jingyin.train.recipes import Calibrate, Classify
from jingyin.train.saved import Vocabulary, load_classifier
from jingyin.train.start import encoder_of

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

_UNFITTED = Fusion(score=0.0, weights=(), bias=0.0)


@dataclass(frozen=True)
class _Packed:
    """A network that lies in the bundle's folder, with its golden messages and int8's agreement with fp32."""

    network: Network
    golden: list[Golden]
    agreement: float


def pack_runs(
    runs: Mapping[str, Path], recipe: Classify | Calibrate, corpus: Path, out: Path, provenance: dict[str, object]
) -> Manifest:
    """Write `out`/bundle from classifiers in run folders, by their place in the cascade; returns its manifest."""
    folder = _emptied(out / "bundle")
    samples = read_split(corpus, "calibration").cleaned[:AGREEMENT_SAMPLES]
    order = sorted(runs, key=lambda name: NETWORK_FILES.index(f"{name}.onnx"))
    packed = [_export(runs[name], folder / f"{name}.onnx", samples) for name in order]
    if not (
        folder / "tokenizer.json"
    ).is_file():  # pieces alone: evidence and the unknown share still go by the lexicon
        Vocabulary.of_lexicon(default_lexicon()).save_compiled(folder)
    agreement = {each.network.file: each.agreement for each in packed}
    goldens = [each for one in packed for each in one.golden]
    (folder / "golden.json").write_text(json.dumps([each.model_dump() for each in goldens]) + "\n", encoding="utf-8")
    versions = {name: version(name) for name in ("torch", "transformers", "onnxruntime", "tokenizers", "numpy")}
    facts = {**provenance, "int8_agreement": agreement, "export_versions": versions}
    return _finish([each.network for each in packed], recipe, corpus, folder, facts)


def repack(bundle: Path, recipe: Calibrate, corpus: Path, out: Path, provenance: dict[str, object]) -> Manifest:
    """Write `out`/bundle with the networks of `bundle` and all else made anew; returns its manifest."""
    read = read_bundle(bundle)
    folder = _emptied(out / "bundle")
    for name in read.manifest.files:
        shutil.copyfile(bundle / name, folder / name)
    facts = {**read.manifest.provenance, "calibrated": provenance}
    return _finish(read.manifest.networks, recipe, corpus, folder, facts)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _export(run: Path, file: Path, samples: Sequence[CleanText]) -> _Packed:
    """Export the classifier of a run as int8 to `file`, and its tokenizer beside it."""
    classifier, vocabulary = load_classifier(run)
    max_tokens = classifier.encoder.config.max_position_embeddings
    encode = encoder_of(vocabulary, max_tokens)
    ids = encode(samples)
    fp32 = run / "model.fp32.onnx"
    export_fp32(classifier, fp32, ids[:20])
    agreement = quantize(fp32, file, ids)
    fp32.unlink()
    if vocabulary.pieces:
        vocabulary.pieces.backend.save(str(file.with_name(PIECES)), pretty=False)
    else:
        vocabulary.save_compiled(file.parent)
    network = Network(
        file=file.name, vocabulary="pieces" if vocabulary.pieces else "lexicon", max_tokens=max_tokens, fusion=_UNFITTED
    )
    return _Packed(network, golden(file, open_session(file), encode([clean(m) for m in GOLDEN_MESSAGES])), agreement)


def _finish(
    networks: Sequence[Network], recipe: Classify | Calibrate, corpus: Path, folder: Path, provenance: dict[str, object]
) -> Manifest:
    """Add to the networks in `folder` what turns their outputs into verdicts."""
    cascade = fit_cascade(folder, networks, recipe, corpus)
    np.savez_compressed(folder / "prefilter.npz", weights=cascade.weights)
    parts = {"labels": LABELS, **cascade.parts, "provenance": provenance}
    write_card(folder / "card.md", parts)
    return write_bundle(folder, parts)
