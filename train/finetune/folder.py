"""The run folder of a fine-tuning: what it was begun with, and whether it is finished."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jingyin.model.bundle import read_bundle
from jingyin.model.errors import ConfigError
from jingyin.serve.relabel.inputs import find
from jingyin.train.finetune.read import Columns, is_dataset
from jingyin.train.provenance import file_sha256

_BEGUN = "begun.json"  # its presence says that a folder is such a run


def begun_with(
    data: Sequence[str], benign: Sequence[str], columns: Columns, incumbent: Path, out: Path
) -> dict[str, object]:
    """Return what makes a run the same one: hashes of its data, its columns, and the bundle that it starts from."""
    given = [*data, *benign]
    folders = [each for each in given if is_dataset(Path(each))]
    files = [each for each in given if each not in folders]
    paths = [
        *(find(files, out) if files else ()),
        *(file for each in folders for file in sorted(Path(each).rglob("*.arrow"))),
    ]
    return {
        "own_sha256": {str(path): file_sha256(path) for path in paths},
        "columns": asdict(columns),
        "bundles": {"incumbent": read_bundle(incumbent).manifest.id},
    }


def open_run(out: Path, begun: dict[str, object], *, fresh: bool) -> None:
    """Begin or go on with a run folder; never touches a folder that holds anything else.

    Raises ConfigError for such a folder, and for a run that was begun with something else.
    """
    file = out / _BEGUN
    if out.exists() and not file.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there and holds no fine-tuning; name another --out, or remove it yourself")
    if fresh and file.is_file():
        shutil.rmtree(out)
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != begun:
        raise ConfigError(
            f"{out} was begun with other data, columns, bundle, seed or replay (see its {_BEGUN}); replace it with "
            "--fresh, or name another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(begun, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
