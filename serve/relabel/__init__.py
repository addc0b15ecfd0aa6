"""Very large archives: `jingyin relabel`, in bounded memory, resumable and exact.

    run.py        relabel(): checks, the loop over shards, the end
    inputs.py     files, folders and globs; what their sizes and times were
    reading.py    blocks of rows from a position on;  parquet.py csv.py json.py  one reader a format;  lines.py
    workers.py    processes that score blocks;  columns.py  answers as columns, also for `datasets` and Spark
    writing.py    a shard, written aside and renamed
    journal.py    manifest, finished shards, lock: what makes a run resumable
    changes.py    what changed against an older label;  sorting.py  rows ordered by risk, in bounded memory
    tasks.py      Label Studio;  progress.py  the bar

The base package imports without any of it.
"""

from importlib.util import find_spec

from jingyin.model.errors import ConfigError

if find_spec("pyarrow") is None:
    raise ConfigError("relabelling needs pyarrow; run: pip install 'jingyin[batch]'")

from jingyin.serve.relabel.columns import scorer_columns
from jingyin.serve.relabel.run import Report, relabel

__all__ = ["Report", "relabel", "scorer_columns"]
