import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.serve.archive.relabel_helpers import Here, KilledError, contents, kill_at, rows, stop_at
from tests.serve.processes import children, runs

from jingyin.model.errors import InputError, JingyinError
from jingyin.model.files import Run
from jingyin.serve.archive.drift import drift

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two files, with rejects, so that side files grow with the shards."""
    folder = tmp_path / "in"
    folder.mkdir()
    data = [row | {"text": None if row["id"] % 17 == 3 else row["text"]} for row in rows(70)]
    pq.write_table(pa.Table.from_pylist(data[:45]), folder / "a.parquet", row_group_size=30)
    pq.write_table(pa.Table.from_pylist(data[45:]), folder / "b.parquet")
    return folder


@pytest.mark.exhaustive
def test_a_run_stopped_at_any_step_ends_with_the_same_bytes(archive: Path, tmp_path: Path, here: Here) -> None:
    out, tasks = tmp_path / "out.jsonl.gz", tmp_path / "tasks.json"
    options = {"compare": "old", "label_studio": tasks, "sample": 5}
    with pytest.MonkeyPatch.context() as patch:
        steps = stop_at(patch, -1, KilledError())
        here(archive, out, **options)
    wanted = contents(out), tasks.read_bytes()
    assert len(wanted[0]) == 4 + 5  # parts; lock, facts, rejects, moved, report
    for number in range(1, steps[0] + 1):
        shutil.rmtree(out)
        kill_at(number, here, archive, out, **options)
        assert all(file in wanted[0] or file.startswith("_") for file in contents(out)), number
        here(archive, out, **options)
        left = contents(out)
        assert {name: left[name] for name in wanted[0]} == wanted[0], number
        assert set(left) == set(wanted[0]), number
        assert tasks.read_bytes() == wanted[1]


def test_finished_shards_are_not_written_again(archive: Path, out: Path, here: Here) -> None:
    kill_at(20, here, archive, out)
    finished = {file.name: file.stat().st_ino for file in sorted(out.glob("part-*"))}
    assert finished
    report = here(archive, out)
    assert report.resumed in (len(finished), len(finished) - 1)
    kept = {file.name: file.stat().st_ino for file in sorted(out.glob("part-*"))}
    assert list(finished.items())[: report.resumed] == list(kept.items())[: report.resumed]


COMMAND = "import sys; from jingyin.cli import main; sys.argv[0] = 'jingyin'; main()"


@pytest.mark.exhaustive
def test_kill_9(tmp_path: Path, here: Here) -> None:
    source, out = tmp_path / "in.parquet", tmp_path / "killed.parquet"
    pq.write_table(pa.Table.from_pylist(rows(200_000)), source)
    command = [sys.executable, "-c", COMMAND, "relabel", str(source), str(out), "--processes", "2"]
    with subprocess.Popen(command) as process:
        while not (out / "_part-00000.json").exists():
            time.sleep(0.01)
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["resumed"] >= 1
    shutil.copytree(out, tmp_path / "resumed")
    subprocess.run([*command, "--fresh"], capture_output=True, check=True)
    assert contents(tmp_path / "resumed") == contents(out)
    for child in workers:  # end with the parent
        assert not runs(child) or b"multiprocessing" not in Path(f"/proc/{child}/cmdline").read_bytes()


def test_a_finished_run_is_only_reported(archive: Path, tmp_path: Path, here: Here) -> None:
    first = here(archive, tmp_path / "out.parquet")
    before = contents(tmp_path / "out.parquet")
    again = here(archive, tmp_path / "out.parquet")
    assert (again.rows, again.rejects) == (first.rows, first.rejects)
    assert contents(tmp_path / "out.parquet") == before


def test_changed_input_or_options_are_refused_unless_fresh(archive: Path, out: Path, here: Here) -> None:
    here(archive, out)
    with pytest.raises(InputError, match="holds a run with other id column"):
        here(archive, out, id_column="id")
    os.utime(archive / "a.parquet", (1, 1))
    with pytest.raises(InputError, match="holds a run with other inputs; name another output, or replace"):
        here(archive, out)
    (archive / "b.parquet").unlink()
    assert here(archive, out, fresh=True).rows + 3 == 45
    assert len(list(out.glob("part-*"))) == 2


def test_another_bundle_is_refused(archive: Path, out: Path, here: Here) -> None:
    here(archive, out)
    manifest = json.loads((out / "_begun.json").read_text())
    (out / "_begun.json").write_text(json.dumps(manifest | {"bundle": "0123456789abcdef"}))
    with pytest.raises(InputError, match="holds a run with other bundle"):
        here(archive, out)


def test_a_part_that_was_changed_is_noticed(archive: Path, out: Path, here: Here) -> None:
    kill_at(20, here, archive, out)
    (out / "part-00000.parquet").write_bytes(b"short")
    with pytest.raises(InputError, match=r"part-00000.parquet is missing or was changed .* --fresh"):
        here(archive, out)


def test_the_second_run_on_one_output_refuses(archive: Path, out: Path, here: Here) -> None:
    here(archive, out)
    facts = json.loads((out / "_begun.json").read_text())
    with Run.open(out, facts, done="_report.json"), pytest.raises(JingyinError, match="another run writes to"):
        here(archive, out)


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_full_disk_is_said_and_the_run_goes_on_later(
    archive: Path, tmp_path: Path, out: Path, here: Here, fault: int
) -> None:
    wanted = rf"can't be written: {os.strerror(fault)}; .* it resumes"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(JingyinError, match=wanted):  # noqa: PT012
        stop_at(patch, 12, OSError(fault, os.strerror(fault)))
        here(archive, out)
    here(archive, out)
    here(archive, tmp_path / "whole.parquet")
    assert contents(out) == contents(tmp_path / "whole.parquet")


@pytest.mark.exhaustive
def test_no_room_for_a_shard(archive: Path, tmp_path: Path) -> None:
    """A limit on file size is as near to a full disk as a test gets without one."""
    source, out = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("text\n" + "你好\n" * 3000, encoding="utf-8")
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += f"resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {resource.RLIM_INFINITY})); "
    command = [sys.executable, "-c", limit + COMMAND, "relabel", str(source), str(out), "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("jingyin: ")
    assert "can't be written: File too large" in done.stderr
    assert not list(out.glob("part-*"))


def test_an_unfinished_output_is_no_input(archive: Path, tmp_path: Path, out: Path, here: Here) -> None:
    kill_at(20, here, archive, out)
    assert list(out.glob("part-*"))
    for source in (out, Path(f"{out}/part-*.parquet")):
        with pytest.raises(InputError, match="holds a run that isn't finished; repeat its command"):
            here(source, tmp_path / "again.parquet")
    with pytest.raises(InputError, match="holds a run that isn't finished"):
        drift(out, out)
    here(archive, out)
    assert here(out, tmp_path / "again.parquet").rows == 66
