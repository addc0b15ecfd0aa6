"""Spark, local and on a real standalone master with two workers; needs Java 17 and pyspark."""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyspark", reason="needs pyspark: pip install 'jingyin[spark]'")
if not shutil.which("java"):
    pytest.skip("needs Java 17", allow_module_level=True)

import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
from tests.serve.free_ports import free_ports

from jingyin.model.bundle import default_path
from jingyin.model.errors import ConfigError
from jingyin.serve.archive.relabel import relabel

pytestmark = [
    pytest.mark.external,
    pytest.mark.exhaustive,
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
]

ROOT = Path(__file__).parents[2]
THREAT = "不给两百这电话就一直响"
MESSAGES = (
    "明天下午三点老地方见，记得带伞",
    THREAT,
    "您的验证码是482913，请勿告诉他人",
    "",
    "再不还钱就把事情发给你通讯录所有人",
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files of 50 rows; an older verdict column is there to be replaced."""
    folder = tmp_path_factory.mktemp("archive") / "in"
    folder.mkdir()
    for part in range(4):
        rows = [
            {"id": n, "text": MESSAGES[n % 5] + "啊" * (n % 3), "jingyin_label": "old"}
            for n in range(part * 50, part * 50 + 50)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")
    return folder


@pytest.fixture(scope="module")
def local(archive: Path) -> list[dict[str, Any]]:
    """What the local engine says."""
    return relabelled(archive, default_path(), archive.parent / "local.parquet")


def relabelled(archive: Path, bundle: Path, out: Path) -> list[dict[str, Any]]:
    """Return what `relabel` writes, without the column that counts bytes of files."""
    relabel([archive], out, bundle=bundle, processes=1)
    return [{name: value for name, value in row.items() if name != "jingyin_replaced"} for row in read(out)]


def read(folder: Path) -> list[dict[str, Any]]:
    return sorted(pq.read_table(folder).to_pylist(), key=lambda row: row["id"])


def spark_command(*arguments: object, wheel: Path | None = None) -> list[str]:
    """Return the call of spark.py, through spark-submit with a wheel for the workers if there is one."""
    if wheel is None:
        return [sys.executable, "-m", "jingyin.serve.spark", *map(str, arguments)]
    submit = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    master = arguments[arguments.index("--master") + 1]
    script = ROOT / "src" / "jingyin" / "serve" / "spark.py"
    return [str(submit), "--master", str(master), "--py-files", str(wheel), str(script), *map(str, arguments)]


def run(command: list[str], **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
    environment |= {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_HOSTNAME": "localhost", **changes}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


def test_local_two(archive: Path, local: list[dict[str, Any]]) -> None:
    out = archive.parent / "spark-local"
    done = run(spark_command("--master", "local[2]", archive, out))
    assert done.returncode == 0, done.stderr[-2000:]
    assert read(out) == local


@contextmanager
def standalone() -> Iterator[str]:
    """Start a master and two workers of one core; yield the master's URL when both are there."""
    home = Path(pyspark.__file__).parent
    (port,) = free_ports(1)
    url = f"spark://127.0.0.1:{port}"
    classes = [["master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0"]]
    classes += [
        ["worker.Worker", "--host", "127.0.0.1", "--cores", "1", "--memory", "1g", "--webui-port", "0", url]
    ] * 2
    started = []
    environment = {
        **os.environ,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_NO_DAEMONIZE": "1",
    }
    try:
        for name, *arguments in classes:
            command = [str(home / "bin" / "spark-class"), f"org.apache.spark.deploy.{name}", *arguments]
            process = subprocess.Popen(
                command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
            )
            started.append(process)
            wait_for(
                process,
                "I have been elected leader" if name == "master.Master" else "Successfully registered with master",
            )
        yield url
    finally:
        for process in reversed(started):
            process.terminate()
            process.communicate()


def wait_for(process: "subprocess.Popen[str]", words: str) -> None:
    begun = time.monotonic()
    assert process.stderr
    for line in process.stderr:
        if words in line:
            return
        assert time.monotonic() - begun < 120, line
    raise AssertionError(f"ended before {words!r}")


def test_a_standalone_master_with_two_workers_and_the_wheel(archive: Path, tmp_path: Path) -> None:
    """The wheel goes to the workers as --py-files, with the bundle in it."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    out = tmp_path / "out"
    with standalone() as url:
        done = run(spark_command("--master", url, archive, out, wheel=wheel))
    assert done.returncode == 0, done.stderr[-2000:]
    with zipfile.ZipFile(wheel) as archived:
        archived.extractall(tmp_path / "wheel")
    bundle = tmp_path / "wheel" / "jingyin" / "model" / "default"
    assert read(out) == relabelled(archive, bundle, tmp_path / "local.parquet")


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    found = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    yield found
    found.stop()


def test_null_texts_have_null_verdicts(session: Any) -> None:
    from jingyin.serve.spark import score_dataframe

    df = session.createDataFrame([(1, THREAT), (2, None)], "id int, sms string")
    first, second = score_dataframe(df, "sms").collect()
    assert first["jingyin_label"] == "pay_to_stop"
    assert second.asDict() == dict.fromkeys(first.asDict()) | {"id": 2}


def test_reasons_are_those_of_the_local_engine(session: Any, signed_bundle: Path) -> None:
    from jingyin.serve.spark import score_dataframe

    texts = ["曝光你，赎金", None, "回家吃饭"]
    df = session.createDataFrame(list(enumerate(texts)), "id int, text string")
    scored = score_dataframe(df, bundle=str(signed_bundle))
    assert scored.columns[-1] == "jingyin_reasons"
    assert [row["jingyin_reasons"] for row in scored.orderBy("id").collect()] == [
        ["exposure", "demand_money"],
        None,
        [],
    ]


def test_wrong_columns(session: Any) -> None:
    from jingyin.serve.spark import score_dataframe

    df = session.createDataFrame([(1, THREAT)], "id int, sms string")
    with pytest.raises(ConfigError, match="the data frame has no column 'text'; it has: id, sms"):
        score_dataframe(df)
    with pytest.raises(ConfigError, match="column 'id' is int, wanted string"):
        score_dataframe(df, "id")


def test_spark_reads_the_shards_of_the_local_engine(session: Any, archive: Path, local: list[dict[str, Any]]) -> None:
    df = session.read.parquet(str(archive.parent / "local.parquet"))
    found = df.select("id", "jingyin_risk").orderBy("_metadata.file_path", "_metadata.row_index").collect()
    assert [(row["id"], row["jingyin_risk"]) for row in found] == [(row["id"], row["jingyin_risk"]) for row in local]


def test_texts_that_are_not_utf8_end_no_job() -> None:
    from types import SimpleNamespace

    from pyspark.sql.types import StringType, StructField, StructType

    from jingyin.serve.spark import score_dataframe

    lying = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xff\xfe"))
    schema = StructType([StructField("text", StringType())])
    df = SimpleNamespace(columns=["text"], schema=schema, drop=lambda *_: df, mapInArrow=lambda score, _: score)
    (found,) = score_dataframe(df)([pa.record_batch({"text": lying})])  # type: ignore[arg-type, operator]
    assert found.column("jingyin_length").to_pylist() == [2, 0]


def test_errors_of_java_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from py4j.protocol import Py4JJavaError, Py4JNetworkError
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    from jingyin.model.errors import InputError
    from jingyin.serve.spark import main

    name = SimpleNamespace(getName=lambda: "java.io.IOException")
    java = Py4JJavaError.__new__(Py4JJavaError)
    java.java_exception = SimpleNamespace(getClass=lambda: name)
    for error, message in (
        (java, "^Spark failed: java.io.IOException; see Spark's log$"),
        (Py4JNetworkError("text"), "^Spark failed: Py4JNetworkError; see Spark's log$"),
        (PySparkRuntimeError(errorClass="JAVA_GATEWAY_EXITED", messageParameters={}), "^Spark failed: JAVA_GATEWAY"),
    ):

        def fail(_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(SparkSession.Builder, "getOrCreate", fail)
        with pytest.raises(InputError, match=message):
            main(["in", "out"])
