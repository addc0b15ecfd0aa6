"""The five labels, the three actions, and the verdict that every interface of jingyin returns."""

from dataclasses import asdict, dataclass
from typing import Literal

LABELS = ("ordinary", "lawful_collection", "debt_threat", "pay_to_stop", "other_threat")
"""Label names in the order of the network's outputs; the guide is train/corpus/LABELS.md."""

FLAGGED = ("debt_threat", "pay_to_stop")
"""Labels whose probabilities add up to the risk."""

BENIGN = ("ordinary", "lawful_collection")
"""Labels whose messages are false positives when they are flagged; other_threat is neither benign nor flagged."""

ACTIONS = ("pass", "review", "block")
"""The actions a gateway should take, mildest first."""

Action = Literal["pass", "review", "block"]
Stage = Literal["cache", "prefilter", "network"]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a message is flagged: a sign's id (model/signs.py), and the `confidence` that the message has it, 0 to 1."""

    sign: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Jingyin's verdict on one message.

    `probabilities` are calibrated, one for each of LABELS, and add up to 1; `risk` is the sum over FLAGGED.
    `stage` names the stage that answered: the cache, the prefilter, or the networks. `edits` counts the text
    normaliser's changes, by kind. `bundle` is the id of the model bundle. `reasons` are sorted by confidence, highest
    first; a message that passes has none.
    """

    label: str
    probabilities: dict[str, float]
    risk: float
    action: Action
    stage: Stage
    edits: dict[str, int]
    bundle: str
    reasons: tuple[Reason, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Return the verdict as plain JSON types."""
        return {**asdict(self), "reasons": [asdict(reason) for reason in self.reasons]}


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of evidence: `text` is message[start:end] of the ORIGINAL message.

    `weight` is the share of the odds, of the risk or of a reason, that is lost without the text, 0.1 to 1: 0.5 halves
    them.
    """

    start: int
    end: int
    text: str
    weight: float
