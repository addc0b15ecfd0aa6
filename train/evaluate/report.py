"""The report for people: one HTML file, its plots inside; message texts are escaped."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from jingyin.model.bundle import Manifest
from jingyin.model.labels import LABELS
from jingyin.model.signs import name_of
from jingyin.train.evaluate import plots
from jingyin.train.evaluate.figures import Rate
from jingyin.train.evaluate.judge import SHOWN, Judged, split
from jingyin.train.evaluate.messages import Messages
from jingyin.train.evaluate.results import AtRate, Evaluation, EvasionResult, MacroF1
from jingyin.train.evaluate.signs import FEWEST

_TITLES = {
    "false_positives": "Benign messages that reach review",
    "misses": "Flagged messages that pass",
    "confused": "Wrong label, right action",
}


def write_report(
    path: Path,
    evaluation: Evaluation,
    judged: Sequence[Judged],
    messages: Messages,
    wrong: Mapping[str, Sequence[int]],
    manifest: Manifest,
) -> None:
    """Write the report of an evaluation; `wrong` gives the rows of each error list, whose texts are shown."""
    risks = judged[0].scores.risks
    binary = messages.benign | messages.flagged
    thresholds = [("review", manifest.review.risk), ("block", manifest.block.risk)]
    pictures = {
        "precision_recall": plots.precision_recall(judged, messages),
        "histogram": plots.histogram(*split(risks, messages), thresholds),
        "reliability": plots.reliability(risks[binary], messages.flagged[binary]),
        "evasion": plots.evasion(evaluation.evasion, judged[0].system.name),
    }
    errors = [
        (
            title,
            list(zip(evaluation.errors[kind], [printable(messages.texts[row]) for row in wrong[kind]], strict=True)),
        )
        for kind, title in _TITLES.items()
    ]
    page = render(
        "report.html", title="jingyin evaluation", e=evaluation, m=manifest, model=evaluation.systems[0],
        rows=len(messages), labels=LABELS, plots=pictures, errors=errors, shown=SHOWN,
        evasion=_by_family(evaluation.evasion), at_rate=_at_rate, macro_f1=macro_f1, fewest_signs=FEWEST,
        name_of=name_of,
    )  # fmt: skip
    path.write_text(page, encoding="utf-8")


def render(template: str, **values: object) -> str:
    """Fill a template of this folder; whatever is filled in is escaped."""
    folder = files("jingyin.train.evaluate")

    def load(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    environment = Environment(loader=FunctionLoader(load), autoescape=True, undefined=StrictUndefined)
    page: str = environment.get_template(template).render(
        style=Markup(load("report.css")), rate=_rate, pct=_pct, **values
    )
    return page


def printable(text: str) -> str:
    """Replace what UTF-8 or a page can't hold, lone surrogates and control characters, by U+FFFD."""
    return "".join(c if c.isprintable() or c in "\n\u3000\u200b" else "\ufffd" for c in text)


def macro_f1(mean: MacroF1) -> str:
    """Write a mean F1, a dash for one over no signs."""
    return "–" if mean.value is None else f"{mean.value:.3f}"


def _pct(share: float) -> str:
    return f"{share:.1%}" if share == 0 or share >= 0.01 else f"{share:.2%}"


def _rate(rate: Rate) -> Markup:
    if not rate.rows:
        return Markup("–")
    return Markup("{} <small>[{}, {}] {}/{}</small>").format(
        _pct(rate.value), _pct(rate.low), _pct(rate.high), rate.count, rate.rows
    )


def _at_rate(at: AtRate, *, signed: bool = False) -> Markup:
    if at.recall is None:
        return Markup("<small>needs {} benign rows</small>").format(at.needed)
    form = "{:+.1%} <small>[{:+.1%}, {:+.1%}]</small>" if signed else "{:.1%} <small>[{:.1%}, {:.1%}]</small>"
    return Markup(form).format(at.recall.value, at.recall.low, at.recall.high)


def _by_family(results: Sequence[EvasionResult]) -> list[list[EvasionResult]]:
    ordered = sorted(results, key=lambda each: (each.held_out, each.family))
    return [list(group) for _, group in groupby(ordered, key=lambda each: each.family)]
