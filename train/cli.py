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
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished stages, go on from the last checkpoint.")] = False,
) -> None:
    """Train: one recipe a stage, each with a run folder of its own; the last one's bundle is the result."""
    from jingyin.train.run import train as run_stages

    folder = run_stages(recipes, out, resume=resume)
    typer.echo(f"run: {folder}")
