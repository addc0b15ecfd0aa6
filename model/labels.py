"""The five labels, the three actions, and the verdict that every interface of jingyin returns."""

from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple


class Label(NamedTuple):
    """A label: its name in data and verdicts, its side, its name for people, and an invented message that has it.

    The probabilities of flagged labels add up to the risk; messages of benign ones are false positives when they are
    flagged.
    """

    id: str
    side: Literal["flagged", "benign", "neither"]
    chinese: str
    english: str
    example: str


TABLE = (
    Label("ordinary", "benign", "普通短信", "ordinary", "明天下午三点老地方见，记得带伞"),
    Label(
        "lawful_collection", "benign", "合法催收", "lawful collection",
        "【XX银行】您尾号1234的信用卡本期账单3,482.15元，最后还款日3月15日，如已还款请忽略。",
    ),
    Label(
        "debt_threat", "flagged", "催收威胁", "debt threat",
        "再不还钱就把你借钱的事发给你通讯录里每一个人，今晚6点前",
    ),
    Label(
        "pay_to_stop", "flagged", "付费止扰勒索", "pay-to-stop extortion", "想让你的电话安静就转300块，不转接着打"
    ),
    Label("other_threat", "neither", "其他威胁", "other threat", "你给我等着，下班路上小心点"),
)  # fmt: skip
"""The labels in the order of the network's outputs; the guide is train/corpus/LABELS.md."""

LABELS = tuple(label.id for label in TABLE)
FLAGGED = tuple(label.id for label in TABLE if label.side == "flagged")
BENIGN = tuple(label.id for label in TABLE if label.side == "benign")

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
