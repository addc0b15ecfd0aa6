"""What a bundle must hold to serve, whatever the one before it does: the shipping rule, plain threats, nonsense."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np

from jingyin.serve.scorer import Scorer
from jingyin.train.corpus.nonsense import nonsense
from jingyin.train.evaluate.figures import Bools
from jingyin.train.evaluate.messages import BENIGN, Messages, read_rows
from jingyin.train.evaluate.situations import traffic
from jingyin.train.evaluate.verdicts import verdicts
from jingyin.train.packing.thresholds import upper_bound
from jingyin.train.review.checks import Check, Side
from jingyin.train.review.promote_config import PlainRates, PromoteConfig, Rates

NONSENSE_SEED = 2018
"""No corpus recipe has it, so no line was trained on."""


def plain_messages() -> Path:
    """Return the file of plain threats and innocents that comes with the package; none of it is in a training row."""
    return Path(str(files("jingyin.train.review").joinpath("plain_threats.jsonl")))


def requirement_checks(side: Side, messages: Messages, config: PromoteConfig) -> Iterator[Check]:
    """Check a bundle against the configuration alone."""
    yield from _traffic_checks(side, messages, config.traffic)
    yield from _plain_checks(side.scorer, config.plain)
    yield _nonsense_check(side.scorer, config.nonsense)


def _traffic_checks(side: Side, messages: Messages, most: Rates) -> Iterator[Check]:
    """Apply the shipping rule: of real traffic no larger a share than configured reaches review, or block."""
    real = traffic(messages)
    rows = int(real.sum())
    rates: dict[Literal["review", "block"], float] = {"review": most.review, "block": most.block}
    for action, wanted in rates.items():
        count = int((side.reaches(action) & real).sum())
        enough = rows > 0 and (wanted == 0 or rows * wanted >= 1)
        bound = f"{count} of {rows} real messages (bound {upper_bound(count, rows):.3%}), wanted at most {wanted:.3%}"
        reason = bound if enough else f"{bound}: so few messages can't show that rate, add real traffic to the data"
        yield Check(f"real traffic: {action}", enough and count <= wanted * rows, reason)


def _plain_checks(scorer: Scorer, wanted: PlainRates) -> Iterator[Check]:
    """Of threats that any person sees at once nearly all must be flagged, and nearly all plain innocents pass."""
    rows = read_rows(plain_messages())
    flagged = _flagged(scorer, [row["text"] for row in rows])
    benign = np.array([row["label"] in BENIGN for row in rows])
    yield _at_least("plain threats: flagged", flagged[~benign], wanted.flagged)
    yield _at_least("plain innocents: passed", ~flagged[benign], wanted.passed)


def _at_least(name: str, right: Bools, wanted: float) -> Check:
    count, rows = int(right.sum()), len(right)
    return Check(name, count >= wanted * rows, f"{count} of {rows}, wanted at least {wanted:.1%}")


def _nonsense_check(scorer: Scorer, lines: int) -> Check:
    count = int(_flagged(scorer, list(nonsense(lines, NONSENSE_SEED))).sum())
    return Check("nonsense", count == 0, f"{count} of {lines} lines flagged, wanted none")


def _flagged(scorer: Scorer, texts: list[str]) -> Bools:
    return np.array([verdict.action != "pass" for verdict in verdicts(scorer, texts)], np.bool_)
