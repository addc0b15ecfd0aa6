"""jingyin 静音 reads Chinese SMS and flags pay-to-stop extortion and debt-collection threats.

from jingyin import Scorer
Scorer.load().score("...").action  # "pass", "review" or "block"

The names in __all__, and those that docs/ tells you to import, are public; all else may change with any version.
`Scorer` is imported on first use, to spare the gateway filters onnxruntime and its memory; so are `relabel`,
`campaigns`, `scorer_columns` and `score_dataframe`, which need the extra `batch` or `spark`.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from jingyin.model.errors import BundleError, ConfigError, InputError, JingyinError
from jingyin.model.labels import ACTIONS, LABELS, Reason, Span, Verdict

if TYPE_CHECKING:
    from jingyin.serve.archive.campaigns import campaigns
    from jingyin.serve.archive.columns import scorer_columns
    from jingyin.serve.archive.relabel import relabel
    from jingyin.serve.scorer import Scorer
    from jingyin.serve.spark import score_dataframe

__version__: str

__all__ = [
    "ACTIONS",
    "LABELS",
    "BundleError",
    "ConfigError",
    "InputError",
    "JingyinError",
    "Reason",
    "Scorer",
    "Span",
    "Verdict",
    "campaigns",
    "relabel",
    "score_dataframe",
    "scorer_columns",
]

_LATER = {
    "Scorer": "jingyin.serve.scorer",
    "campaigns": "jingyin.serve.archive.campaigns",
    "relabel": "jingyin.serve.archive.relabel",
    "score_dataframe": "jingyin.serve.spark",
    "scorer_columns": "jingyin.serve.archive.columns",
}


def __getattr__(name: str) -> object:
    """Import the requested name; raises ConfigError if it needs an extra that isn't installed, naming it."""
    if name == "__version__":
        return version("jingyin")
    if name not in _LATER:
        raise AttributeError(f"module 'jingyin' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
