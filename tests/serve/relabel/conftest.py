from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'jingyin[batch]'")

import pyarrow as pa
import pyarrow.parquet as pq
from tests.serve.relabel.relabel_helpers import Here, rows

from jingyin.serve.archive import readers as lines
from jingyin.serve.archive import readers as read_parquet
from jingyin.serve.archive import relabel as job
from jingyin.serve.archive.relabel import relabel


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A Parquet file of 150 rows."""
    path = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(rows(150)), path)
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and shards of 20 rows."""
    for module in (lines, read_parquet):
        monkeypatch.setattr(module, "ROWS", 20)
    monkeypatch.setattr(job, "FIRST_ROWS", 20)
    monkeypatch.setattr(job, "MOST_ROWS", 20)


@pytest.fixture
def here() -> Here:
    """Relabel in this process: no start of others, the scorer is kept between tests."""

    def call(source: Path | list[Path], out: Path, **options: Any) -> job.Report:
        return relabel(source if isinstance(source, list) else [source], out, processes=1, **options)

    return call
