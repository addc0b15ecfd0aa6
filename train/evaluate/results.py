"""What an evaluation holds, as plain records that become JSON. No message text is among them."""

from dataclasses import dataclass

from jingyin.train.evaluate.statistics import Estimate, Paired, Rate
from jingyin.train.evaluate.systems import Latency


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
    """The bundle against a baseline, on the same rows: recall differences at fixed rates, and McNemar's test.

    McNemar compares who flags flagged rows and passes benign ones, each at its own threshold.
    """

    baseline: str
    at_rates: list[AtRate]
    paired: Paired


@dataclass(frozen=True)
class Slice:
    """Rows of one value of a dimension: recall of the flagged ones, false positives of the benign ones by action."""

    dimension: str
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
class Situation:
    """Some rows by where their situations stand to the training rows; `block` and `innocents_block` count blocked ones.

    `by_label` gives the share of each label's rows that bear it, `macro_recall` the mean over labels that have rows.
    """

    name: str
    rows: int
    review: Rate
    block: Rate
    innocents_review: Rate
    innocents_block: Rate
    by_label: dict[str, Rate]
    macro_recall: float


@dataclass(frozen=True)
class SignResult:
    """One sign on rows whose signs people read: `shown` show it, the network gives it to `given`, `right` are both.

    Precision, recall and F1 are 0 to 1, 0 where they have no rows. `missed` counts, of the flagged rows that show it,
    those that pass.
    """

    sign: str
    shown: int
    given: int
    right: int
    precision: float
    recall: float
    f1: float
    missed: Rate


@dataclass(frozen=True)
class MacroF1:
    """The mean F1 of so many `signs`; None where there are none."""

    signs: int
    value: float | None


@dataclass(frozen=True)
class SignPair:
    """Two signs that `shown` rows show together, and the `given` rows to which the network gives both."""

    signs: tuple[str, str]
    shown: int
    given: int


@dataclass(frozen=True)
class SignsResult:
    """Signs on `rows` rows whose signs people read: all of them, the most frequent first, and the most frequent pairs.

    `frequent` is over the signs with enough rows to tell, `commonest` over the first ten.
    """

    rows: int
    signs: list[SignResult]
    frequent: MacroF1
    commonest: MacroF1
    pairs: list[SignPair]


@dataclass(frozen=True)
class DressingResult:
    """One head or tail on the same messages: flagged ones that then pass, benign ones that then are flagged."""

    name: str
    held_out: bool
    passed: Rate
    false_positives: Rate


@dataclass(frozen=True)
class TriesResult:
    """The lazy sender after some tries: of the flagged messages those that passed by then.

    `false_positives` are benign messages that are flagged once as many edits, drawn at random, are made to them.
    """

    tries: int
    passed: Rate
    false_positives: Rate


@dataclass(frozen=True)
class AttackResult:
    """What passes of `rows` messages that are flagged as they stand, and what is flagged of benign ones.

    `mean_passed` and `mean_false_positives` are means over `dressings`, which come the worst first. `halves_passed`
    counts messages that pass in two halves, of those that have a comma; `halves_false_positives` benign ones flagged in
    either.
    """

    rows: int
    plain_false_positives: Rate
    dressings: list[DressingResult]
    mean_passed: float
    mean_false_positives: float
    sender: list[TriesResult]
    halves_passed: Rate
    halves_false_positives: Rate


@dataclass(frozen=True)
class ErrorRow:
    """A row that the bundle gets wrong; `where` is its file and number."""

    where: str
    label: str
    family: str
    predicted: str
    action: str
    risk: float


@dataclass(frozen=True)
class Evaluation:
    """All of it. `files` gives the sha256 of each data file, `counts` the rows of each label.

    `signs` is None where there are none to judge; one of the `notes` then says why.
    """

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
    situations: list[Situation]
    signs: SignsResult | None
    evasion: list[EvasionResult]
    attack: AttackResult
    errors: dict[str, list[ErrorRow]]
    notes: list[str]
