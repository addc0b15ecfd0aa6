"""The plots of the reports, each as a data URI of an SVG: a report is one file, and prints at any size."""

import base64
import io
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve

from jingyin.train.evaluate.figures import Bools, Floats
from jingyin.train.evaluate.judge import Judged
from jingyin.train.evaluate.messages import Messages
from jingyin.train.evaluate.results import EvasionResult

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
