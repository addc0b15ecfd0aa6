"""What an evaluation holds, as plain records that become JSON. No message text is among them."""

from dataclasses import dataclass

from jingyin.train.evaluate.figures import Estimate, Paired, Rate
from jingyin.train.evaluate.latency import Latency


@dataclass(frozen=True)
class LabelResult:
    """Of one label: precision, recall and F1, 0 to 1, and its rows."""

    label: str
    precision: float
    recall: float
    f1: float
    rows: int


@dataclass(frozen=True)
class ByLabel:
    """How well a system tells labels apart: confusion is true label by predicted one, in the order of LABELS.

    `ece` is the expected calibration error of the top label, `pairs` counts minimal pairs with both labels right.
    """

    labels: list[LabelResult]
    macro_f1: float
    confusion: list[list[int]]
    ece: float
    pairs: Rate


@dataclass(frozen=True)
class AtRate:
    """Recall of flagged rows at a fixed false-positive rate; None where the benign rows can't bound the rate.

    `needed` is the number of benign rows that could.
    """

    rate: float
    recall: Estimate | None
    needed: int


@dataclass(frozen=True)
class SystemResult:
    """One system; `by_label` is None of one that knows no labels.

    `recall` and `false_positives` are those at its own `threshold`; `average_precision` is of flagged against benign.
    `pairs` counts minimal pairs of a flagged and an unflagged message with both sides right.
    """

    name: str
    threshold: float
    recall: Rate
    false_positives: Rate
    average_precision: float
    at_rates: list[AtRate]
    pairs: Rate
    by_label: ByLabel | None
    latency: Latency


@dataclass(frozen=True)
class Difference:
    """The bundle against a peer, on the same rows: recall differences at fixed rates, and McNemar's test.

    McNemar compares who flags flagged rows and passes benign ones, each at its own threshold.
    """

    peer: str
    at_rates: list[AtRate]
    paired: Paired


@dataclass(frozen=True)
class Slice:
    """Some rows: recall of the flagged ones, false positives of the benign ones, by review and by block."""

    cut: str
    name: str
    recall: Rate
    review: Rate
    block: Rate


@dataclass(frozen=True)
class EvasionResult:
    """One evasion family and system: the same flagged rows and the same benign rows, before and after."""

    family: str
    held_out: bool
    system: str
    recall_before: Rate
    recall_after: Rate
    false_before: Rate
    false_after: Rate


@dataclass(frozen=True)
class Fault:
    """A row that the bundle gets wrong; `where` is its file and number."""

    where: str
    label: str
    family: str
    predicted: str
    action: str
    risk: float


@dataclass(frozen=True)
class Evaluation:
    """All of it. `files` gives the sha256 of each data file, `counts` the rows of each label."""

    bundle: str
    files: dict[str, str]
    counts: dict[str, int]
    left_out: int
    bytes: int
    network_latency: Latency
    prefilter_stops: float
    systems: list[SystemResult]
    differences: list[Difference]
    families: list[Slice]
    slices: list[Slice]
    evasion: list[EvasionResult]
    faults: dict[str, list[Fault]]
    notes: list[str]
