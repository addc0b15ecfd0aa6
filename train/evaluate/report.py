"""The report for people: one HTML file, its plots inside; message texts are escaped."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.metrics import precision_recall_curve

from jingyin.model.bundle import Manifest
from jingyin.model.labels import LABELS
from jingyin.model.signs import name_of
from jingyin.train.evaluate.judge import FEWEST, SHOWN, Judged, split
from jingyin.train.evaluate.results import AtRate, AttackResult, Evaluation, EvasionResult, MacroF1, SignsResult
from jingyin.train.evaluate.samples import Messages
from jingyin.train.evaluate.statistics import Bools, Floats, Rate

# The plots of the reports, each as a data URI of an SVG: a report is one file, and prints at any size.


# Okabe and Ito's colours: told apart by the colour-blind, and by their lightness in grey print.
COLOURS = ("#0072B2", "#E69F00", "#999999", "#CC79A7", "#56B4E9", "#009E73")
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "jingyin", "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e5e5e5",
    "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip
_STYLES = ("-", "--", "-.", ":")
BINS = 10


def draw(paint: Callable[[Axes], object], size: tuple[float, float] = (5.0, 3.4)) -> str:
    """Return what `paint` draws on one pair of axes, `size` in inches, as a data URI."""
    with rc_context(_STYLE):  # type: ignore[arg-type]  # matplotlib lists every key it knows as a literal
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def legend(axes: Axes) -> None:
    """Put the legend above the axes, where it covers nothing."""
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3 if len(axes.get_legend_handles_labels()[0]) == 3 else 2
    )


def precision_recall(judged: Sequence[Judged], messages: Messages) -> str:
    """Plot precision against recall of flagged against benign rows, with each system's own threshold as a dot."""
    binary = messages.benign | messages.flagged
    truth = messages.flagged[binary]

    def paint(axes: Axes) -> None:
        for i, each in enumerate(judged):
            precision, recall, _ = precision_recall_curve(truth, each.scores.risks[binary])
            axes.step(
                recall[:-1], precision[:-1], where="post", color=COLOURS[i % len(COLOURS)], label=each.system.name,
                linestyle=_STYLES[i % len(_STYLES)],
            )  # fmt: skip
            hit = each.flags[binary]
            if hit.any():
                axes.plot((hit & truth).sum() / truth.sum(), truth[hit].mean(), "o", color=COLOURS[i % len(COLOURS)])
        axes.set(xlabel="recall of flagged messages", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
        legend(axes)

    return draw(paint)


def reliability(risks: Floats, flagged: Bools) -> str:
    """Plot the share of flagged rows (n,) against the risk, in BINS bins of equal mass above a risk of 0.01."""
    kept = risks >= 0.01
    order = np.argsort(risks[kept], kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]

    def paint(axes: Axes) -> None:
        axes.plot((0, 1), (0, 1), color="#999999", linestyle=":", label="perfect")
        mean = [risks[kept][part].mean() for part in parts]
        share = [flagged[kept][part].mean() for part in parts]
        axes.plot(mean, share, "o-", color=COLOURS[0], label=f"{int(kept.sum())} rows with a risk of 0.01 or more")
        axes.set(xlabel="mean risk of a bin", ylabel="share flagged by label", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        legend(axes)

    return draw(paint)


def histogram(benign: Floats, flagged: Floats, thresholds: Sequence[tuple[str, float]]) -> str:
    """Plot the risks of benign and flagged rows, counts on a logarithmic axis, with the thresholds."""

    def paint(axes: Axes) -> None:
        bins = np.linspace(0, 1, 41).tolist()
        axes.hist(benign, bins=bins, color=COLOURS[0], alpha=0.75, label="benign")
        axes.hist(flagged, bins=bins, histtype="step", color="#B22222", linewidth=1.6, label="flagged by label")
        for style, (name, risk) in zip(("--", ":"), thresholds, strict=True):
            axes.axvline(risk, color="#333333", linestyle=style, label=f"{name} from {risk:.3f}")
        axes.set(xlabel="risk", ylabel="messages", yscale="log", xlim=(0, 1.005))
        legend(axes)

    return draw(paint)


def evasion(results: Sequence[EvasionResult], system: str) -> str:
    """Plot one system's recall by evasion family, before and after, with intervals; held-out families are starred."""
    rows = sorted((r for r in results if r.system == system), key=lambda r: (r.held_out, -r.recall_after.value))
    at = np.arange(len(rows))

    def paint(axes: Axes) -> None:
        for shift, colour, name in ((-0.19, "#BBBBBB", "before"), (0.19, COLOURS[0], "after")):
            rates = [getattr(r, f"recall_{name}") for r in rows]
            value = np.array([r.value for r in rates])
            error = np.array([[r.value - r.low for r in rates], [r.high - r.value for r in rates]]).clip(0)
            axes.bar(at + shift, value, 0.36, yerr=error, color=colour, label=f"recall {name}", ecolor="#555555")
        false = [r.false_after.value for r in rows]
        axes.plot(at, false, "D", color="#B22222", markersize=4, label="false positives after")
        axes.set_xticks(at, [r.family + (" *" if r.held_out else "") for r in rows], rotation=35, ha="right")
        axes.set(ylabel="share of rows", ylim=(0, 1.02))
        axes.grid(axis="x", visible=False)
        legend(axes)

    return draw(paint, (10.0, 3.8))


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
        "precision_recall": precision_recall(judged, messages),
        "histogram": histogram(*split(risks, messages), thresholds),
        "reliability": reliability(risks[binary], messages.flagged[binary]),
        "evasion": evasion(evaluation.evasion, judged[0].system.name),
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


# The summary of an evaluation for a terminal.


def print_summary(evaluation: Evaluation, console: Console) -> None:
    """Print what decides: the bundle and baselines at fixed rates, the worst families, evasion, size and speed."""
    model = evaluation.systems[0]
    console.print(
        f"bundle {evaluation.bundle}: {sum(evaluation.counts.values())} messages, {evaluation.left_out} not scored"
    )
    table = Table(title="at its threshold, and recall at fixed false-positive rates", title_justify="left")
    for name in ("system", "recall", "false", *(f"{a.rate:.1%}" for a in model.at_rates), "pairs"):
        table.add_column(name, justify="left" if name == "system" else "right", no_wrap=True)
    for each in evaluation.systems:
        own = (_share(each.recall), _share(each.false_positives))
        table.add_row(each.name, *own, *map(_printed_at_rate, each.at_rates), _share(each.pairs))
    console.print(table)
    console.print("worst benign families: " + ", ".join(f"{f.name} {_rate(f.review)}" for f in evaluation.families[:5]))
    for part in evaluation.situations:
        threats = f"threats at review {_share(part.review)}, blocked {_share(part.block)}; " if part.review.rows else ""
        console.print(
            f"{part.name}: {threats}benign at review {_rate(part.innocents_review)}, "
            f"macro-recall {part.macro_recall:.3f}"
        )
    if evaluation.signs:
        _print_signs(evaluation.signs, console)
    for held_out, name in ((False, "trained"), (True, "held-out")):
        rows = [e for e in evaluation.evasion if e.system == model.name and e.held_out is held_out]
        console.print(f"evasion, {name} families: " + ", ".join(f"{e.family} {e.recall_after.value:.0%}" for e in rows))
    _print_attack(evaluation.attack, console)
    console.print(
        f"median {model.latency.median:.2f} ms a message, network alone {evaluation.network_latency.median:.2f} ms, "
        f"the prefilter stops {evaluation.prefilter_stops:.0%} of these; {evaluation.bytes / 1e6:.1f} MB"
    )
    for note in evaluation.notes:
        console.print(note)


def _print_attack(attack: AttackResult, console: Console) -> None:
    """Print what passes of the flagged messages; the worst head or tail, and the worst that training has not seen."""
    worst = [next(d for d in attack.dressings if not only or d.held_out) for only in (False, True)]
    dressed = ", ".join(
        f"{name} {_share(d.passed)}" for name, d in zip(("worst", "worst held out"), worst, strict=True)
    )
    tries = ", ".join(f"{_share(each.passed)} at {each.tries}" for each in attack.sender)
    console.print(f"passes with a head or tail: mean {attack.mean_passed:.1%}, {dressed}; lazy sender, tries: {tries}")


def _print_signs(signs: SignsResult, console: Console) -> None:
    """Print macro-F1 of the signs, and those that the most missed threats show."""
    means = ", ".join(
        f"macro-F1 {macro_f1(mean)} over the {mean.signs} {name}"
        for mean, name in ((signs.frequent, "frequent"), (signs.commonest, "commonest"))
    )
    worst = sorted(signs.signs, key=lambda each: -each.missed.count)[:3]
    missed = ", ".join(f"{each.sign} {_rate(each.missed)}" for each in worst)
    console.print(f"signs on {signs.rows} annotated messages: {means}; missed threats show {missed}")


def _share(rate: Rate) -> str:
    return f"{rate.value:.1%}" if rate.rows else "-"


def _printed_rate(rate: Rate) -> str:
    return f"{rate.value:.1%} ({rate.count}/{rate.rows})"


def _printed_at_rate(at: AtRate) -> str:
    return f"{at.recall.value:.1%}" if at.recall else "-"
