"""The same message to ten thousand people is one case: `jingyin campaigns` groups near-duplicates of an archive.

job.py        campaigns(): checks, the passes, the end
gather.py     first pass: the rows that are chosen, scored and cleaned, in shards;  choose.py  what a worker does
times.py      times of messages, however a column holds them
minhash.py    signatures of clean texts;  group.py  groups of what is alike;  spark.py  the same groups on a cluster
members.py    rows, distinct texts and campaigns as arrays
template.py   what the messages of a campaign share, and its slots
figures.py    counts by campaign;  table.py  campaigns.parquet and members.parquet
report.py     report.html;  labels.py  label once: tasks for Label Studio, and their answers for all rows
summary.py    the report for people
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from jingyin.model.errors import ConfigError

if TYPE_CHECKING:
    from jingyin.serve.campaigns.job import Report, campaigns

__all__ = ["Report", "campaigns"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  what the home holds
    """Import job.py when it is asked for: scoring processes and Spark's need none of it, nor what it needs."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if missing := [each for each in ("jinja2", "pyarrow") if find_spec(each) is None]:
        raise ConfigError(f"campaigns need {', '.join(missing)}; run: pip install 'jingyin[batch]'")
    return getattr(import_module(f"{__name__}.job"), name)
