"""README.md and the other pages: commands, options, paths, links, counts and sample output are those of the code."""

import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from tests.command import run_command

from jingyin import Scorer, cli
from jingyin.model.labels import LABELS
from jingyin.model.signs import SIGNS

ROOT = Path(__file__).parent.parent
PAGES = [
    path for pattern in ("*.md", "docs/*.md", "bench/README.md", "deploy/README.md", "train/corpus/LABELS.md")
    for path in sorted(ROOT.glob(pattern))
]  # fmt: skip
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
README = TEXTS["README.md"]
COMMANDS: Any = typer.main.get_command(cli.app)
FOLDERS = ("model", "serve", "train")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def code(text: str) -> Iterator[str]:
    """Yield the lines of indented code blocks, continued ones joined."""
    lines = "\n".join(line.strip() for line in text.splitlines() if line.startswith("    "))
    yield from lines.replace("\\\n", " ").splitlines()


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("page", TEXTS)
def test_verbs_and_options_exist(page):
    for line in code(TEXTS[page]):
        for call in re.findall(r"(?:^|&& |\()jingyin ((?:[^#|&>']|'[^']*')+)", line):
            command, words = COMMANDS, shlex.split(call)
            while words and hasattr(command, "commands") and not words[0].startswith("-"):
                assert words[0] in command.commands, line
                command = command.commands[words.pop(0)]
            assert {word for word in words if word.startswith("--")} <= options(command) | {"--help"}, line


def test_options_that_the_readme_names_exist():
    known = options(COMMANDS) | {name for each in COMMANDS.commands.values() for name in options(each)}
    assert set(re.findall(r"`(--[a-z-]+)`", README)) <= known


@pytest.mark.parametrize("page", TEXTS)
def test_modules_programs_and_extras_of_commands_exist(page):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for line in code(TEXTS[page]):
        assert all(find_spec(name) for name in re.findall(r"-m (jingyin[\w.]+\w)", line) if "NAME" not in name)
        assert all((ROOT / name).is_file() for name in re.findall(r"\bpython (\w+/\S+\.py)", line)), line
        for group in re.findall(r"(?:\.|jingyin)\[([\w,]+)\]", line):
            assert set(group.split(",")) <= set(extras), line


@pytest.mark.parametrize("page", [page for page in TEXTS if page != "CHANGELOG.md"])  # which has old names too
def test_paths_exist(page):
    named = re.findall(r"`((?:model|serve|train|src|tests|bench|configs|deploy|docs)/[\w./@-]*)`", TEXTS[page])
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []


def anchors(text: str) -> set[str]:
    """Return the ids that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        found = (ROOT / page).parent.joinpath(path) if path else ROOT / page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", TEXTS)
def test_python_examples_are_python(page):
    for example in re.findall(r"```python\n(.*?)```", TEXTS[page], flags=re.DOTALL):
        compile(example, page, "exec")


def tree() -> dict[str, str]:
    """Return the text of README's tree by folder; lines without a folder belong to the one above them."""
    texts: dict[str, str] = {}
    for line in section("Tree").splitlines():
        names, _, rest = line.strip().partition("  ")
        depth = len(line) - len(line.lstrip())
        if depth == 4:
            top, current = names.split("/")[0], [name.rstrip("/") for name in names.split()]
        elif depth == 6:
            current = [f"{top}/{name.rstrip('/')}" for name in names.split()] if names.endswith("/") else [top]
            rest = line
        elif not line.strip():
            continue
        else:
            rest = line
        for name in current:
            texts[name] = f"{texts.get(name, '')} {rest}"
    return texts


def test_the_tree_names_every_module_and_folder():
    texts = tree()
    for folder in texts:
        assert (ROOT / folder).is_dir(), folder
    for top in FOLDERS:
        for path in (ROOT / top).rglob("*.py"):
            folder = path.parent.relative_to(ROOT).as_posix()
            if path.stem != "__init__":
                assert path.stem in re.findall(r"\w+", texts[folder]), path


def test_the_first_command_prints_what_the_readme_shows(capfd):
    start = section("Start")
    (call,) = (line for line in code(start) if line.startswith("jingyin score"))
    assert run_command(*shlex.split(call)[1:]) == 0
    printed = capfd.readouterr().out.splitlines()
    shown = [line[4:] for line in start.split("get reasons:\n")[1].splitlines() if line.startswith("    ")]
    percent = re.compile(r" *\d+(\.\d+)?%")
    assert [percent.sub(" %", line) for line in shown] == [percent.sub(" %", line) for line in printed]
    numbers = [[float(found) for found in re.findall(r"([\d.]+)%", "\n".join(lines))] for lines in (shown, printed)]
    assert numbers[0] == pytest.approx(numbers[1], abs=1)  # processors differ in the last digit


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if "--block-rate " in text])
def test_the_bundle_supports_the_rates_of_examples(page):
    rates = re.findall(r"--review-rate (\S+) --block-rate (\d\S*\d)", TEXTS[page])
    assert rates
    for review, block in rates:
        Scorer.load(review_rate=float(review), block_rate=float(block))


def test_counts(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (tmp_path / "in.csv").write_text("text\n你好\n", encoding="utf-8")
    assert run_command("relabel", tmp_path / "in.csv", tmp_path / "out.parquet") == 0
    added = set(pq.read_table(tmp_path / "out.parquet").column_names) - {"text"}
    assert f"{NUMBERS[len(added)]} are added" in README
    assert f"the {len(SIGNS)} signs" in README
    assert f"{NUMBERS[len(LABELS)]} labels" in TEXTS["docs/retrain.md"]
    stages = {path.stem for path in (ROOT / "configs/default").glob("[0-9]*.yaml")}
    assert set(re.findall(r"^ *\| `(\d-\w+)", TEXTS["docs/retrain.md"], flags=re.MULTILINE)) == stages
    assert set(re.findall(r"^\| `(\d-\w+)", TEXTS["docs/architecture.md"], flags=re.MULTILINE)) == stages
    assert README.count("\n") <= 170


def test_exit_codes(tmp_path):
    pytest.importorskip("pyarrow")
    assert "0 success, 1 failure" in README
    (tmp_path / "in.csv").write_text("text,id\n你好,1\n在吗\n", encoding="utf-8")
    (tmp_path / "bundle").mkdir()
    assert run_command("--version") == 0
    assert run_command("score", "--bundle", tmp_path / "bundle", "你好") == 1
    assert run_command("score", "--bundle", tmp_path / "none", "你好") == 2
    assert run_command("relabel", tmp_path / "in.csv", tmp_path / "out.csv") == 3


def test_a_figure_that_has_moved_is_named():
    claims = runpy.run_path(str(ROOT / "bench/claims.py"))
    moved, figure = claims["moved"], {"count": 13, "rows": 36_133, "value": 0.12345}
    tables: dict[str, Any] = {}
    figures_page = TEXTS["docs/evaluation.md"]
    lines = [figures_page.splitlines()[0]]
    for claim in yaml.safe_load((ROOT / "bench/data/claims.yaml").read_text(encoding="utf-8")):
        for table, row, column in claim["figures"]:
            tables.setdefault(table, {"jingyin": {}})["jingyin"].setdefault(row, {})[column] = figure
        figures = [claims["Figure"](figure)] * len(claim["figures"])
        lines.append(f"| {claim['row'].format(*figures)} | {claim['cell'].format(*figures)} |")
    report = {"bundle": "0123456789abcdef", "tables": tables}
    page = "\n".join([*lines, "0123456789abcdef"])
    assert moved(page, report) == []
    assert "| 13 (1 in 2,779) / 13 |" in page
    assert moved(page.replace("13 (1 in 2,779) / 13", "12 (1 in 2,779) / 13", 1), report) == [
        "**real traffic of kept-out sources** flagged / blocked, of 36,133: "
        "the page has 12 (1 in 2,779) / 13, the report 13 (1 in 2,779) / 13"
    ]
    assert moved(page.replace("0123456789abcdef", ""), report) == ["the page does not name bundle 0123456789abcdef"]
    assert len(moved("", report)) == len(lines)
    # Each row is in the page as it is.
    rows = [line.strip("| ").split(" | ")[0] for line in figures_page.splitlines() if line.startswith("| ")]
    for claim in yaml.safe_load((ROOT / "bench/data/claims.yaml").read_text(encoding="utf-8")):
        assert any(re.fullmatch(re.sub(r"\\\{\d:N\\\}", r"[\\d,]+", re.escape(claim["row"])), row) for row in rows)
