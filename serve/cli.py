"""The command line. Verbs of jingyin.serve are here; those of jingyin.train come in by entry points.

Exit codes: 0 done, 1 the work failed, 2 the call is wrong, 3 done but rows were rejected. Errors are one sentence on
standard error.
"""

import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from jingyin.model.errors import ConfigError, JingyinError
from jingyin.serve.scorer import Scorer
from jingyin.serve.terminal import render

VERBS = "jingyin.verbs"
"""The entry-point group by which jingyin.train adds its verbs: serve must not import train."""


class _Verbs(TyperGroup):
    """Loads a verb of the entry-point group when it is called, so that `score` never pays for `train`."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401  click's context
        return [*super().list_commands(ctx), *sorted(entry_points(group=VERBS).names)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401  click's context and command
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in entry_points(group=VERBS).names:
            found = _load(cmd_name)
        return found


def _load(name: str) -> Any:  # noqa: ANN401  click's command
    """Load a verb of the entry-point group; without its extra, one that says what to install when it is called."""
    try:
        verb = entry_points(group=VERBS)[name].load()
    except ConfigError as error:
        missing = error
        verb = typer.Typer(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})

        @verb.command(help="Not installed.")
        def _missing() -> None:
            raise missing

    command = get_command(verb)
    command.name = name
    return command


app = typer.Typer(
    cls=_Verbs,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its boxes cut what an error says
    help="静音: flags pay-to-stop extortion and debt-collection threats in Chinese SMS.",
)

BundleOption = Annotated[
    Path | None, typer.Option("--bundle", help="A bundle folder; by default the one in the package.")
]


@app.callback()
def _root() -> None:
    """Keep `score` a verb even while it is the only one of this module."""


@app.command()
def score(
    messages: Annotated[list[str], typer.Argument(help="Messages, or '-' for one a line from standard input.")],
    bundle: BundleOption = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show the words that make the risk.")] = False,
) -> None:
    """Score messages: label, risk, action, and on request the evidence."""
    scorer = Scorer.load(bundle)
    for text in _lines() if messages == ["-"] else messages:
        verdict = scorer.score(text)
        spans = scorer.explain(text) if explain else []
        typer.echo(render(text, verdict, spans, as_json=json, with_evidence=explain))  # colours for terminals only


@app.command()
def relabel(
    inputs: Annotated[list[str], typer.Argument(help="Parquet, CSV or JSON lines: files, folders or globs.")],
    output: Annotated[Path, typer.Argument(help="A folder for the shards; its suffix names the format.")],
    text_column: Annotated[str, typer.Option("--text-column", help="The column that holds the messages.")] = "text",
    bundle: BundleOption = None,
    encoding: Annotated[str, typer.Option("--encoding", help="Of CSV and JSON, say gb18030.")] = "utf-8",
    compare: Annotated[str | None, typer.Option("--compare", help="A column of older labels: what changed?")] = None,
    label_studio: Annotated[
        Path | None, typer.Option("--label-studio", help="A file for tasks: rows worth a person's look.")
    ] = None,
    sample: Annotated[int | None, typer.Option("--sample", help="How many tasks, at random; by default 1000.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail at the first row that can't be scored.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace an earlier run in OUTPUT.")] = False,
    processes: Annotated[int | None, typer.Option("--processes", min=1, help="By default one a core.")] = None,
    json: Annotated[bool, typer.Option("--json", help="The report as one JSON object.")] = False,
) -> None:
    """Score archives of any size; the same command goes on after a kill. Exit code 3: done, but rows were rejected."""
    from jingyin.serve.relabel import relabel as run  # the extra `batch`
    from jingyin.serve.relabel.terminal import lines

    report = run(
        inputs, output, text_column=text_column, bundle=bundle, encoding=encoding, compare=compare, strict=strict,
        label_studio=label_studio, sample=sample, fresh=fresh, processes=processes, progress=True,
    )  # fmt: skip
    for line in lines(report, output, as_json=json):
        print(line)  # noqa: T201
    if report.rejects:
        raise SystemExit(3)


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option("--config", help="Settings in YAML; see configs/serve.yaml.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="By default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="By default 8080.")] = None,
    uds: Annotated[Path | None, typer.Option("--uds", help="A Unix socket instead of host and port.")] = None,
    bundle: BundleOption = None,
    shadow: Annotated[Path | None, typer.Option("--shadow", help="A bundle that scores beside, never answers.")] = None,
    keys: Annotated[Path | None, typer.Option("--keys", help="File of hashed API keys.")] = None,
    allow_open: Annotated[bool | None, typer.Option("--allow-open", help="A public address without keys.")] = None,
    deadline_ms: Annotated[int | None, typer.Option("--deadline-ms", help="From arrival to answer.")] = None,
    on_deadline: Annotated[str | None, typer.Option("--on-deadline", help="pass, review or block.")] = None,
    page: Annotated[bool | None, typer.Option("--page/--no-page", help="The page for people at /.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option("--tls-certificate")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key")] = None,
) -> None:
    """Answer over HTTP. Flags come before JINGYIN_SERVE_* in the environment, and these before the YAML file."""
    from jingyin.serve.http import load_settings, run_server  # the extra `serve`

    settings = load_settings(
        config, host=host, port=port, uds=uds, bundle=bundle, shadow=shadow, keys=keys, allow_open=allow_open,
        deadline_ms=deadline_ms, on_deadline=on_deadline, page=page, tls_certificate=tls_certificate, tls_key=tls_key,
    )  # fmt: skip
    run_server(settings)


def _lines() -> Iterator[str]:
    """Yield standard input line by line as it comes; undecodable bytes are kept as lone surrogates."""
    stream: Iterable[bytes] = sys.stdin.buffer
    for line in stream:
        yield line.decode("utf-8", "surrogateescape").rstrip("\r\n")


def main() -> None:
    """Run the command line; the entry point of the `jingyin` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a lone surrogate in a message must not end the work
    try:
        app()
    except ConfigError as error:
        _fail(error, 2)
    except JingyinError as error:
        _fail(error, 1)
    except OSError as error:  # a full disk; typer ends quietly when whoever reads us has gone
        _fail(error, 1)


def _fail(error: Exception, code: int) -> None:
    print(f"jingyin: {error}", file=sys.stderr)  # noqa: T201
    raise SystemExit(code) from None
