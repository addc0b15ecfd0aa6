"""Very large archives: `jingyin relabel`, in bounded memory, resumable and exact.

    job.py        relabel(): checks, the loop over shards, the end
    inputs.py     files, folders and globs; what their sizes and times were
    reading.py    blocks of rows from a position on;  read_*.py  one reader a format;  lines.py
    workers.py    processes that score blocks;  decisions.py  what they do
    columns.py    decisions as columns, also for `datasets` and Spark
    writing.py    a shard, written aside and renamed
    journal.py    manifest, finished shards, lock: what makes a run resumable
    changes.py    what changed against an older label;  ranked.py  rows ordered by risk, in bounded memory
    shard.py      one shard: its rows, and what they add to counts and side files;  rejects.py  rows left out
    tasks.py      rows for Label Studio;  progress.py  the bar;  summary.py  the report for people

The base package imports without any of it.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from jingyin.model.errors import ConfigError

if find_spec("pyarrow") is None:
    raise ConfigError("relabelling needs pyarrow; run: pip install 'jingyin[batch]'")

if TYPE_CHECKING:
    from jingyin.serve.relabel.columns import scorer_columns
    from jingyin.serve.relabel.job import Report, relabel

__all__ = ["Report", "relabel", "scorer_columns"]

_HOMES = {"Report": "job", "relabel": "job", "scorer_columns": "columns"}


def __getattr__(name: str) -> Any:  # noqa: ANN401  what the home holds
    """Import the home of a name when it is asked for: a scoring process needs neither readers nor Arrow."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
