"""How a verdict looks on a terminal, and as one line of JSON."""

import json
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
        # ASCII escapes keep lone surrogates and line separators whole on any terminal or pipe.
        return json.dumps({"text": text, **content}, ensure_ascii=True)
    action = typer.style(f"{verdict.action:<6}", fg=_COLOURS[verdict.action], bold=True)
    return f"{action} {verdict.risk:5.1%}  {verdict.label:<17} {_highlight(_printable(text), spans)}"


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
