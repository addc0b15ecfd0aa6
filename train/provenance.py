"""How a result came about: the command as given, versions, and hashes of what went in."""

import hashlib
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

_VERSIONS = (
    "torch", "transformers", "accelerate", "datasets", "tokenizers", "jieba", "numpy", "scipy", "scikit-learn",
    "onnxruntime", "jingyin",
)  # fmt: skip


def command() -> str:
    """Return the command as it was given, quoted for a shell."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Return the versions of what a training run goes by."""
    return {name: version(name) for name in _VERSIONS}


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
