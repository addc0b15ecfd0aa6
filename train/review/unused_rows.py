"""Which rows bundles may be judged on: none that trained one or set its thresholds, as far as their splits are near."""

from collections.abc import Iterator, Mapping, Sequence, Set
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jingyin.model.bundle import Manifest
from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.train.evaluate.messages import Messages, refuse_empty_class

_USED = ("train", "validation", "calibration")


def unused_rows(messages: Messages, data: Sequence[Path], manifests: Sequence[Manifest]) -> tuple[Messages, str]:
    """Return the messages that the bundles of `manifests` were not made with, and a sentence on how that is known.

    A bundle knows the sha256 of its splits. Those that trained it and set its thresholds are looked for beside `data`
    and in the folders next to it; what has its text or template in one is left out. Raises InputError when a file of
    `data` is itself such a split, or no row of a label is left.
    """
    for manifest in manifests:
        _refuse_used(messages, manifest)
    wanted = {hash_ for manifest in manifests for hashes in _used(manifest).values() for hash_ in hashes}
    found = {hash_: path for path in _splits_near(data) if (hash_ := _hash(path)) in wanted}
    taken = {text for path in found.values() for text in _texts(path)}
    both = zip(messages.texts, messages.templates, strict=True)
    left = messages.take(np.array([i for i, names in enumerate(both) if taken.isdisjoint(names)], np.int64))
    refuse_empty_class([LABELS[label] for label in left.labels], data)
    reason = f"{len(messages) - len(left)} of {len(messages)} rows left out: bundles were made with them"
    for id_, splits in {manifest.id: _missing(manifest, found.keys()) for manifest in manifests}.items():
        if splits:
            reason += f"; {', '.join(splits)} of {id_}: not near the data, so their rows can't be told"
    return left, reason


def _refuse_used(messages: Messages, manifest: Manifest) -> None:
    used = {hash_: split for split, hashes in _used(manifest).items() for hash_ in hashes}
    for name, hash_ in messages.files.items():
        if hash_ in used:
            raise InputError(
                f"{name} is the {used[hash_]} split that bundle {manifest.id} was made with; name the test split, or "
                "other messages that neither bundle has seen"
            )


def _used(manifest: Manifest) -> dict[str, list[str]]:
    """Return the hashes of each of _USED: of the run that trained a bundle, and of the one that calibrated it anew."""
    provenance: Mapping[str, Any] = manifest.provenance
    runs = [run.get("data_sha256", {}) for run in (provenance, provenance.get("calibrated", {}))]
    return {split: [run[split] for run in runs if split in run] for split in _USED}


def _missing(manifest: Manifest, found: Set[str]) -> list[str]:
    """Return which of _USED are not `found` by hash, or have none."""
    return [split for split, hashes in _used(manifest).items() if not hashes or not found >= set(hashes)]


def _splits_near(data: Sequence[Path]) -> list[Path]:
    folders = {each.resolve().parent.parent for each in data}
    return sorted(path for folder in folders for split in _USED for path in folder.glob(f"*/{split}.parquet"))


def _texts(split: Path) -> Iterator[str]:
    """Yield texts and, where there, templates of a split, and read no other column: it may have 400,000 rows."""
    there = pq.read_schema(split).names
    table = pq.read_table(split, columns=[name for name in ("text", "template") if name in there], partitioning=None)
    for column in table.columns:
        yield from column.to_pylist()


def _hash(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()
