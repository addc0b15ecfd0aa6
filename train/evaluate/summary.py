"""The summary of an evaluation for a terminal."""

from rich.console import Console
from rich.table import Table

from jingyin.train.evaluate.figures import Rate
from jingyin.train.evaluate.report import macro_f1
from jingyin.train.evaluate.results import AtRate, AttackResult, Evaluation, SignsResult


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
        table.add_row(each.name, *own, *map(_at_rate, each.at_rates), _share(each.pairs))
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


def _rate(rate: Rate) -> str:
    return f"{rate.value:.1%} ({rate.count}/{rate.rows})"


def _at_rate(at: AtRate) -> str:
    return f"{at.recall.value:.1%}" if at.recall else "-"
