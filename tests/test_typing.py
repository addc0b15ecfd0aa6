"""What a type checker sees of the public names; mypy and pyright read this file (pyproject.toml), pytest runs it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, assert_type

import jingyin
from jingyin import ACTIONS, LABELS, Scorer, Span, Verdict

MESSAGE = "不给两百这电话就一直响"

Action = Literal["pass", "review", "block"]
Stage = Literal["cache", "prefilter", "network"]


def test_names() -> None:
    labels: tuple[str, ...] = LABELS
    actions: tuple[str, ...] = ACTIONS
    assert (len(labels), len(actions)) == (5, 3)


def test_a_verdict(scorer: Scorer) -> None:
    verdict = assert_type(scorer.score(MESSAGE), Verdict)
    assert_type(verdict.label, str)
    assert_type(verdict.probabilities, dict[str, float])
    assert_type(verdict.risk, float)
    assert_type(verdict.action, Action)
    assert_type(verdict.stage, Stage)
    assert_type(verdict.edits, dict[str, int])
    assert_type(verdict.bundle, str)
    assert_type(verdict.as_dict(), dict[str, object])
    for reason in verdict.reasons:
        assert_type(reason.sign, str)
        assert_type(reason.confidence, float)


def test_a_stream_of_verdicts(scorer: Scorer) -> None:
    verdicts = assert_type(scorer.score_many([MESSAGE]), Iterator[Verdict])
    assert_type(next(verdicts), Verdict)


def test_evidence(scorer: Scorer) -> None:
    assert_type(scorer.explain(MESSAGE), list[Span])
    assert_type(scorer.explain_reasons(MESSAGE), dict[str, list[Span]])
    for span in scorer.explain(MESSAGE):
        assert_type((span.start, span.end, span.text, span.weight), tuple[int, int, str, float])


def load(bundle: str | Path | None) -> None:
    """Is type-checked only: every way to load a scorer."""
    assert_type(Scorer.load(), Scorer)
    assert_type(Scorer.load(bundle, review_rate=1e-3, block_rate=1e-4), Scorer)


def test_errors_are_of_one_kind() -> None:
    errors: tuple[type[jingyin.JingyinError], ...] = (jingyin.BundleError, jingyin.ConfigError, jingyin.InputError)
    assert {error.__base__ for error in errors} == {jingyin.JingyinError}
