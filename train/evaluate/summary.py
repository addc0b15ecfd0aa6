"""The summary of an evaluation for a terminal."""

from rich.console import Console
from rich.table import Table

from jingyin.train.evaluate.figures import Rate
from jingyin.train.evaluate.results import AtRate, Evaluation


def print_summary(evaluation: Evaluation, console: Console) -> None:
    """Print what decides: peers at fixed rates, the worst families, evasion, size and speed."""
    model = evaluation.systems[0]
    console.print(
        f"bundle {evaluation.bundle}: {sum(evaluation.counts.values())} messages, {evaluation.left_out} not scored"
    )
    table = Table(title="at its threshold, and recall at fixed false-positive rates", title_justify="left")
    for name in ("system", "recall", "false", *(f"{a.rate:.1%}" for a in model.at_rates), "pairs"):
        table.add_column(name, justify="left" if name == "system" else "right", no_wrap=True)
    for each in evaluation.systems:
        own = (_share(each.recall), _share(each.false_positives))
        table.add_row(each.name, *own, *map(_at_rate, each.at_rates), _share(each.pairs))
    console.print(table)
    console.print("worst benign families: " + ", ".join(f"{f.name} {_rate(f.review)}" for f in evaluation.families[:5]))
    for held_out, name in ((False, "trained"), (True, "held-out")):
        rows = [e for e in evaluation.evasion if e.system == model.name and e.held_out is held_out]
        console.print(f"evasion, {name} families: " + ", ".join(f"{e.family} {e.recall_after.value:.0%}" for e in rows))
    console.print(
        f"median {model.latency.median:.2f} ms a message, network alone {evaluation.network_latency.median:.2f} ms, "
        f"the prefilter stops {evaluation.prefilter_stops:.0%} of these; {evaluation.bytes / 1e6:.1f} MB"
    )
    for note in evaluation.notes:
        console.print(note)


def _share(rate: Rate) -> str:
    return f"{rate.value:.1%}" if rate.rows else "-"


def _rate(rate: Rate) -> str:
    return f"{rate.value:.1%} ({rate.count}/{rate.rows})"


def _at_rate(at: AtRate) -> str:
    return f"{at.recall.value:.1%}" if at.recall else "-"
