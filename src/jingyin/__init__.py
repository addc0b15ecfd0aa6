"""jingyin 静音 reads Chinese SMS and flags pay-to-stop extortion and debt-collection threats.

from jingyin import Scorer
Scorer.load().score("...").action  # "pass", "review" or "block"
"""

from jingyin.model.errors import BundleError, ConfigError, InputError, JingyinError
from jingyin.model.labels import ACTIONS, LABELS, Reason, Span, Verdict
from jingyin.serve.scorer import Scorer

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
]
