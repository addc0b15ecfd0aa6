"""Makes one small change to the code at a time and runs the tests that should notice it.

    python bench/mutants.py [NAME...]

data/mutants.yaml lists the mutants: file, text, replacement, and the tests that must fail. Each runs in a copy of the
repository. Exits 1 if a mutant survives or is stale. A mutant is stale if its tests fail without it, or if its text
does not occur exactly once in the file: the code has changed, and the list must be updated. A mutant takes some three
seconds. NAME selects the mutants whose name contains it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
LIST = Path(__file__).parent / "data" / "mutants.yaml"


@dataclass(frozen=True)
class Mutant:
    """In `file` the text `old` becomes `new`; pytest with the words of `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


def main() -> None:
    picked = [Mutant(**each) for each in yaml.safe_load(LIST.read_text(encoding="utf-8"))]
    picked = [each for each in picked if all(word in each.name for word in sys.argv[1:])]
    fates = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "jingyin"
        _copy(copy)
        sound = {tests: _passes(tests, copy) for tests in dict.fromkeys(each.tests for each in picked)}
        for mutant in picked:
            fates.append(_fate(mutant, copy) if sound[mutant.tests] else "stale")
            print(f"{fates[-1]:<6} {mutant.name}", flush=True)
    print(f"{fates.count('dies')} of {len(picked)} mutants die")
    sys.exit(0 if set(fates) <= {"dies"} else 1)


def _copy(target: Path) -> None:
    """Copy the files that git tracks; link large files that no mutant changes."""
    target.mkdir()
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        file, copy = ROOT / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.is_symlink() or not file.exists():
            continue
        if name.startswith(("model/default/", "train/rows/")):
            copy.symlink_to(file)
        else:
            shutil.copy2(file, copy)
    for folder in ("model", "serve", "train", "configs"):
        if (ROOT / "src" / "jingyin" / folder).is_symlink():
            (target / "src" / "jingyin" / folder).symlink_to(f"../../{folder}")


def _fate(mutant: Mutant, copy: Path) -> str:
    """Return whether a mutant "dies", "lives", or is "stale": its text is not in the file once."""
    file = copy / mutant.file
    whole = file.read_text(encoding="utf-8")
    if whole.count(mutant.old) != 1:
        return "stale"
    file.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return "lives" if _passes(mutant.tests, copy) else "dies"
    finally:
        file.write_text(whole, encoding="utf-8")


def _passes(tests: str, copy: Path) -> bool:
    environment = os.environ | {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    words = ["-n", "0", "-q", "-x", "-p", "no:cacheprovider", *tests.split()]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=copy, env=environment, capture_output=True, check=False
    )
    return done.returncode == 0


if __name__ == "__main__":
    main()
