"""A built corpus on disk: one Parquet file a split, a card, and a manifest."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jingyin.model.errors import ConfigError, InputError

SPLITS = ("train", "validation", "calibration", "test")

MANIFEST = "corpus.json"
"""File that says what a built corpus is: recipe, fingerprint, number of rows in each split."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a built corpus.

    `text` is what a model is given; `template` what it was made from, with slots and undisguised; `evasion`
    the family of its disguise, "framed", "dressed", "accompanied" or ""; `group` never comes in two splits; the
    `weight`s of all rows made from one message add up to the weight of its source; `pair` is the id of its minimal pair
    or ""; `case` the real case it was written from or ""; `writer` who wrote it; `signs` what it demands and threatens
    (signs.py).
    """

    text: str
    label: str
    family: str
    voice: str
    source: str
    group: str
    template: str
    evasion: str
    weight: float
    pair: str = ""
    case: str = ""
    writer: str = ""
    signs: str = "?"


SCHEMA = pa.schema([(f.name, pa.float64() if f.type is float else pa.string()) for f in fields(Row)])
"""Arrow schema of every split's file."""


def fingerprint(splits: Mapping[str, Sequence[Row]]) -> str:
    """Return the SHA-256 of all rows in order; equal exactly for equal corpora."""
    digest = hashlib.sha256()
    for split, rows in splits.items():
        for row in rows:
            digest.update(json.dumps([split, *astuple(row)], ensure_ascii=False).encode())
    return digest.hexdigest()


def fingerprint_of(folder: Path) -> str:
    """Return the fingerprint of a built corpus; "" of a folder that does not say."""
    if not is_built(folder):
        return ""
    return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["fingerprint"])


def refuse_other_folder(out: Path) -> None:
    """Raise ConfigError if `out` holds anything but a corpus."""
    if out.exists() and not is_built(out) and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is no corpus; name a new folder or remove it first")


def is_built(path: Path) -> bool:
    """Whether `path` is the folder of a built corpus."""
    return (path / MANIFEST).is_file()


def write(splits: Mapping[str, Sequence[Row]], recipe: Mapping[str, object], card: str, out: Path) -> None:
    """Write a corpus to the folder `out`, in place of the one that is there; all of it or nothing."""
    manifest = {
        "fingerprint": fingerprint(splits),
        "rows": {split: len(rows) for split, rows in splits.items()},
        "recipe": recipe,
    }
    with _aside(out) as folder:
        for split, rows in splits.items():
            table = pa.Table.from_pylist([asdict(row) for row in rows], SCHEMA)
            pq.write_table(table, folder / f"{split}.parquet")
        text = json.dumps(manifest, ensure_ascii=False, indent=2) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")


def read(folder: Path) -> dict[str, list[Row]]:
    """Return the rows of each split; raises InputError for a file that is missing, damaged or not a split."""
    splits = {}
    for split in SPLITS:
        path = folder / f"{split}.parquet"
        try:
            table = pq.read_table(path, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path} can't be read as Parquet; build the corpus again") from error
        if not table.schema.equals(SCHEMA):
            raise InputError(f"{path} has other columns than {SCHEMA.names}; build the corpus again")
        splits[split] = [Row(**row) for row in table.to_pylist()]
    return splits


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """Give a folder to write to, and rename it to `out` when all went well."""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield aside
        aside.chmod(0o755)
        if out.exists():  # a folder can't be renamed onto a full one
            out.rename(aside.with_name(f"{aside.name}-old"))
        os.replace(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(aside.with_name(f"{aside.name}-old"), ignore_errors=True)
