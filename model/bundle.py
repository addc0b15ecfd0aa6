"""The bundle: a folder with everything that a scorer needs, and the proof that it is intact.

    manifest.json   format version, id, labels, thresholds with evidence, cascade, provenance, sha256 of every file
    prefilter.npz   weights of the prefilter for hashed pairs and triples of characters and of sounds
    tiny.onnx       the networks of the cascade in int8, each from input_ids (1, length) and spans (units, 2) int64 to
    model.onnx      logits (units, labels) float32, to which model.onnx may append those of signs. The first reads the
    verifier.onnx   messages that the prefilter lets through, the others those the previous one is unsure of; the
                    manifest lists them
    lexicon.txt     the vocabulary of tiny and model, in jieba's userdict format
    tokenizer.json  the same, compiled
    pieces.json     the tokenizer of a network whose vocabulary is the pretrained encoder's pieces
    golden.json     token ids of whole messages, and the logits that they must give
    card.md         its data, its quality and its known failures

No pickle anywhere: a bundle from a stranger can give wrong verdicts, but it can't run code.
"""

import atexit
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jingyin.model.errors import BundleError
from jingyin.model.labels import FLAGGED
from jingyin.model.prefilter import BUCKETS

FORMAT_VERSION = 11
"""Networks of 10 read units in their context, those of 9 each by itself (model/windows.py)."""
FIRST_FLAGGED = ("debt_threat", "pay_to_stop")
"""The labels that a bundle flags if its manifest names none."""

FILES = ("prefilter.npz", "tokenizer.json", "lexicon.txt", "golden.json", "card.md")
"""The files of every bundle besides its manifest and networks."""

NETWORK_FILES = ("tiny.onnx", "model.onnx", "verifier.onnx")
"""The networks that a bundle may have, in the order of the cascade."""

PIECES = "pieces.json"
GOLDEN_TOLERANCE = 0.25
"""Largest allowed distance of a golden logit: int8 kernels with and without VNNI differ by up to about 0.1."""


class FrozenModel(BaseModel):
    """A part of a manifest, or of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Threshold(FrozenModel):
    """A risk from which an action is taken, and the evidence for it.

    `false_positives` of `rows` benign calibration messages reach `risk`; `bound` is the one-sided 95% upper bound of
    that rate, in which every source of traffic counts alike (train/pack/thresholds.py); `target` is the rate asked for.
    `sources` gives false positives and rows of each source. `least` is the lowest risk that a rate given while serving
    may lead to.
    """

    risk: float
    target: float
    bound: float
    rows: int
    false_positives: int
    sources: dict[str, tuple[int, int]] = {}
    least: float = 0.0


def rows_needed(rate: float) -> int:
    """Return how many benign rows without a hit it takes to bound the rate by `rate`, with 95% confidence."""
    return math.ceil(math.log(0.05) / math.log(1 - rate))


class Point(FrozenModel):
    """A point of the curve from which thresholds are chosen: the effect of `risk` as the threshold.

    `rate` is the share of benign traffic that reaches it, with its `bound` (see Threshold); `recall` the share of
    threats of situations that training has not seen.
    """

    risk: float
    rate: float
    bound: float
    recall: float


class Calibration(FrozenModel):
    """Expected calibration errors of the probabilities, 0 to 1, on `rows` rows of the calibration split.

    `ece_before` is that of the last network alone, `ece_after` that of the cascade as served.
    """

    ece_before: float
    ece_after: float
    rows: int


class Fusion(FrozenModel):
    """How the readings of a message are combined into one risk (model/cascade.py).

    Log-odds of the risk = `bias` + the sum of `scores` x the prefilter's two scores + the sum of `weights` x the
    log-odds of each network that has read the message, in the order of the cascade.
    """

    scores: tuple[float, float]
    weights: tuple[float, ...]
    bias: float


class Network(FrozenModel):
    """A network of the cascade: its file, its input, and how its risk is fused with those before it.

    The next network reads a message whose log-odds of risk here are at least `threshold` and below `certain`. None
    means no bound.
    """

    file: str
    vocabulary: Literal["lexicon", "pieces"]
    max_tokens: int
    fusion: Fusion
    threshold: float | None = None
    certain: float | None = None


class PrefilterExit(FrozenModel):
    """Where the prefilter decides: messages whose score is below `threshold` get the verdict `probabilities` (labels,).

    The probabilities are the networks' mean verdict on the stopped messages of that kind.
    """

    threshold: float
    probabilities: tuple[float, ...]


class Prefilter(FrozenModel):
    """The prefilter's exits: `ordinary` by its first score; of the rest, `lawful` collection by its second."""

    ordinary: PrefilterExit
    lawful: PrefilterExit


class SignScale(FrozenModel):
    """How a sign's logit becomes a confidence, and the confidence from which it is a reason.

    The confidence is 1 / (1 + exp(-(`slope` x logit + `bias`))). Of the held-out messages on which the scale was set,
    `found` that have the sign reach `threshold`, with this `precision`.
    """

    slope: float
    bias: float
    threshold: float
    precision: float
    found: int


class Missed(FrozenModel):
    """Threats missed by the first steps of the cascade.

    Of `flagged` threats that would be reviewed or blocked if every network read every message, `lost` are missed;
    `bound` is the one-sided 95% upper bound of that share (Clopper-Pearson).
    """

    lost: int
    flagged: int
    bound: float


class CascadeRules(FrozenModel):
    """The rules of the cascade: labels, exits of the prefilter, and networks in order.

    `discount` is subtracted from the log-odds of risk of windows and of long wholes before units are compared.
    `provisional` computes log-odds from the prefilter's scores alone, for a message that no network has read yet.
    """

    labels: tuple[str, ...]
    prefilter: Prefilter
    networks: tuple[Network, ...] = Field(min_length=1)
    discount: float
    provisional: Fusion

    @property
    def flagged(self) -> list[int]:
        """Indices in `labels` of the labels that make up the risk."""
        return [self.labels.index(label) for label in FLAGGED]


class Manifest(CascadeRules):
    """The content of manifest.json.

    `loss` has the bound "in corpus" and, if there are test-only cases, "on unseen situations"; `passed` is the share of
    ordinary calibration messages that each network reads. `signs` are those of model.onnx, in the order of its outputs;
    empty if it has none. `curve` is sorted by risk, ascending. `label_weights` multiply the probabilities of unflagged
    labels when one is chosen (cascade.likeliest); a label without one has 1. `flagged_labels` are those of the jingyin
    that wrote it; the file names them only if they are not FIRST_FLAGGED.
    """

    format_version: int
    id: str
    review: Threshold
    block: Threshold
    curve: tuple[Point, ...] = ()
    calibration: Calibration
    passed: tuple[float, ...]
    signs: dict[str, SignScale] = {}
    label_weights: dict[str, float] = {}
    flagged_labels: tuple[str, ...] = FIRST_FLAGGED
    loss: dict[str, Missed]
    provenance: dict[str, object]
    files: dict[str, str]


class Golden(FrozenModel):
    """Token ids of a made-up message, and the logits that the exporting machine got from the network in `file`."""

    file: str
    ids: list[int]
    logits: list[float]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are complete and match their hashes; `prefilter_weights` (2, BUCKETS) give both scores."""

    path: Path
    manifest: Manifest
    golden: tuple[Golden, ...]
    prefilter_weights: NDArray[np.float32]


@cache
def default_path() -> Path:
    """Return the folder of the bundle in the package.

    A package imported from a zip (Spark's --py-files) has no folder: its bundle is unpacked once for this process.
    """
    folder = package_files("jingyin.model").joinpath("default")
    if isinstance(folder, Path):
        return folder
    unpacked = Path(tempfile.mkdtemp(prefix="jingyin-"))
    atexit.register(shutil.rmtree, unpacked, ignore_errors=True)
    for file in folder.iterdir():
        (unpacked / file.name).write_bytes(file.read_bytes())
    return unpacked


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle; raises BundleError with the problem, the expectation and the remedy."""
    manifest, whole = _read_manifest(path)
    _check_files(path, manifest)
    if not whole:
        raise BundleError(f"manifest.json of bundle {path.name} was changed after export; export the bundle anew")
    try:
        golden = tuple(Golden.model_validate(row) for row in json.loads((path / "golden.json").read_text("utf-8")))
        with (path / "prefilter.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            weights = arrays["weights"].astype(np.float32)
    except Exception as error:  # json, pydantic, zipfile and numpy raise many kinds
        raise BundleError(f"bundle {path.name} has unreadable parts ({type(error).__name__}); export it anew") from None
    _check_labels(path.name, manifest, weights)
    return Bundle(path, manifest, golden, weights)


def _check_files(path: Path, manifest: Manifest) -> None:
    """Raise BundleError unless the files of a bundle are exactly those of its manifest."""
    expected = _files_of(manifest.networks)
    if set(manifest.files) != expected:
        odd = sorted(expected ^ set(manifest.files))
        raise BundleError(
            f"manifest.json of bundle {path.name} lists missing or unknown files ({', '.join(odd)}); export it anew"
        )
    if extra := sorted({file.name for file in path.iterdir()} - expected - {"manifest.json"}):
        raise BundleError(
            f"bundle {path.name} holds {', '.join(extra)}, which no bundle has; remove it, or copy it anew"
        )
    for name, wanted in manifest.files.items():
        if not (path / name).is_file():
            raise BundleError(f"bundle {path.name} has no {name}; copy the whole folder again or export it anew")
        actual = sha256((path / name).read_bytes())
        if actual != wanted:
            raise BundleError(
                f"{name} of bundle {path.name} has sha256 {actual[:12]}, the manifest wants {wanted[:12]}: the file is "
                "damaged or was changed; copy the bundle again or export it anew"
            )


def _check_labels(bundle: str, manifest: Manifest, weights: NDArray[np.float32]) -> None:
    """Raise BundleError if it flags other labels than this jingyin, or exits or prefilter have the wrong shape."""
    if missing := set(FLAGGED) - set(manifest.labels):
        raise BundleError(
            f"bundle {manifest.id} has labels {', '.join(manifest.labels)}, but the risk also needs "
            f"{' and '.join(sorted(missing))}: train one on these labels"
        )
    if set(manifest.flagged_labels) != set(FLAGGED):
        raise BundleError(
            f"bundle {manifest.id} flags {', '.join(manifest.flagged_labels)}, this jingyin {', '.join(FLAGGED)}: its "
            "thresholds are of another risk; use the jingyin that wrote it, or train a bundle with this one"
        )
    for name, exit_ in (("ordinary", manifest.prefilter.ordinary), ("lawful", manifest.prefilter.lawful)):
        if len(exit_.probabilities) != len(manifest.labels):
            raise BundleError(
                f"manifest.json of bundle {bundle} has {len(exit_.probabilities)} probabilities for {name} messages; "
                f"wanted {len(manifest.labels)}, one for each label; export it anew"
            )
    if weights.shape != (2, BUCKETS):
        raise BundleError(
            f"prefilter.npz of bundle {bundle} has weights of shape {weights.shape}; wanted {(2, BUCKETS)}; "
            "export it anew"
        )


def _files_of(networks: Sequence[Network]) -> set[str]:
    """Return the names of all files of a bundle with these networks, except its manifest.

    Raises BundleError for a network file of another name, so that no path outside the folder is ever read.
    """
    names = [network.file for network in networks]
    if names != [name for name in NETWORK_FILES if name in names]:
        raise BundleError(f"a bundle's networks are some of {', '.join(NETWORK_FILES)}, in this order; export it anew")
    pieces = {PIECES} if any(network.vocabulary == "pieces" for network in networks) else set()
    return {*FILES, *names, *pieces}


def _read_manifest(path: Path) -> tuple[Manifest, bool]:
    """Return the manifest of a bundle, and whether it is unchanged since export."""
    file = path / "manifest.json"
    if not file.is_file():
        fault = "has no manifest.json" if path.exists() else "does not exist"
        raise BundleError(f"{path} is not a bundle: it {fault}; name a folder that `jingyin train` wrote (RUN/bundle)")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise BundleError(
                f"bundle {path.name} has format version {version!r}, this jingyin reads {FORMAT_VERSION}; install the "
                "jingyin that wrote it, or make another: jingyin finetune MESSAGES, or jingyin train RECIPE..."
            )
        whole = content.get("id") == manifest_id(content)
        return Manifest.model_validate(content), whole
    except (ValidationError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise BundleError(
            f"manifest.json of bundle {path.name} can't be read ({type(error).__name__}); export it anew"
        ) from None


def write_bundle(path: Path, parts: Mapping[str, object]) -> Manifest:
    """Hash the files in `path`, add `parts` (the manifest's other fields), and write manifest.json.

    Raises BundleError if a file is missing.
    """
    draft = Manifest.model_validate(
        {"flagged_labels": FLAGGED, **parts, "format_version": FORMAT_VERSION, "id": "", "files": {}}
    )
    names = sorted(_files_of(draft.networks))
    if missing := [name for name in names if not (path / name).is_file()]:
        raise BundleError(f"bundle {path.name} lacks {', '.join(missing)}; write them before the manifest")
    content = draft.model_dump(mode="json")
    if draft.flagged_labels == FIRST_FLAGGED:
        del content["flagged_labels"]
    if not draft.label_weights:
        del content["label_weights"]
    content["files"] = {name: sha256((path / name).read_bytes()) for name in names}
    content["id"] = manifest_id(content)
    (path / "manifest.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return Manifest.model_validate(content)


def manifest_id(content: Mapping[str, object]) -> str:
    """Return the id of a manifest: 16 hex digits of the sha256 of all its other fields, file hashes included."""
    rest = {key: value for key, value in content.items() if key != "id"}
    return sha256(json.dumps(rest, ensure_ascii=False, sort_keys=True).encode())[:16]


def sha256(data: bytes) -> str:
    """Return the sha256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()
