"""The verbs of training; heavy imports wait until a verb runs."""

from pathlib import Path
from typing import Annotated

import typer

train = typer.Typer()
corpus = typer.Typer(no_args_is_help=True, help="Build, count and check the corpus.")


@train.command()
def _train(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes (YAML), run in this order.")],
    out: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep finished stages, go on from the last checkpoint.")
    ] = False,
) -> None:
    """Train: one recipe a stage, each with a run folder of its own; the last one's bundle is the result."""
    from jingyin.train.run import train as run_stages

    folder = run_stages(recipes, out, resume=resume)
    typer.echo(f"run: {folder}")


evaluate = typer.Typer()


@evaluate.command()
def _evaluate(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder to judge.")],
    data: Annotated[list[Path], typer.Argument(help="JSON lines or Parquet with text, label, family, source.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and evaluation.json.")],
    train: Annotated[
        Path | None, typer.Option(help="What the n-gram peer learns from; by default train.parquet beside DATA.")
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="Path of a Hugging Face text-classification model to compare with.")
    ] = None,
) -> None:
    """Judge a bundle at fixed false-positive rates, by family, under evasion, beside its peers."""
    from rich.console import Console

    from jingyin.train.evaluate.run import evaluate as judge
    from jingyin.train.evaluate.summary import print_summary

    print_summary(judge(bundle, data, out, train, peer or []), Console())
    typer.echo(f"report: {out / 'report.html'}")


@corpus.command("build")
def _build(
    recipe: Annotated[Path, typer.Argument(help="A corpus recipe, such as configs/corpus.yaml.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
) -> None:
    """Load, clean, de-duplicate, split, fill slots and disguise; write Parquet and a card."""
    from jingyin.train.corpus.build import build

    typer.echo(f"{out}: {build(recipe, out)}")


@corpus.command("stats")
def _stats(
    path: Annotated[Path | None, typer.Argument(help="A built corpus; by default the authored rows.")] = None,
) -> None:
    """Count rows by label, family, voice, length and source."""
    from jingyin.train.corpus.stats import stats

    typer.echo(stats(path))


@corpus.command("check")
def _check(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files or built corpora; by default the authored rows.")
    ] = None,
) -> None:
    """Check schema, labels, likeness, leaks across splits, and real numbers; exit 1 if anything is wrong."""
    from jingyin.train.corpus.check import check

    faults = check(paths or ())
    for fault in faults:
        typer.echo(fault, err=True)
    if faults:
        raise typer.Exit(1)
    typer.echo("no faults")


promote = typer.Typer()


@promote.command()
def _promote(
    candidate: Annotated[Path, typer.Argument(help="The bundle folder that would replace the incumbent.")],
    incumbent: Annotated[Path, typer.Option(help="The bundle folder that serves now.")],
    config: Annotated[Path, typer.Option(help="Gates and data.")] = Path("configs/promote.yaml"),
    out: Annotated[Path, typer.Option(help="File for the decision (JSON).")] = Path("promotion.json"),
) -> None:
    """Decide whether a candidate may replace the incumbent: exit 0 if it holds every gate, else 1."""
    from jingyin.train.promote import promote as decide

    decision = decide(candidate, incumbent, config, out)
    for gate in sorted(decision.gates, key=lambda gate: gate.passed):
        typer.echo(f"{'held  ' if gate.passed else 'FAILED'} {gate.name}: {gate.reason}")
    typer.echo(f"{'promote' if decision.promote else 'keep the incumbent'}; decision: {out}")
    raise typer.Exit(0 if decision.promote else 1)


audit = typer.Typer()


@audit.command()
def _audit(
    data: Annotated[list[Path], typer.Argument(help="JSON lines, Parquet, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for tasks.json, label_studio.xml and audit.json, or rows.jsonl.")],
    answers: Annotated[
        Path | None, typer.Option(help="A Label Studio export (JSON): write DATA with its labels to rows.jsonl.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="The bundle that says what it is unsure of.")] = None,
) -> None:
    """Find likely label errors, contradictions, and rows to label next; or take the answers back in."""
    from collections import Counter

    from jingyin.train.audit import audit as find
    from jingyin.train.audit import take_answers

    if answers is None:
        counts = Counter(finding.kind for finding in find(data, out, bundle))
        typer.echo(", ".join(f"{kind}: {count} rows" for kind, count in counts.items()))
        typer.echo(f"tasks: {out / 'tasks.json'}")
        return
    found, changed = take_answers(data, answers, out)
    typer.echo(f"{len(found.labels)} answers, {changed} labels changed, {found.disputed} disputed, {found.open} open")
    typer.echo(f"rows: {out / 'rows.jsonl'}")


drift = typer.Typer()


@drift.command()
def _drift(
    reference: Annotated[Path, typer.Argument(help="A relabelled archive (Parquet) from before.")],
    current: Annotated[Path, typer.Argument(help="One from now.")],
    out: Annotated[Path, typer.Option(help="Folder for drift.html and drift.json.")],
) -> None:
    """Compare two relabelled archives: has the traffic moved? Reads no text."""
    from jingyin.train.drift import drift as compare
    from jingyin.train.drift import summary

    for line in summary(compare(reference, current, out)):
        typer.echo(line)
    typer.echo(f"report: {out / 'drift.html'}")
