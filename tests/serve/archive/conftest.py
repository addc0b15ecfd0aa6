from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'jingyin[batch]'")
pytest.importorskip("duckdb", reason="needs duckdb: pip install 'jingyin[batch]'")

import pyarrow as pa
import pyarrow.parquet as pq
from tests import json_lines
from tests.serve.archive import campaigns_helpers
from tests.serve.archive.campaigns_helpers import Run
from tests.serve.archive.relabel_helpers import Here, rows

from jingyin.model.bundle import read_bundle
from jingyin.serve.archive import job, readers, text_files
from jingyin.serve.archive import relabel as relabelling
from jingyin.serve.archive.campaigns import CampaignResult, campaigns
from jingyin.serve.archive.relabel import RelabelResult, relabel

READ = cache(read_bundle)


@pytest.fixture(autouse=True)
def _bundles_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the 35 MB of the default bundle once, and not in each of some 200 runs."""
    monkeypatch.setattr(job, "read_bundle", READ)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A Parquet file of 150 rows."""
    path = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(rows(150)), path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The output of a test that has one."""
    return tmp_path / "out.parquet"


@pytest.fixture
def senders(tmp_path: Path) -> Path:
    """A JSON file of 64 rows with senders, receivers and times."""
    return json_lines.write(tmp_path / "in.jsonl", campaigns_helpers.rows())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and parts of 20 rows."""
    for module in (readers, text_files):
        monkeypatch.setattr(module, "ROWS", 20)
    monkeypatch.setattr(relabelling, "FIRST_ROWS", 20)
    monkeypatch.setattr(relabelling, "MOST_ROWS", 20)


@pytest.fixture
def here() -> Here:
    """Relabel in this process: no start of others, the scorer is kept between tests."""

    def call(source: Path | list[Path], out: Path, **options: Any) -> RelabelResult:
        return relabel(source if isinstance(source, list) else [source], out, processes=1, **options)

    return call


@pytest.fixture
def run() -> Run:
    """Group all rows in this process: the scorer is kept between tests."""

    def call(source: Path | list[Path], out: Path, **options: Any) -> CampaignResult:
        options = {"every": True, "processes": 1, **options}
        return campaigns(source if isinstance(source, list) else [source], out, **options)

    return call


@pytest.fixture
def columns() -> dict[str, str]:
    return {"sender": "from", "receiver": "to", "time": "at"}
