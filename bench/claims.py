"""Compares the tables of docs/evaluation.md with a report: python bench/claims.py REPORT

    jingyin evaluate model/default runs/corpus-default/test.parquet --against BUNDLE --out report
    python bench/claims.py report

data/claims.yaml lists the rows. Exits 1 if a cell differs from the report, a row is missing, or the report is about
another bundle than the page. The development set's row is not compared: its messages are not public.
"""

import json
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
LIST = Path(__file__).parent / "data" / "claims.yaml"
SYSTEMS = ("jingyin", "before", "n-grams, linear", "keyword list")


class Figure:
    """A figure of a report, formatted as the page gives it; data/claims.yaml explains the formats."""

    def __init__(self, figure: Any) -> None:
        counted: dict[str, Any] = figure if isinstance(figure, dict) else {"value": figure}
        self.value, self.count, self.rows = counted["value"], counted.get("count", 0), counted.get("rows", 0)

    def __format__(self, form: str) -> str:
        if form in ("n", "N"):
            return f"{self.count if form == 'n' else self.rows:,}"
        if form == "odds":
            return f"{self.rows / self.count:,.0f}"
        if form.startswith("."):
            return f"{self.value:{form}f}".removeprefix("0")
        decimals, sign = (int(form), "") if form.isdigit() else (2 - len(form), "%")
        return f"{100 * self.value:.{decimals}f}{sign}"


def moved(page: str, report: dict[str, Any]) -> list[str]:
    """Return a line for each claim in `page` that differs from a `report` (the content of evaluation.json)."""
    table = dict(line.strip("| ").split(" | ", 1) for line in page.splitlines() if line.startswith("| "))
    faults = [f"the page does not name bundle {report['bundle']}"] * (report["bundle"] not in page)
    for claim in yaml.safe_load(LIST.read_text(encoding="utf-8")):
        row, cells = "", []
        for system in SYSTEMS:
            paths = [(kind, system, *rest) for kind, *rest in claim["figures"]]
            try:
                figures = [Figure(reduce(lambda node, key: node[key], path, report["tables"])) for path in paths]
            except KeyError:
                continue  # a baseline without this figure
            cells.append(claim["cell"].format(*figures))
            row = row or claim["row"].format(*figures)  # with the first system's counts
        stated = [cell.strip() for cell in table.get(row, "").split("|") if cell.strip()]
        if not stated or stated != cells[: len(stated)]:  # the second table has no baselines
            faults.append(f"{row}: the page has {' | '.join(stated) or 'no such row'}, the report {' | '.join(cells)}")
    return faults


def main() -> None:
    report = json.loads((Path(sys.argv[1]) / "evaluation.json").read_text(encoding="utf-8"))
    faults = moved((ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8"), report)
    print("\n".join(faults) or "the page's figures are the report's")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
