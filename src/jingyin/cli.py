"""The command line: every verb, its options and its help. Verbs import their code when they are called.

Exit codes: 0 success, 1 failure, 2 usage error, 3 finished with rejected rows. Errors are one sentence on stderr.
"""

import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from io import TextIOWrapper
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from jingyin.model.errors import ConfigError, JingyinError
from jingyin.serve.encodings import KEEP, check_encoding, guess, replaced

if TYPE_CHECKING:
    from jingyin.serve.archive.campaigns import CampaignResult
    from jingyin.serve.archive.mine import MineResult
    from jingyin.serve.archive.relabel import RelabelResult

app = typer.Typer(
    add_completion=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its boxes truncate error messages
)
corpus = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Build, convert, count and check the corpus.")
app.add_typer(corpus, name="corpus")
known = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Manage the known wordings of a running service.")
app.add_typer(known, name="known")
cases = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Use the review queue of a running service.")
app.add_typer(cases, name="cases")
policy = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Check and replay a policy.")
app.add_typer(policy, name="policy")

UrlOption = Annotated[str, Option(help="Address of the service; set its admin key in JINGYIN_KEY.")]
BundleOption = Annotated[Path | None, Option(exists=True, help="Bundle folder; default: the package's bundle.")]
InputsArgument = Annotated[list[str], Argument(help="Parquet, CSV or JSON lines: files, folders or globs.")]
TextOption = Annotated[str, Option(help="Column of the messages.")]
IdOption = Annotated[str | None, Option(help="Column of ids, included wherever rows are listed.")]
EncodingOption = Annotated[str | None, Option(help="Encoding of CSV and JSON, such as gb18030; default: UTF-8.")]
DelimiterOption = Annotated[str, Option(help="Delimiter of CSV fields.")]
FreshOption = Annotated[bool, Option("--fresh", help="Replace an earlier run in OUTPUT.")]
ProcessesOption = Annotated[int | None, Option(min=1, help="Default: one per core for large inputs.")]


@app.callback()
def first(
    context: typer.Context,
    version: Annotated[bool, Option("--version", help="Print the versions of package and bundle.")] = False,
) -> None:
    """静音: flag pay-to-stop extortion and debt-collection threats in Chinese SMS."""
    if version:
        from jingyin import __version__
        from jingyin.model.bundle import default_path, read_bundle

        typer.echo(f"jingyin {__version__}, bundle {read_bundle(default_path()).manifest.id}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo("Score a message:     jingyin score '不给两百这电话就一直响'")
        typer.echo("Score an archive:    jingyin relabel archive.csv relabelled.csv")
        typer.echo("All verbs:           jingyin --help")
        raise typer.Exit(2)


@app.command()
def score(
    messages: Annotated[list[str], Argument(help="Messages, or '-' to read one per line from standard input.")],
    bundle: BundleOption = None,
    json: Annotated[bool, Option("--json", help="Print one JSON object per line.")] = False,
    explain: Annotated[
        bool, Option("--explain", help="Show the words behind the risk and behind each reason.")
    ] = False,
    lang: Annotated[str | None, Option(help="Language of the reasons: zh or en; default: the locale's.")] = None,
    encoding: Annotated[str | None, Option(help="Encoding of standard input; default: UTF-8.")] = None,
) -> None:
    """Score messages: action, risk, label, reasons.

    Flagged messages are followed by their reasons, and with --explain by evidence.
    """
    from jingyin.serve.scorer import Scorer
    from jingyin.serve.terminal import language_of, render

    language = language_of(lang, os.environ)
    scorer = Scorer.load(bundle)
    for text in _lines(encoding) if messages == ["-"] else (replaced(message)[0] for message in messages):
        verdict = scorer.score(text)
        explanation = scorer.explanation(text) if explain else None
        typer.echo(render(text, verdict, explanation, language=language, as_json=json))  # colours for terminals only


@app.command()
def relabel(
    inputs: InputsArgument,
    output: Annotated[Path, Argument(help="Folder for the parts; its suffix selects the format.")],
    text_column: TextOption = "text",
    id_column: IdOption = None,
    bundle: BundleOption = None,
    encoding: EncodingOption = None,
    delimiter: DelimiterOption = ",",
    errors: Annotated[str, Option(help="Invalid bytes: replace them, or strict to reject the row.")] = "replace",
    keep_rejected: Annotated[
        bool, Option("--keep-rejected", help="List rejected rows completely, message included.")
    ] = False,
    compare: Annotated[str | None, Option(help="Column of older labels to compare with.")] = None,
    label_map: Annotated[list[str] | None, Option(help="OLD=NEW: translate an older label; repeatable.")] = None,
    label_studio: Annotated[Path | None, Option(help="File for labelling tasks.")] = None,
    sample: Annotated[int | None, Option(help="Number of tasks, drawn at random; default: 1000.")] = None,
    strict: Annotated[bool, Option("--strict", help="Fail at the first row that can't be scored.")] = False,
    fresh: FreshOption = False,
    processes: ProcessesOption = None,
    json: Annotated[bool, Option("--json", help="Print the report as a JSON object.")] = False,
) -> None:
    """Score archives of any size.

    Repeat the command to resume it. --compare and --label-studio use a finished output without scoring it again. Exit
    code 3: finished with rejected rows.
    """
    options: dict[str, Any] = dict(locals())  # each has the name of an argument of relabel
    from jingyin.serve.archive import relabel as archive  # the extra `batch`

    as_json = options.pop("json")
    meanings = [pair.rpartition("=") for pair in label_map or []]
    if wrong := [pair for pair, (_, sign, _) in zip(label_map or [], meanings, strict=True) if not sign]:
        raise ConfigError(f"--label-map {wrong[0]!r} is not OLD=NEW")
    options["label_map"] = {old: new for old, _, new in meanings}
    result = archive.relabel(**options, progress=True)
    if label_studio and not result.tasks:
        typer.echo(f"no tasks: no row {'changed' if compare else 'has action review'}", err=True)
    _report(result, archive.lines(result, output), as_json=as_json)


@app.command()
def campaigns(
    inputs: InputsArgument,
    output: Annotated[Path, Argument(help="Folder for campaigns.parquet, members.parquet and report.html.")],
    text_column: TextOption = "text",
    id_column: IdOption = None,
    sender: Annotated[str | None, Option(help="Column of senders, to count them.")] = None,
    receiver: Annotated[str | None, Option(help="Column of receivers, to count them.")] = None,
    time: Annotated[str | None, Option(help="Column of times, for timelines.")] = None,
    time_format: Annotated[str | None, Option(help="Format of times, as in strptime; default: ISO 8601.")] = None,
    every: Annotated[bool, Option("--all", help="Group all rows, not only flagged ones.")] = False,
    min_rows: Annotated[int, Option(help="Smallest number of rows in a campaign.")] = 2,
    bundle: BundleOption = None,
    encoding: EncodingOption = None,
    delimiter: DelimiterOption = ",",
    label_studio: Annotated[Path | None, Option(help="File for labelling tasks, one per campaign.")] = None,
    answers: Annotated[
        Path | None, Option(exists=True, help="Label Studio's export of these tasks, to label all rows.")
    ] = None,
    lang: Annotated[str | None, Option(help="Language of the report: zh or en; default: the locale's.")] = None,
    fresh: FreshOption = False,
    processes: ProcessesOption = None,
    json: Annotated[bool, Option("--json", help="Print the report as a JSON object.")] = False,
) -> None:
    """Group the near-duplicates of an archive.

    Output of `jingyin relabel` is not scored again. Exit code 3: finished with rejected rows.
    """
    options: dict[str, Any] = dict(locals())  # each but two has the name of an argument of campaigns
    from jingyin.serve.archive import campaigns as archive  # the extra `batch`
    from jingyin.serve.terminal import language_of

    as_json, language = options.pop("json"), language_of(options.pop("lang"), os.environ)
    result = archive.campaigns(**options, language=language, progress=True)
    _report(result, archive.lines(result, output), as_json=as_json)


@app.command()
def mine(
    inputs: InputsArgument,
    out: Annotated[Path, Option(help="File for the picks (.jsonl); OUT-ordinary.jsonl gets the ordinary ones.")],
    keep: Annotated[int, Option(min=1, help="Most messages to pick.")] = 200,
    ordinary: Annotated[int, Option(min=0, help="Most messages to draw as ordinary.")] = 5_000,
    text_column: TextOption = "text",
    id_column: IdOption = None,
    sender: Annotated[str | None, Option(help="Column of senders: none gives over a tenth of the picks.")] = None,
    decided: Annotated[
        list[str] | None, Option(help="Messages decided earlier, whose near-copies are left out; repeatable.")
    ] = None,
    bundle: BundleOption = None,
    encoding: EncodingOption = None,
    delimiter: DelimiterOption = ",",
    label_studio: Annotated[Path | None, Option(help="File for labelling tasks, one per pick.")] = None,
    fresh: FreshOption = False,
    processes: ProcessesOption = None,
    json: Annotated[bool, Option("--json", help="Print the report as a JSON object.")] = False,
) -> None:
    """Pick the messages of an archive that are worth labelling.

    Repeat the command to resume it. Exit code 3: finished with rejected rows.
    """
    options: dict[str, Any] = dict(locals()) | {"decided": decided or []}  # each has the name of an argument of mine
    from jingyin.serve.archive import mine as archive  # the extra `batch`

    as_json = options.pop("json")
    result = archive.mine(**options, progress=True)
    _report(result, archive.lines(result, out), as_json=as_json)


@app.command()
def serve(
    config: Annotated[Path | None, Option(help="Settings (YAML); see configs/serve.yaml.")] = None,
    host: Annotated[str | None, Option(help="Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, Option(help="Default: 8080.")] = None,
    uds: Annotated[Path | None, Option(help="Unix socket instead of host and port.")] = None,
    bundle: BundleOption = None,
    bundle_id: Annotated[str | None, Option(help="Refuse bundles with another id.")] = None,
    review_rate: Annotated[
        float | None, Option(help="False-positive rate of review, such as 1e-3; default: the bundle's.")
    ] = None,
    block_rate: Annotated[float | None, Option(help="False-positive rate of block, such as 2e-4.")] = None,
    shadow: Annotated[Path | None, Option(help="Second bundle: counted, never used to answer.")] = None,
    dry_run: Annotated[bool | None, Option("--dry-run", help="Always answer pass, but count the real actions.")] = None,
    keys: Annotated[Path | None, Option(help="File of hashed API keys.")] = None,
    allow_open: Annotated[bool | None, Option("--allow-open", help="Allow a public address without keys.")] = None,
    workers: Annotated[int | None, Option(help="Processes; default: one per core, at most 4.")] = None,
    deadline_ms: Annotated[int | None, Option(help="Milliseconds from arrival to answer.")] = None,
    on_deadline: Annotated[str | None, Option(help="Least action after the deadline: pass, review or block.")] = None,
    explain: Annotated[bool | None, Option("--explain/--no-explain", help="Allow requests for evidence.")] = None,
    page: Annotated[bool | None, Option("--page/--no-page", help="Serve the demo page at /.")] = None,
    tls_certificate: Annotated[Path | None, Option()] = None,
    tls_key: Annotated[Path | None, Option()] = None,
) -> None:
    """Run the HTTP service.

    Flags override JINGYIN_SERVE_* in the environment, which override the YAML file.
    """
    flags = dict(locals())  # each has the name of its setting
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # else it ends the service until the supervisor handles it
    from jingyin.serve.http.process import run_server  # the extra `serve`
    from jingyin.serve.settings import load_settings

    read = partial(load_settings, **flags)
    run_server(read(), reread=read)


@known.command("add")
def known_add(
    text: Annotated[str | None, Argument(help="A message.")] = None,
    campaigns: Annotated[Path | None, Option(help="Add the labelled campaigns of this folder instead.")] = None,
    file: Annotated[
        Path | None, Option(help="Add these instead: JSON lines in the format of POST /admin/known.")
    ] = None,
    action: Annotated[str, Option(help="block, review or pass.")] = "block",
    note: Annotated[str, Option(help="Note for other analysts.")] = "",
    days: Annotated[float, Option(help="Days until it expires.")] = 30,
    url: UrlOption = "http://127.0.0.1:8080",
) -> None:
    """Add a known wording.

    Its near-copies get the action within a second, on every machine. --action, --note and --days apply to TEXT only.
    """
    from jingyin.serve.analyst import add_campaigns, add_file, ask

    if sum(each is not None for each in (text, campaigns, file)) != 1:
        raise ConfigError("wanted one of a message, --campaigns FOLDER and --file FILE")
    if text is None:
        for number, given in add_campaigns(url, campaigns) if campaigns else add_file(url, file) if file else ():
            typer.echo(f"{number}  {given}")
        return
    body = {"text": text, "action": action, "note": note, "seconds": days * 86_400}
    typer.echo(ask(url, "POST", "/admin/known", body)["id"])


@known.command("list")
def known_list(
    url: UrlOption = "http://127.0.0.1:8080",
    json: Annotated[bool, Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """List known wordings, newest first."""
    from jingyin.serve.analyst import ask

    for each in ask(url, "GET", "/admin/known")["known"]:
        plain = f"{each['id']}  {each['action']:<6}  {each['hits']:>7} hits  by {each['by'] or '-'}  {each['note']}"
        typer.echo(dumps(each, ensure_ascii=False) if json else plain)


@known.command("remove")
def known_remove(
    number: Annotated[str, Argument(help="Id shown by `list`.")],
    url: UrlOption = "http://127.0.0.1:8080",
) -> None:
    """Remove a known wording."""
    from jingyin.serve.analyst import ask

    ask(url, "DELETE", f"/admin/known/{number}")


@cases.command("report")
def cases_report(
    inputs: InputsArgument,
    kind: Annotated[str, Option(help="unwanted or wrongly_blocked, for rows without a kind.")] = "unwanted",
    text_column: TextOption = "text",
    encoding: EncodingOption = None,
    url: Annotated[str, Option(help="Address of the service; set its key in JINGYIN_KEY.")] = "http://127.0.0.1:8080",
) -> None:
    """Send subscribers' reports: rows with a text, and optionally sender, receiver, time and kind.

    Exit code 3: finished, but rows without a text, or that the service refused, were left out.
    """
    from jingyin.serve.cases.report import report_files  # the extra `batch`

    blocks = list(report_files(url, inputs, text_column, kind, encoding))
    sent, empty = sum(each.sent for each in blocks), sum(each.empty for each in blocks)
    refusals = [refusal for each in blocks for refusal in each.refusals]
    typer.echo(f"{sent} reports sent, {empty} rows without a text left out, {len(refusals)} refused")
    if refusals:
        typer.echo(f"the first refusal: {refusals[0]}", err=True)
    if empty or refusals:
        raise typer.Exit(3)


@cases.command("export")
def cases_export(
    since: Annotated[str, Option(help="Only decisions since this time: ISO 8601, or Unix seconds.")] = "0",
    url: UrlOption = "http://127.0.0.1:8080",
) -> None:
    """Print the decisions as JSON lines, which `jingyin finetune` reads."""
    from urllib.parse import quote

    from jingyin.serve.analyst import ask_text

    typer.echo(ask_text(url, "GET", f"/admin/cases/export?since={quote(since)}"), nl=False)


@policy.command("check")
def policy_check(
    file: Annotated[Path, Argument(help="The policy (YAML).")],
    message: Annotated[str, Argument(help="A message.")],
    sender: Annotated[str | None, Option()] = None,
    route: Annotated[str | None, Option()] = None,
    key: Annotated[str, Option(help="Name of the API key.")] = "",
    bundle: BundleOption = None,
) -> None:
    """Show which rule decides a message, and the action."""
    from jingyin.serve.memory.policy import MessageSource, read_policy
    from jingyin.serve.scorer import Scorer

    rules = list(read_policy(file).rules_for(MessageSource(key, sender, route), message))
    verdict = Scorer.load(bundle).score(message)
    typer.echo(f"{verdict.action}  {verdict.risk:.1%}  the bundle alone")
    for rule in rules:
        dry = "  (dry run)" if rule.dry_run else ""
        typer.echo(f"{rule.decide(verdict.risk, verdict.action) or verdict.action}  rule {rule.name}{dry}")


@policy.command("replay")
def policy_replay(
    file: Annotated[Path, Argument(help="The policy (YAML).")],
    traffic: Annotated[Path, Argument(help="JSON lines: text; optionally sender, receiver, route, key, time, action.")],
    config: Annotated[Path | None, Option(help="Settings of the service, for its memory.")] = None,
    wordings: Annotated[Path | None, Option("--known", help="JSON lines in the format of POST /admin/known.")] = None,
    bundle: BundleOption = None,
) -> None:
    """Apply a policy to recorded messages.

    Prints the messages whose action changes, and counts by rule.
    """
    import asyncio
    from collections import Counter

    from jingyin.serve.memory.replay import replay
    from jingyin.serve.scorer import Scorer
    from jingyin.serve.settings import load_settings
    from jingyin.serve.terminal import printable

    counts: Counter[str] = Counter()

    async def run() -> None:
        settings = load_settings(config, policy=file)
        async for message, was, answer in replay(settings, Scorer.load(bundle), traffic, wordings):
            name = f"rule {answer.more['rule']}" if "rule" in answer.more else "no rule"
            counts[f"{name}: {answer.action}"] += 1
            if was != answer.action:
                typer.echo(f"{was} -> {answer.action}  {answer.reason}  {printable(message.text)}")

    asyncio.run(run())
    for name, count in sorted(counts.items()):
        typer.echo(f"{count:>9,}  {name}")


@app.command()
def train(
    recipes: Annotated[list[Path], Argument(help="Recipes (YAML), run in this order.")],
    out: Annotated[Path, Option(help="Folder for the run folders.")] = Path("runs"),
    fresh: Annotated[bool, Option("--fresh", help="Replace existing run folders.")] = False,
) -> None:
    """Train by recipes, one per stage.

    Each stage has its own run folder. Repeat the command to resume it.
    """
    from jingyin.train.pipeline import train as run_stages

    typer.echo(f"run: {run_stages(recipes, out, fresh=fresh)}")


@app.command()
def finetune(
    out: Annotated[Path, Option(help="Run folder; the new bundle is OUT/bundle.")],
    data: Annotated[
        list[str] | None,
        Argument(help="Labelled CSV, JSON lines or Parquet: files, folders, globs, or a datasets folder."),
    ] = None,
    benign: Annotated[list[str] | None, Option(help="Unlabelled traffic without threats; repeatable.")] = None,
    text_column: Annotated[str, Option(help="Column of the messages.")] = "text",
    label_column: Annotated[str, Option(help="Column of the labels.")] = "label",
    label_map: Annotated[
        list[str] | None, Option(help="OLD=NEW: NEW is a label, flagged or not_flagged; repeatable.")
    ] = None,
    encoding: Annotated[str, Option(help="Encoding of CSV and JSON, such as gb18030.")] = "utf-8",
    benign_column: Annotated[str | None, Option(help="Text column of --benign; default: --text-column.")] = None,
    benign_encoding: Annotated[str | None, Option(help="Encoding of --benign; default: --encoding.")] = None,
    strict: Annotated[bool, Option("--strict", help="Fail on an unusable row.")] = False,
    bundle: Annotated[
        Path | None, Option(help="Bundle to start from and to compare with; default: the package's.")
    ] = None,
    fresh: Annotated[bool, Option("--fresh", help="Replace an earlier run in OUT.")] = False,
) -> None:
    """Fine-tune a bundle on your own messages.

    Repeat the command to resume it. Exit code 3: finished, but unusable rows were skipped.
    """
    from jingyin.train.finetune import finetune as run
    from jingyin.train.finetune_data import Columns, parse_meanings

    columns = Columns(text_column, label_column, parse_meanings(label_map or []), encoding)
    traffic = Columns(benign_column or text_column, encoding=benign_encoding or encoding)
    report = run(
        data or [], out, columns, benign=benign or [], benign_columns=traffic, bundle=bundle, strict=strict,
        fresh=fresh, tell=typer.echo,
    )  # fmt: skip
    for count in report.counts:
        typer.echo(f"{count.source}, {count.what}: {count.before} before, {count.after} after, of {count.rows}")
    if report.disobeyed:
        typer.echo(f"{report.disobeyed} labelled messages are still judged differently; check their labels in "
                   f"{out / 'disobeyed.json'}")  # fmt: skip
    for reason in report.failed:
        typer.echo(f"not yet: {reason}")
    typer.echo(f"report: {out / 'report.md'}; decision: {out / 'promotion.json'}")
    new, test = (shlex.quote(str(out / name)) for name in ("bundle", "corpus/test.parquet"))
    typer.echo(
        f"next: jingyin serve --shadow {new}, which counts the new bundle's actions but never uses them"
        if report.promote
        else "next: keep the current bundle; to see where the new one differs: "
        f"jingyin evaluate {new} {test} --out evaluation"
    )
    if report.rejected:
        raise SystemExit(3)


@app.command()
def export(
    bundle: Annotated[Path, Argument(help="Bundle folder.")],
    out: Annotated[Path, Argument(help="Folder to write.")],
    to: Annotated[str, Option("--format", help="Only transformers is supported.")] = "transformers",
) -> None:
    """Export a bundle's main network for transformers.

    The exported README explains the limitations.
    """
    from jingyin.train.pack.export import export_transformers

    if to != "transformers":
        raise ConfigError(f"format {to!r} is unknown; known is transformers")
    export_transformers(bundle, out)
    typer.echo(f"{out}: see its README.md")


@app.command()
def evaluate(
    bundle: Annotated[Path, Argument(help="Bundle folder to evaluate.")],
    data: Annotated[list[Path], Argument(help="JSON lines or Parquet with text, label, family, source.")],
    out: Annotated[Path, Option(help="Folder for the report.")],
    against: Annotated[Path | None, Option(help="Another bundle to evaluate on the same rows.")] = None,
    traffic: Annotated[
        list[Path] | None, Option(help="Ordinary messages of a source unseen in training; repeatable.")
    ] = None,
    train: Annotated[
        Path | None, Option(help="Training split, to recognise unseen cases; default: train.parquet next to DATA.")
    ] = None,
) -> None:
    """Evaluate a bundle on labelled messages.

    The report covers unseen cases, sources of traffic, company, attacks and baselines.
    """
    from jingyin.train.evaluate.evaluate import evaluate as judge
    from jingyin.train.evaluate.report import summary

    evaluation = judge(bundle, data, out, against=against, traffic=traffic or (), training=train)
    typer.echo(summary(evaluation))
    for note in evaluation.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"report: {out / 'report.html'}")


@app.command()
def promote(
    candidate: Annotated[Path, Argument(help="Bundle folder that would replace the incumbent.")],
    incumbent: Annotated[Path | None, Option(help="Bundle that serves now; default: the package's.")] = None,
    config: Annotated[Path | None, Option(help="Conditions and data (YAML); default: the package's.")] = None,
    out: Annotated[Path, Option(help="File for the decision (JSON).")] = Path("promotion.json"),
) -> None:
    """Decide whether a bundle may replace the incumbent.

    Exit code 0 if it passes every check, otherwise 1.
    """
    from jingyin.train.promote import promote as decide

    decision = decide(candidate, incumbent, config, out)
    for check in sorted(decision.checks, key=lambda check: check.passed):
        typer.echo(f"{'passed' if check.passed else 'FAILED'} {check.name}: {check.reason}")
    typer.echo(f"{'promote' if decision.promote else 'keep the incumbent'}; decision: {out}")
    raise typer.Exit(0 if decision.promote else 1)


@app.command()
def audit(
    data: Annotated[list[Path], Argument(help="JSON lines, Parquet, or folders of them.")],
    out: Annotated[Path, Option(help="Folder for tasks.json, label_studio.xml and audit.json, or rows.jsonl.")],
    answers: Annotated[
        Path | None, Option(help="Label Studio export (JSON): write DATA with its labels to rows.jsonl.")
    ] = None,
) -> None:
    """Find likely label errors, or apply the answers."""
    from collections import Counter

    from jingyin.train.audit import audit as find
    from jingyin.train.audit import take_answers

    if answers is None:
        counts = Counter(finding.kind for finding in find(data, out, tell=typer.echo))
        typer.echo(", ".join(f"{kind}: {count} rows" for kind, count in counts.items()) or "nothing found")
        typer.echo(f"tasks: {out / 'tasks.json'}")
        return
    found, changed = take_answers(data, answers, out)
    typer.echo(f"{len(found.labels)} answers, {changed} labels changed, {found.disputed} disputed, {found.open} open")
    typer.echo(f"rows: {out / 'rows.jsonl'}")


@app.command()
def drift(
    reference: Annotated[Path, Argument(exists=True, help="Older relabelled archive (Parquet).")],
    current: Annotated[Path, Argument(exists=True, help="Newer relabelled archive (Parquet).")],
    out: Annotated[Path | None, Option(help="File for the figures (JSON).")] = None,
) -> None:
    """Compare two relabelled archives to detect drift.

    Doesn't read the texts.
    """
    from jingyin.serve.archive import drift as archive  # the extra `batch`

    for line in archive.lines(archive.drift(reference, current, out)):
        typer.echo(line)


@corpus.command("build")
def build_corpus(
    recipe: Annotated[Path, Argument(help="Corpus recipe, such as configs/corpus.yaml.")],
    out: Annotated[Path, Argument(help="Folder to write.")],
) -> None:
    """Build a corpus from a recipe: Parquet files and a card."""
    from jingyin.train.corpus.build import build

    typer.echo(f"{out}: {build(recipe, out)}")


@corpus.command("convert")
def convert_corpus(
    kind: Annotated[str, Argument(help="Kind of corpus, see docs/data.md.")],
    source: Annotated[Path, Argument(help="Published file or folder, unpacked.")],
    out: Annotated[Path, Argument(help="File to write (.jsonl or .jsonl.gz), such as data/fbs.jsonl.gz.")],
    only: Annotated[str | None, Option(help="Keep only messages with this label in SOURCE, such as spam.")] = None,
) -> None:
    """Convert a public corpus to JSON lines for recipes."""
    from jingyin.train.corpus.public import convert

    typer.echo(f"{out}: {convert(kind, source, out, only)} messages")


@corpus.command("stats")
def corpus_stats(
    path: Annotated[Path | None, Argument(help="Built corpus; default: the authored rows.")] = None,
) -> None:
    """Count rows by label, family, writer, length and source."""
    from jingyin.train.corpus.stats import stats

    typer.echo(stats(path))


@corpus.command("check")
def check_corpus(
    paths: Annotated[list[Path] | None, Argument(help="Files or built corpora; default: the authored rows.")] = None,
) -> None:
    """Check rows: schema, labels, near-duplicates, leaks, real numbers.

    Exit code 1 if there are errors.
    """
    from jingyin.train.corpus.check import check
    from jingyin.train.corpus.rows import default_folders

    errors = check(paths or ())
    for error in errors:
        typer.echo(error, err=True)
    if errors:
        raise typer.Exit(1)
    typer.echo(f"no errors in {', '.join(map(str, paths or [default_folders()[0].parent]))}")


def _report(result: "RelabelResult | CampaignResult | MineResult", lines: Iterable[str], *, as_json: bool) -> None:
    """Print the report of an archive job, or its result as a line of JSON; exit with code 3 if rows were rejected."""
    if as_json:
        plain = {name: value._asdict() if hasattr(value, "_asdict") else value for name, value in vars(result).items()}
        lines = [dumps(plain, ensure_ascii=False)]
    for line in lines:
        typer.echo(line)
    if result.rejects:
        raise typer.Exit(3)


def _lines(encoding: str | None) -> Iterator[str]:
    """Yield the lines of standard input as they arrive, with U+FFFD for invalid bytes.

    Raises ConfigError for an unknown encoding, and if a line looks like another encoding than UTF-8 and none is named.
    """
    check_encoding(encoding or "utf-8")
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding=encoding or "utf-8", errors=KEEP, newline="\n")
    for number, line in enumerate(sys.stdin, 1):
        text, bad = replaced(line)
        if bad and encoding is None and (likely := guess([line.encode("utf-8", "surrogateescape")])):
            raise ConfigError(f"line {number} of standard input isn't UTF-8 and looks like {likely}: use --encoding "
                              f"{likely} (or utf-8, to score it anyway)")  # fmt: skip
        yield text.removeprefix("\ufeff").rstrip("\r\n")


def main() -> None:
    """Run the command line: the entry point of `jingyin`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a lone surrogate in a message must not end the work
    try:
        app()
    except ConfigError as error:
        _fail(error, 2)
    except JingyinError as error:
        _fail(error, 1)
    except OSError as error:  # a full disk; typer exits quietly on a broken pipe
        _fail(error, 1)


def _fail(error: Exception, code: int) -> None:
    print(f"jingyin: {error}", file=sys.stderr)  # noqa: T201
    raise SystemExit(code) from None
