"""The bundle: a folder that holds everything a scorer needs, and the proof that it is whole.

    manifest.json   format version, id, labels, thresholds with their evidence, calibration, gate, provenance, sha256
    model.onnx      int8 network: input_ids (1, length) int64 -> logits (1, labels) float32
    tokenizer.json  the compiled lexicon
    lexicon.txt     the lexicon itself, in jieba's userdict format
    gate.npz        weights of the gate for hashed pairs and triples of characters and of sounds
    golden.json     token ids and the logits that they must give
    card.md         what it was made from, how good it is, where it fails

No pickle anywhere: a bundle from a stranger can give wrong verdicts, but it can't run code.
"""

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from jingyin.model.errors import BundleError

FORMAT_VERSION = 5
FILES = ("model.onnx", "tokenizer.json", "lexicon.txt", "gate.npz", "golden.json", "card.md")
GOLDEN_TOLERANCE = 0.25
"""Largest allowed distance of a golden logit: int8 kernels with and without VNNI differ by up to about 0.1."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Threshold(_Model):
    """A risk from which an action is taken, and the evidence for it.

    `hits` of `rows` benign calibration messages reach `risk`; `bound` is the one-sided 95% upper bound of that rate
    (Clopper-Pearson), `target` the rate that was asked for. `families` gives hits and rows of each family.
    """

    risk: float
    target: float
    bound: float
    rows: int
    hits: int
    families: dict[str, tuple[int, int]] = {}


class Calibration(_Model):
    """Logits are divided by `temperature` before softmax; ece_* are expected calibration errors, 0 to 1.

    `ece_before` is that of the logits as they come, `ece_after` that of temperature and join together.
    """

    temperature: float
    ece_before: float
    ece_after: float
    rows: int


class Join(_Model):
    """How the gate's score weighs in the risk of a message that the network has read (model/join.py).

    Log-odds of the risk = `slope` x (log-odds of the network's risk, at most `cap`, + score) + `bias`.
    """

    cap: float
    slope: float
    bias: float


class Gate(_Model):
    """When the gate's score is below `threshold` a message is ordinary and the network does not run.

    Of `flagged` held-out messages that would be reviewed or blocked if the network read them all, `lost` are below the
    threshold; `loss_bound` is the 95% upper bound of that share. `passed_share` is the share of the others that still
    run the network. `probabilities` is the mean verdict without the gate on messages that the gate stops.
    """

    threshold: float
    lost: int
    flagged: int
    loss_bound: float
    passed_share: float
    probabilities: tuple[float, ...]


class Manifest(_Model):
    """The content of manifest.json."""

    format_version: int
    id: str
    labels: tuple[str, ...]
    max_tokens: int
    review: Threshold
    block: Threshold
    calibration: Calibration
    join: Join
    gate: Gate
    provenance: dict[str, object]
    files: dict[str, str]


class Golden(_Model):
    """Token ids of a made-up message and the logits that the exporting machine got."""

    ids: list[int]
    logits: list[float]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are all there and have the right hashes."""

    path: Path
    manifest: Manifest
    golden: tuple[Golden, ...]
    gate_weights: NDArray[np.float32]


@cache
def default_path() -> Path:
    """Return the folder of the bundle that the package holds.

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
    """Read and verify a bundle; raises BundleError with what was found, what was wanted and what to do."""
    manifest = _read_manifest(path)
    for name, wanted in manifest.files.items():
        if not (path / name).is_file():
            raise BundleError(f"bundle {path.name} has no {name}; copy the whole folder again or export it anew")
        found = sha256((path / name).read_bytes())
        if found != wanted:
            raise BundleError(
                f"{name} of bundle {path.name} has sha256 {found[:12]}, the manifest wants {wanted[:12]}: the file is "
                "damaged or was changed; copy the bundle again or export it anew"
            )
    if manifest.id != manifest_id(manifest.model_dump(mode="json")):
        raise BundleError(f"manifest.json of bundle {path.name} was changed after export; export the bundle anew")
    try:
        golden = tuple(Golden.model_validate(row) for row in json.loads((path / "golden.json").read_text("utf-8")))
        with (path / "gate.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            weights = arrays["weights"].astype(np.float32)
    except Exception as error:  # json, pydantic, zipfile and numpy raise many kinds
        raise BundleError(f"bundle {path.name} has unreadable parts ({type(error).__name__}); export it anew") from None
    return Bundle(path, manifest, golden, weights)


def _read_manifest(path: Path) -> Manifest:
    file = path / "manifest.json"
    if not file.is_file():
        raise BundleError(
            f"{path} is no bundle: it has no manifest.json; name a folder that `jingyin train` wrote (RUN/bundle)"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise BundleError(
                f"bundle {path.name} has format version {version!r}, this jingyin reads {FORMAT_VERSION}; install the "
                "jingyin that wrote it, or export it anew"
            )
        return Manifest.model_validate(content)
    except (ValidationError, ValueError, AttributeError) as error:
        raise BundleError(
            f"manifest.json of bundle {path.name} can't be read ({type(error).__name__}); export it anew"
        ) from None


def write_bundle(path: Path, parts: Mapping[str, object]) -> Manifest:
    """Hash the FILES in `path`, add `parts` (the manifest's other fields), and write manifest.json.

    Raises BundleError if a file is missing.
    """
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        raise BundleError(f"bundle {path.name} lacks {', '.join(missing)}; write them before the manifest")
    hashes = {name: sha256((path / name).read_bytes()) for name in FILES}
    draft = Manifest.model_validate({**parts, "format_version": FORMAT_VERSION, "id": "", "files": hashes})
    content = draft.model_dump(mode="json")
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
