"""Campaigns on a local Spark; needs Java 17 and pyspark."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("pyspark", reason="needs pyspark: pip install 'jingyin[spark]'")
if not shutil.which("java"):
    pytest.skip("needs Java 17", allow_module_level=True)

import pyarrow as pa
import pyarrow.parquet as pq
from tests.serve.campaigns.campaigns_helpers import Run, rows

from jingyin.model.errors import ConfigError
from jingyin.serve.campaigns.spark import group_dataframe

pytestmark = [
    pytest.mark.external,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
]

HAN = [chr(c) for c in range(0x4E00, 0x6000)]


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[2]").config("spark.sql.shuffle.partitions", "2")
    found = builder.config("spark.ui.enabled", "false").getOrCreate()
    yield found
    found.stop()


def messages() -> list[str]:
    """Filled templates, edited copies, a chain of likenesses, equal and empty messages, some like no other."""
    rng = Random(5)
    bases = ["".join(rng.choices(HAN, k=30)) for _ in range(8)]
    copies = ["".join(rng.choice(HAN) if rng.random() < 0.1 else c for c in base) for base in bases for _ in range(20)]
    long = "".join(rng.choices(HAN, k=300))
    chain = [long[start : start + 60] for start in range(0, 240, 6)]
    alone = ["".join(rng.choices(HAN, k=20)) for _ in range(30)]
    return [*(row["text"] for row in rows()), *copies, *chain, *chain[::3], *alone, "", " ", "\u200b"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files; one row has no text."""
    folder = tmp_path_factory.mktemp("archive")
    texts = [*messages(), None]
    for part in range(3):
        ids = list(range(part, len(texts), 3))
        table = pa.table({"id": ids, "text": pa.array([texts[i] for i in ids], pa.string())})
        pq.write_table(table, folder / f"{part}.parquet")
    return folder


def local(archive: Path, out: Path, run: Run, **options: Any) -> dict[int, str]:
    """Return the campaign of each row that is in one, as `jingyin campaigns` finds them."""
    run(archive, out, **options)
    ids = {str(file): pq.read_table(file)["id"].to_pylist() for file in archive.iterdir()}
    members = pq.read_table(out / "members.parquet").to_pylist()
    return {ids[row["file"]][row["row"] - 1]: row["campaign"] for row in members}


def named(found: Any) -> dict[int, str]:
    return {row["id"]: row["jingyin_campaign"] for row in found if row["jingyin_campaign"] is not None}


def test_the_groups_and_their_ids_are_those_of_one_machine(
    session: Any, archive: Path, tmp_path: Path, run: Run
) -> None:
    df = session.read.parquet(str(archive))
    wanted = local(archive, tmp_path / "out", run)
    found = group_dataframe(df).collect()
    assert len(found) == len(messages()) + 1
    assert named(found) == wanted
    assert len(set(wanted.values())) > 12
    again = local(archive, tmp_path / "large", run, min_rows=20)
    assert named(group_dataframe(df, min_rows=20).collect()) == again
    assert again.items() < wanted.items()


def test_an_older_column_is_replaced_and_others_stay(session: Any) -> None:
    data = [(1, "再不还钱就上门", "old"), (2, "再不还钱就上门", "old"), (3, None, "old")]
    df = session.createDataFrame(data, "key int, `my.sms` string, jingyin_campaign string")
    found = group_dataframe(df, "my.sms").orderBy("key").collect()
    assert [list(row.asDict()) for row in found] == [["key", "my.sms", "jingyin_campaign"]] * 3
    first, second, third = (row["jingyin_campaign"] for row in found)
    assert first == second != "old"
    assert third is None


def test_no_rows(session: Any) -> None:
    assert group_dataframe(session.createDataFrame([], "text string")).collect() == []


def test_wrong_calls(session: Any) -> None:
    df = session.createDataFrame([(1, "再不还钱就上门")], "id int, text string")
    with pytest.raises(ConfigError, match="the data frame has no column 'sms'; it has: id, text"):
        group_dataframe(df, "sms")
    with pytest.raises(ConfigError, match="a campaign of 0 rows can't be"):
        group_dataframe(df, min_rows=0)
