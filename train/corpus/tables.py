"""Reads the word lists in tables/: one or more entries a line, "#" opens a comment line."""

from functools import cache
from importlib.resources import files


@cache
def table(name: str) -> tuple[tuple[str, ...], ...]:
    """Return the lines of tables/<name>.txt, each split at spaces."""
    text = files("jingyin.train.corpus").joinpath(f"tables/{name}.txt").read_text(encoding="utf-8")
    return tuple(tuple(line.split()) for line in text.splitlines() if line.strip() and not line.startswith("#"))


@cache
def words(name: str) -> tuple[str, ...]:
    """Return all entries of a table, in order."""
    return tuple(word for line in table(name) for word in line)


@cache
def substitutes(name: str) -> dict[str, tuple[str, ...]]:
    """Return a table of "what instead..." lines as a mapping; a key that comes twice keeps both lines."""
    mapping: dict[str, tuple[str, ...]] = {}
    for key, *instead in table(name):
        mapping[key] = mapping.get(key, ()) + tuple(instead)
    return mapping
