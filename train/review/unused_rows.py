"""Which rows bundles may be judged on: none that trained one of them or set its thresholds."""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from jingyin.model.bundle import Manifest
from jingyin.model.errors import InputError
from jingyin.train.evaluate.messages import Messages, read_rows

_USED = ("train", "validation", "calibration")


def unused_rows(messages: Messages, data: Sequence[Path], manifests: Sequence[Manifest]) -> tuple[Messages, str]:
    """Return the messages that set no threshold of the bundles of `manifests`, and a sentence on how that is known.

    A bundle knows the sha256 of its splits. The calibration split that set its thresholds is looked for beside `data`
    and in the folders next to it; whatever of `messages` is in one is left out. Raises InputError when a file of `data`
    is itself a split that a bundle was made with.
    """
    for manifest in manifests:
        _refuse_used(messages, manifest)
    wanted = {hash_: manifest.id for manifest in manifests if (hash_ := _calibration_hash(manifest))}
    found = {hash_: path for path in _splits_near(data) if (hash_ := _hash(path)) in wanted}
    taken = {row["text"] for path in found.values() for row in read_rows(path)}
    left = [i for i, text in enumerate(messages.texts) if text not in taken]
    reason = f"{len(messages) - len(left)} of {len(messages)} rows left out: they set thresholds"
    unknown = [m.id for m in manifests if _calibration_hash(m) not in found]
    if unknown:
        names = ", ".join(dict.fromkeys(unknown))
        reason += f"; the calibration split of {names} is not near the data, so its rows can't be told"
    return messages.take(np.array(left, np.int64)), reason


def _refuse_used(messages: Messages, manifest: Manifest) -> None:
    used = {hash_: split for splits in _splits_of(manifest.provenance) for split, hash_ in splits.items()}
    for name, hash_ in messages.files.items():
        if used.get(hash_) in _USED:
            raise InputError(
                f"{name} is the {used[hash_]} split that bundle {manifest.id} was made with; name the test split, or "
                "other messages that neither bundle has seen"
            )


def _splits_of(provenance: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Yield the splits' hashes of the run that trained a bundle, and of the one that calibrated it anew."""
    for run in (provenance, provenance.get("calibrated", {})):
        yield run.get("data_sha256", {})


def _calibration_hash(manifest: Manifest) -> str | None:
    trained, anew = _splits_of(manifest.provenance)
    return anew.get("calibration", trained.get("calibration"))


def _splits_near(data: Sequence[Path]) -> list[Path]:
    return sorted({path for each in data for path in each.resolve().parent.parent.glob("*/calibration.parquet")})


def _hash(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()
