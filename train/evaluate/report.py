"""The report of an evaluation: a page for people, the README's tables as Markdown, the curve as a picture."""

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from jingyin.train.evaluate.measures import SHOWN, Evaluation, Rows, Value, number
from jingyin.train.evaluate.samples import LIKE, UNSEEN, WRITERS
from jingyin.train.evaluate.statistics import Estimate, Rate

# Okabe and Ito's colours: told apart by the colour-blind, and by their lightness in grey print.
_COLOURS = ("#0072B2", "#E69F00", "#999999", "#CC79A7")
_STYLE = {
    "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e5e5e5", "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip

_TITLES = {
    "systems": ("All rows", "Each system at its own threshold: a bundle at review, the keyword list at one hit, the "
                "n-grams where they flag as many benign messages as the bundle."),
    "situations": ("Unseen cases and writers", "Rows of cases or of writers that no training row has are what new "
                   "threats are like; the others are like training, or real traffic. Intervals draw whole cases."),
    "traffic": ("False alarms by source", "Messages that people sent. Neither training nor calibration has seen the "
                "sources marked *."),
    "frontier": ("Threats found where fewer are flagged", "Threats of unseen cases, by the share of ordinary messages "
                 "of sources kept out (of all, where none is) that is flagged. The last rows are the thresholds."),
    "company": ("In company", "Other messages of the test split before or behind: lawful notices, advertisements, "
                "chat. Kinds marked * stand on no training message."),
    "long messages": ("Long messages", "The message in the middle of 900 other characters."),
    "lists": ("Lists", "Threats and innocents that anybody judges at once, innocents from everyday frames that training "
              "does not have, and lines of nonsense."),
    "heads and tails": ("Heads and tails", "They say nothing, and are put on all messages; those marked * are on no "
                        "training message."),
    "disguises": ("Disguises", "Families marked * are held out from training. Innocents are drawn evenly from their "
                  "families, so hard ones weigh more than in traffic."),
    "senders": ("A greedy sender", "sees only whether a message passes, and makes it at most 1.5 times as long. A "
                "message in two halves passes where neither is flagged."),
    "innocents": ("Innocents by family", "Benign messages that reach review and block, the worst family first."),
    "slices": ("By length and script", ""),
    "signs": ("Signs", "What a verdict names as its reasons, on the messages whose signs people read. Missed are "
              "threats that show the sign and pass."),
    "cost": ("Cost", "One message at a time, on one thread, without cache."),
}  # fmt: skip
_ERRORS = {
    "false_positives": "Benign messages that reach review",
    "misses": "Threats that pass",
    "confused": "Wrong label, right action",
}


def write_report(out: Path, evaluation: Evaluation, wrong: Mapping[str, Sequence[str]]) -> None:
    """Write report.html, summary.md and curve.png to the folder `out`; `wrong` gives the texts of the error lists."""
    (out / "summary.md").write_text(summary(evaluation), encoding="utf-8")
    draw_curve(out / "curve.png", evaluation.tables["frontier"])
    picture = base64.b64encode((out / "curve.png").read_bytes()).decode("ascii")
    tables = [(title, note, beside(evaluation.tables[name]))
              for name, (title, note) in _TITLES.items() if name in evaluation.tables]  # fmt: skip
    errors = [
        (title, list(zip(evaluation.errors[kind], map(printable, wrong[kind]), strict=True)))
        for kind, title in _ERRORS.items()
    ]
    page = render("report.html", e=evaluation, tables=tables, errors=errors, picture=picture, shown=SHOWN, cell=_cell)
    (out / "report.html").write_text(page, encoding="utf-8")


def beside(table: Mapping[str, Rows]) -> tuple[list[str], dict[str, list[Value | None]]]:
    """Return the columns of a table, the systems next to each other in each, and the cells of its rows."""
    names = list(dict.fromkeys(column for rows in table.values() for row in rows.values() for column in row))
    keys = [(name, system) for name in names for system in table]
    titles = [", ".join(filter(None, (name, system if len(table) > 1 else ""))) for name, system in keys]
    rows = dict.fromkeys(row for rows in table.values() for row in rows)
    return titles, {row: [table[system].get(row, {}).get(name) for name, system in keys] for row in rows}


def render(template: str, **values: object) -> str:
    """Fill a template of this folder; whatever is filled in is escaped."""
    folder = files("jingyin.train.evaluate")

    def load(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    environment = Environment(loader=FunctionLoader(load), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(style=Markup(load("report.css")), **values)


def printable(text: str) -> str:
    """Replace what UTF-8 or a page can't hold, lone surrogates and control characters, by U+FFFD."""
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


def draw_curve(path: Path, frontier: Mapping[str, Rows]) -> None:
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


# The README's tables: figure, table, row and columns.

_ALL = (
    ("threats at review", "threats at review"),
    ("threats blocked", "threats blocked"),
    ("benign messages flagged", "benign messages flagged"),
    ("minimal pairs of a threat and an innocent, both sides right", "minimal pairs, both sides right"),
    ("minimal pairs, both labels right", "minimal pairs, both labels right"),
    ("threats found where 0.1% of the benign are flagged", "threats found, 0.1% of the benign flagged"),
    ("threats found where 1% of the benign are flagged", "threats found, 1.0% of the benign flagged"),
)
_THREATS, _PASS = ("threats at review", "threats blocked"), ("flagged alone, now pass",)
_ALONE = (
    ("unseen cases: threats at review / blocked", "situations", UNSEEN, _THREATS),
    ("the same: innocents flagged / blocked", "situations", UNSEEN, ("innocents flagged", "innocents blocked")),
    ("the same: recall of the five labels, mean", "situations", UNSEEN, ("macro-recall",)),
    ("the same: other_threat right", "situations", UNSEEN, ("other_threat right",)),
    ("unseen writers: threats at review / blocked", "situations", WRITERS, _THREATS),
    ("the same: innocents flagged", "situations", WRITERS, ("innocents flagged",)),
    ("like training: threats at review", "situations", LIKE, _THREATS[:1]),
    ("real traffic, sources kept out: flagged / blocked", "traffic", "sources kept out, pooled", ("flagged", "blocked")),
    ("real traffic, known sources: flagged / blocked", "traffic", "known sources, pooled", ("flagged", "blocked")),
    ("lawful reminders: flagged / blocked", "innocents", "lawful_collection", ("flagged", "blocked")),
    ("flagged threats that pass with 1 lawful sentence behind", "company", "behind 1 sentence of lawful", _PASS),
    ("with 2", "company", "behind 2 sentences of lawful", _PASS),
    ("with 4", "company", "behind 4 sentences of lawful", _PASS),
    ("with 100 characters of advertisements", "company", "behind 100 characters of ads", _PASS),
    ("with 300", "company", "behind 300 characters of ads", _PASS),
    ("with 100 characters of chat", "company", "behind 100 characters of chat", _PASS),
    ("with 300", "company", "behind 300 characters of chat", _PASS),
    ("innocents flagged with two lawful sentences", "company", "behind 2 sentences of lawful", ("innocents flagged",)),
    ("flagged threats that pass in long messages, mean", "long messages", "mean of 2", _PASS),
    ("plain threats flagged", "lists", "plain threats", ("flagged",)),
    ("everyday innocents flagged / blocked", "lists", "everyday innocents", ("flagged", "blocked")),
    ("plain innocents flagged", "lists", "plain innocents", ("flagged",)),
    ("lines of nonsense flagged", "lists", "nonsense", ("flagged",)),
    ("disguised threats found, families held out: parts", "disguises", "component *", ("threats found",)),
    ("emoji", "disguises", "emoji *", ("threats found",)),
    ("slang", "disguises", "slang *", ("threats found",)),
    ("reversal", "disguises", "reversal *", ("threats found",)),
    ("flagged threats that pass with one of 40 heads and tails, mean", "heads and tails", "mean of 40", _PASS),
    ("within ten tries of a greedy sender", "senders", "greedy sender, 10 tries", _PASS),
    ("in two halves", "senders", "in two halves", _PASS),
)  # fmt: skip


def summary(evaluation: Evaluation) -> str:
    """Return the tables of the README, as Markdown: systems on all rows; the bundle, and the other one beside it."""
    systems, bundles = evaluation.tables["systems"], [f"jingyin `{evaluation.bundle}`"]
    bundles += [f"before `{evaluation.against}`"] if evaluation.against else []
    first = [[title, *(_plain(rows.get(row, {}).get("")) for rows in systems.values())] for title, row in _ALL]
    second = []
    for title, table, row, columns in _ALONE:
        found = [rows.get(row, {}) for rows in evaluation.tables.get(table, {}).values()]
        if any(found):
            second.append([title, *(" / ".join(_plain(each.get(column)) for column in columns) for each in found)])
    return f"{_markdown(['', *systems], first)}\n\n{_markdown(['', *bundles], second)}\n"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _plain(value: Value | None) -> str:
    match value:
        case Rate(rows=0) | None:
            return "–"
        case Rate(count=count, rows=rows) if 0 < count < 0.005 * rows:
            return f"{count:,} of {rows:,} (1 in {rows / count:,.0f})"
        case Rate(count=count, rows=rows) if count < 0.05 * rows:
            return f"{count:,} of {rows:,}"
        case Rate() | Estimate():
            return f"{value.value:.1%}"
        case _:
            return f"{value:.1%}"
