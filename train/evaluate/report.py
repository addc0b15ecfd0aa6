"""The report of an evaluation: a page for people, the README's tables as Markdown, the curve as a picture."""

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from jingyin.model.labels import BENIGN, FLAGGED
from jingyin.train.corpus.stats import markdown_table
from jingyin.train.evaluate.measures import SHOWN, Evaluation, Figures, Value, number
from jingyin.train.evaluate.statistics import Estimate, Rate

# Okabe and Ito's colours: distinct for the colour-blind, and by lightness in grey print.
_COLOURS = ("#0072B2", "#E69F00", "#999999", "#CC79A7")
_STYLE = {
    "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e5e5e5", "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip

_ERRORS = {
    "false_positives": "Benign messages that reach review",
    "misses": "Threats that pass",
    "confused": "Wrong label, right action",
}


def write_report(out: Path, evaluation: Evaluation, wrong: Mapping[str, Sequence[str]]) -> None:
    """Write report.html, summary.md and, if there are threats, curve.png to the folder `out`.

    `wrong` gives the texts of the error lists.
    """
    (out / "summary.md").write_text(summary(evaluation), encoding="utf-8")
    picture = ""
    if frontier := evaluation.tables.get("frontier"):
        draw_curve(out / "curve.png", frontier)
        picture = base64.b64encode((out / "curve.png").read_bytes()).decode("ascii")
    titles = yaml.safe_load(_text("tables.yaml"))["report"]
    tables = [(*titles[name], side_by_side(evaluation.tables[name])) for name in titles if name in evaluation.tables]
    errors = [
        (title, list(zip(evaluation.errors[kind], map(printable, wrong[kind]), strict=True)))
        for kind, title in _ERRORS.items()
    ]
    page = render(
        "report.html", e=evaluation, tables=tables, errors=errors, picture=picture, shown=SHOWN, cell=_cell,
        flagged=FLAGGED, benign=BENIGN,
    )  # fmt: skip
    (out / "report.html").write_text(page, encoding="utf-8")


def side_by_side(table: Mapping[str, Figures]) -> tuple[list[str], dict[str, list[Value | None]]]:
    """Return the columns of a table, the systems next to each other in each, and the cells of its rows."""
    names = list(dict.fromkeys(column for rows in table.values() for row in rows.values() for column in row))
    keys = [(name, system) for name in names for system in table]
    titles = [", ".join(filter(None, (name, system if len(table) > 1 else ""))) for name, system in keys]
    rows = dict.fromkeys(row for rows in table.values() for row in rows)
    return titles, {row: [table[system].get(row, {}).get(name) for name, system in keys] for row in rows}


def render(template: str, **values: object) -> str:
    """Fill a template of this folder; all inserted values are escaped."""
    environment = Environment(loader=FunctionLoader(_text), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(style=Markup(_text("report.css")), **values)


def _text(name: str) -> str:
    return files("jingyin.train.evaluate").joinpath(name).read_text(encoding="utf-8")


def printable(text: str) -> str:
    """Replace lone surrogates and control characters, which UTF-8 or a page can't hold, by U+FFFD."""
    return "".join(c if c.isprintable() or c in "\n\u3000\u200b" else "\ufffd" for c in text)


def _cell(value: Value | None) -> Markup | str:
    match value:
        case Rate(rows=0) | None:
            return "–"
        case Rate():
            form = "{} <small>[{}, {}] {:,}/{:,}</small>"
            return Markup(form).format(*map(_share, (value.value, value.low, value.high)), value.count, value.rows)
        case Estimate():
            return Markup("{} <small>[{}, {}]</small>").format(*map(_share, (value.value, value.low, value.high)))
        case _:
            return f"{value:,.0f}" if value >= 2 and value == int(value) else f"{value:.4g}"


def _share(share: float) -> str:
    return f"{share:.1%}" if share == 0 or share >= 0.01 else f"{share:.3%}"


def draw_curve(path: Path, frontier: Mapping[str, Figures]) -> None:
    """Draw the threats found against the ordinary messages flagged, thresholds as dots, as a PNG."""
    with rc_context(_STYLE):  # type: ignore[arg-type]  # matplotlib lists every key it knows as a literal
        figure = Figure(figsize=(6.4, 3.8), layout="constrained", dpi=150)
        axes = figure.subplots()
        for colour, (system, rows) in zip(_COLOURS, frontier.items(), strict=False):
            points = {name: [number(each) for each in row.values()] for name, row in rows.items()}
            marked = [points.pop(name) for name in ("review", "block") if name in points]
            if points:
                axes.plot(*zip(*points.values(), strict=True), color=colour, label=system)
            for at in marked:
                axes.plot(max(at[0], 1e-5), at[1], "o", color=colour)
        axes.set(xscale="log", ylim=(0, 1.02), xlabel="share of ordinary messages flagged", ylabel="threats found")
        axes.legend(loc="lower right")
        figure.savefig(path, metadata={"Software": None})


def summary(evaluation: Evaluation) -> str:
    """Return the tables of the README, as Markdown: systems on all rows; the bundle next to the other one."""
    lines, tables = yaml.safe_load(_text("tables.yaml")), evaluation.tables
    systems, bundles = tables["systems"], [f"jingyin `{evaluation.bundle}`"]
    bundles += [f"before `{evaluation.against}`"] if evaluation.against else []
    first = [
        [t, *(_plain(rows.get(row, {}).get("")) for rows in systems.values())] for t, row in lines["systems"].items()
    ]
    second = []
    for title, (table, row, *columns) in lines["bundles"].items():
        figures = [rows.get(row, {}) for rows in tables.get(table, {}).values()][: len(bundles)]
        if any(figures):
            second.append([title, *(" / ".join(_plain(cells.get(column)) for column in columns) for cells in figures)])
    return f"{markdown_table(['', *systems], first)}\n\n{markdown_table(['', *bundles], second)}\n"


def _plain(value: Value | None) -> str:
    match value:
        case Rate(rows=0) | None:
            return "–"
        case Rate(count=count, rows=rows) if 0 < count < 0.005 * rows:
            return f"{count:,} of {rows:,} (1 in {rows / count:,.0f})"
        case Rate(count=count, rows=rows) if count < 0.05 * rows:
            return f"{count:,} of {rows:,}"
        case _:
            return f"{number(value):.1%}"
