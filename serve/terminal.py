"""How a verdict looks on a terminal, and as one line of JSON."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import typer

from jingyin.model.labels import Span, Verdict

_COLOURS = {"pass": typer.colors.GREEN, "review": typer.colors.YELLOW, "block": typer.colors.RED}


def render(text: str, verdict: Verdict, spans: Sequence[Span], *, as_json: bool, with_evidence: bool) -> str:
    """Return one JSON line, or two lines for people: the verdict, and the message with its evidence in red."""
    if as_json:
        content = verdict.as_dict()
        if with_evidence:
            content["evidence"] = [asdict(span) for span in spans]
        return _json({"text": text, **content})
    action = typer.style(f"{verdict.action:<6}", fg=_COLOURS[verdict.action], bold=True)
    return f"{action} {verdict.risk:5.1%}  {verdict.label:<17} {_highlight(_printable(text), spans)}"


def _json(content: object) -> str:
    """Return one line of JSON: Chinese as Chinese where standard output can hold it.

    Escaped is what is not printable: lone surrogates, line separators, what would steer a terminal.
    """
    line = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in json.dumps(content, ensure_ascii=False))
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(content)
    return line


def _highlight(text: str, spans: Sequence[Span]) -> str:
    pieces, at = [], 0
    for span in sorted(spans, key=lambda span: span.start):
        if span.start >= at:
            pieces += [
                text[at : span.start],
                typer.style(text[span.start : span.end], fg=typer.colors.RED, underline=True),
            ]
            at = span.end
    return "".join(pieces) + text[at:]


def _printable(text: str) -> str:
    """Blank control characters, one for one so that spans still fit: a message must not steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
