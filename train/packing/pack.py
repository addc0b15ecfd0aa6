"""Makes a bundle of trained networks: their files, then what turns their outputs into verdicts (packing/cascade.py)."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from jingyin.model.bundle import (
    NETWORK_FILES,
    PIECES,
    Bundle,
    Fusion,
    Golden,
    Manifest,
    Network,
    read_bundle,
    write_bundle,
)
from jingyin.model.errors import BundleError, ConfigError
from jingyin.model.labels import LABELS
from jingyin.model.text import CleanText, clean
from jingyin.model.tokenizer import default_lexicon
from jingyin.serve.networks import open_session
from jingyin.train.data import read_split
from jingyin.train.packing.bundle_card import write_card
from jingyin.train.packing.cascade import fit_cascade, train_prefilter_on
from jingyin.train.packing.dequantise import MODEL
from jingyin.train.packing.export import export_fp32, golden, quantize
from jingyin.train.packing.sign_scales import fit_signs
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

_TRAINED = {"command", "training_rows", "int8_agreement"}  # what the card tells of a bundle's training
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
    samples = _samples(corpus, recipe.seed)
    order = sorted(runs, key=lambda name: NETWORK_FILES.index(f"{name}.onnx"))
    packed = [_export(runs[name], folder / f"{name}.onnx", samples) for name in order]
    if not (
        folder / "tokenizer.json"
    ).is_file():  # pieces alone: evidence and the unknown share still go by the lexicon
        Vocabulary.of_lexicon(default_lexicon()).save_compiled(folder)
    agreement = {each.network.file: each.agreement for each in packed}
    goldens = [each for one in packed for each in one.golden]
    _write_golden(folder, goldens)
    facts = {**provenance, "int8_agreement": agreement, "export_versions": _versions()}
    weights = train_prefilter_on(corpus, recipe)
    return _finish([each.network for each in packed], weights, recipe, corpus, folder, facts)


def repack(bundle: Path, recipe: Calibrate, corpus: Path, out: Path, provenance: dict[str, object]) -> Manifest:
    """Write `out`/bundle with the networks of `bundle` and all else made anew; returns its manifest.

    Raises ConfigError for shares of another number of networks, BundleError for a bundle that does not say how it was
    trained.
    """
    read = read_bundle(bundle)
    _refuse_unlike(read, recipe)
    folder = _copied(read, out)
    facts = {**read.manifest.provenance, "calibrated": provenance}
    return _finish(read.manifest.networks, train_prefilter_on(corpus, recipe), recipe, corpus, folder, facts)


def pack_finetuned(
    run: Path,
    bundle: Path,
    weights: NDArray[np.float16],
    recipe: Calibrate,
    corpus: Path,
    provenance: dict[str, object],
) -> Manifest:
    """Write `run`/bundle: the networks of `bundle` but for model.onnx, which is the classifier in `run`.

    `weights` (2, BUCKETS) are the prefilter's; fusion and thresholds are fitted by `recipe`, which names the shares
    that each network reads. Raises as `repack` does.
    """
    read = read_bundle(bundle)
    _refuse_unlike(read, recipe)
    folder = _copied(read, run)
    packed = _export(run, folder / MODEL, _samples(corpus, recipe.seed))
    kept = [each for each in read.golden if each.file != MODEL]
    _write_golden(folder, [*kept, *packed.golden])
    agreement = {**cast(dict[str, float], read.manifest.provenance["int8_agreement"]), MODEL: packed.agreement}
    facts = {**provenance, "int8_agreement": agreement, "export_versions": _versions()}
    networks = [packed.network if each.file == MODEL else each for each in read.manifest.networks]
    return _finish(networks, weights, recipe, corpus, folder, facts)


def _samples(corpus: Path, seed: int) -> list[CleanText]:
    """Return the messages on which int8 is compared with fp32, drawn: rows of one label lie together."""
    return read_split(corpus, "calibration").drawn(AGREEMENT_SAMPLES, seed).cleaned


def _refuse_unlike(bundle: Bundle, recipe: Calibrate) -> None:
    manifest = bundle.manifest
    if len(recipe.passed) != len(manifest.networks):
        raise ConfigError(
            f"bundle {manifest.id} has {len(manifest.networks)} network(s), passed has {len(recipe.passed)} share(s); "
            "give one for each"
        )
    if missing := sorted(_TRAINED - set(manifest.provenance)):
        raise BundleError(
            f"bundle {manifest.id} does not say how it was trained (it lacks {', '.join(missing)}); take one that "
            "`jingyin train` made"
        )


def _copied(bundle: Bundle, out: Path) -> Path:
    folder = _emptied(out / "bundle")
    for name in bundle.manifest.files:
        shutil.copyfile(bundle.path / name, folder / name)
    return folder


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _write_golden(folder: Path, rows: Sequence[Golden]) -> None:
    (folder / "golden.json").write_text(json.dumps([each.model_dump() for each in rows]) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "onnxruntime", "tokenizers", "numpy")}


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
    networks: Sequence[Network], weights: NDArray[np.float16], recipe: Classify | Calibrate, corpus: Path, folder: Path,
    provenance: dict[str, object],
) -> Manifest:  # fmt: skip
    """Add to the networks in `folder` what turns their outputs into verdicts."""
    fitted = fit_cascade(folder, networks, weights, recipe, corpus)
    signs = fit_signs(folder, networks, corpus)
    parts = {"labels": LABELS, **fitted, "signs": signs, "provenance": provenance}
    np.savez_compressed(folder / "prefilter.npz", weights=weights)
    write_card(folder / "card.md", parts)
    return write_bundle(folder, parts)
