"""How a verdict looks on a terminal, and as one line of JSON."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import typer

from jingyin.model.errors import ConfigError
from jingyin.model.labels import Span, Verdict
from jingyin.model.signs import LANGUAGES, Language, name_of
from jingyin.serve.explain import Explanation

_COLOURS = {"pass": typer.colors.GREEN, "review": typer.colors.YELLOW, "block": typer.colors.RED}
_WORDS = 3  # shown for a reason, or for the risk: the words that contribute most
_REASONS = {"zh": ("原因：", "，", "、"), "en": ("reasons: ", ", ", ", ")}  # heading, between reasons, between words
_EVIDENCE = {"zh": "依据：", "en": "words: "}


def language_of(wanted: str | None, environment: Mapping[str, str]) -> Language:
    """Return the language of the output: the one `wanted`, else Chinese if the locale is Chinese, else English.

    POSIX ranks the variables that name the locale. Raises ConfigError for another language.
    """
    if wanted is None:
        names = ("LC_ALL", "LC_MESSAGES", "LANG")
        locale = next((found for name in names if (found := environment.get(name))), "")
        return "zh" if locale.lower().startswith("zh") else "en"
    for language in LANGUAGES:
        if language == wanted:
            return language
    raise ConfigError(f"language {wanted!r} is unknown; known are {', '.join(LANGUAGES)}")


def render(
    text: str, verdict: Verdict, explanation: Explanation | None, *, language: Language, as_json: bool = False
) -> str:
    """Return one JSON line, or lines for people: verdict and message, its evidence in red; below it, the reasons.

    Without an `explanation` neither evidence nor the words behind a reason are shown.
    """
    if as_json:
        content: dict[str, Any] = {"text": text, **verdict.as_dict()}
        if explanation is not None:
            content["evidence"] = [asdict(span) for span in explanation.risk]
            for reason in content["reasons"]:
                reason["spans"] = [asdict(span) for span in explanation.reasons.get(reason["sign"], ())]
        return _json(content)
    action = typer.style(f"{verdict.action:<6}", fg=_COLOURS[verdict.action], bold=True)
    shown, spans = printable(text), explanation.risk if explanation else ()
    lines = [f"{action} {verdict.risk:5.1%}  {verdict.label:<17} {_highlight(shown, spans)}"]
    if spans:  # in red above, which a pipe does not show
        lines.append(f"{'':14}{_EVIDENCE[language]}{_words(spans, language)}")
    heading, between, _ = _REASONS[language]
    named = []
    for reason in verdict.reasons:
        words = _words(explanation.reasons.get(reason.sign, ()) if explanation else (), language)
        named.append(f"{name_of(reason.sign, language)} {reason.confidence:.0%}" + (f" ({words})" if words else ""))
    return "\n".join([*lines, f"{'':14}{heading}{between.join(named)}"] if named else lines)


def _words(spans: Sequence[Span], language: Language) -> str:
    heaviest = sorted(spans, key=lambda span: -span.weight)[:_WORDS]
    return _REASONS[language][2].join(printable(span.text) for span in heaviest)


def _json(content: object) -> str:
    """Return one line of JSON, with Chinese unescaped if standard output can encode it.

    Unprintable characters are escaped: lone surrogates, line separators, terminal control characters.
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
            shown = typer.style(text[span.start : span.end], fg=typer.colors.RED, underline=True)
            pieces += [text[at : span.start], shown]
            at = span.end
    return "".join(pieces) + text[at:]


def printable(text: str, *, kept: str = "", other: str = " ") -> str:
    """Replace each unprintable character but those `kept` by one `other`, so that spans still fit.

    A message must not control the terminal.
    """
    return "".join(c if c.isprintable() or c in kept else other for c in text)
