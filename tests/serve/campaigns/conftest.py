from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'jingyin[batch]'")
pytest.importorskip("jinja2", reason="needs jinja2: pip install 'jingyin[batch]'")

from tests.serve.campaigns.campaigns_helpers import Run, rows, write

from jingyin.serve.archive.campaigns import Report, campaigns


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write(tmp_path / "in.jsonl", rows())


@pytest.fixture
def run() -> Run:
    """Group all rows in this process: the scorer is kept between tests."""

    def call(source: Path | list[Path], out: Path, **options: Any) -> Report:
        options = {"every": True, "processes": 1, **options}
        return campaigns(source if isinstance(source, list) else [source], out, **options)

    return call


COLUMNS = {"sender": "from", "receiver": "to", "time": "at"}


@pytest.fixture
def columns() -> dict[str, str]:
    return dict(COLUMNS)
