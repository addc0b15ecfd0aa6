import json
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jingyin.model.errors import ConfigError, InputError
from jingyin.serve.archive.drift import drift, lines, stability
from jingyin.serve.archive.relabel import relabel


def archive(path, seed, *, longer=0.0, rows=4000, without=(), label="debt_threat"):
    rng = np.random.default_rng(seed)
    risk = np.where(rng.random(rows) < 0.03, rng.random(rows), rng.beta(0.3, 30, rows))
    columns = {
        "text": ["秘密"] * rows,
        "jingyin_risk": risk,
        "jingyin_label": np.where(risk > 0.5, label, "ordinary").tolist(),
        "jingyin_length": rng.poisson(40 + longer, rows),
        "jingyin_hits": rng.poisson(0.1, rows),
        "jingyin_unknown": rng.beta(1, 30, rows),
    }
    pq.write_table(pa.table({name: values for name, values in columns.items() if name not in without}), path)
    return path


def test_golden_stability():
    index, chance = stability(np.array([500, 500]), np.array([250, 750]))
    assert index == pytest.approx(0.27405, abs=1e-5)  # (750.5 - 500.5) / 1001 * ln(750.5 / 250.5)
    assert chance == pytest.approx(3.8415 * 2 / 1000, abs=1e-5)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=10))
def test_stability_is_never_negative_and_the_same_both_ways(bins):
    one, other = np.array(bins).T
    if one.sum() and other.sum():
        assert stability(one, other)[0] == pytest.approx(stability(other, one)[0])
        assert stability(one, other)[0] >= 0
        assert stability(one, one)[0] == 0


def test_the_same_traffic_shows_no_more_than_chance(tmp_path):
    report = drift(archive(tmp_path / "a.parquet", 1), archive(tmp_path / "b.parquet", 2))
    assert [each.reading for each in report.drifts] == ["no more than chance"] * 5
    assert all(sum(each.current) == pytest.approx(1) for each in report.drifts)


def test_longer_messages_are_seen_where_they_are(tmp_path):
    report = drift(archive(tmp_path / "a.parquet", 1), archive(tmp_path / "b.parquet", 2, longer=8))
    readings = {each.measure: each.reading for each in report.drifts}
    assert readings.pop("length") == "shifted"
    assert set(readings.values()) == {"no more than chance"}


def test_the_figures_are_json_without_any_text(tmp_path):
    drift(archive(tmp_path / "a.parquet", 1), archive(tmp_path / "b.parquet", 2), tmp_path / "drift.json")
    written = (tmp_path / "drift.json").read_text("utf-8")
    assert "秘密" not in written
    assert json.loads(written)["reference_rows"] == 4000


def test_bins_of_what_moved_are_shown(tmp_path):
    report = drift(archive(tmp_path / "a.parquet", 1), archive(tmp_path / "b.parquet", 2, longer=8))
    shown = [line for line in lines(report) if line.startswith("  ")]
    assert len(shown) == len(report.drifts[2].bins)
    assert re.fullmatch(r"  up to 32 +\d+\.\d% -> +\d+\.\d%", shown[0])


def test_a_measure_that_an_archive_lacks_is_named_and_the_others_compared(tmp_path):
    before, after = (archive(tmp_path / "a.parquet", 1), archive(tmp_path / "b.parquet", 2, without=("jingyin_hits",)))
    report = drift(before, after)
    assert report.missing == ["jingyin_hits"]
    assert list(lines(report))[-1] == "not compared, missing: jingyin_hits"
    assert len(report.drifts) == 4


def test_what_is_no_relabelled_archive_is_refused(tmp_path):
    good = archive(tmp_path / "a.parquet", 1, rows=10)
    with pytest.raises(InputError, match=r"b\.parquet lacks jingyin_risk, jingyin_label; name an output of"):
        drift(good, archive(tmp_path / "b.parquet", 2, rows=10, without=("jingyin_risk", "jingyin_label")))
    with pytest.raises(InputError, match=r"c\.parquet holds no rows"):
        drift(archive(tmp_path / "c.parquet", 1, rows=0), good)
    with pytest.raises(InputError, match=r"d\.parquet can't be read as Parquet \(FileNotFoundError\)"):
        drift(good, tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"jingyin_label holds \['spam'\]; known labels: ordinary"):
        drift(good, archive(tmp_path / "e.parquet", 2, rows=4000, label="spam"))


def test_outputs_of_relabel_are_compared_in_all_five_measures(make_bundle, tmp_path):
    bundle, texts = make_bundle(), ["今天回家吃饭", "全村轰炸", "明早公园见"] * 20
    spaced = [".".join(text) for text in texts]  # disguised, as the normaliser sees it
    for name, messages in (("before", texts), ("now", spaced)):
        pq.write_table(pa.table({"text": messages}), tmp_path / f"{name}.parquet")
        relabel([tmp_path / f"{name}.parquet"], tmp_path / f"{name}.out.parquet", bundle=bundle, processes=1)
    report = drift(tmp_path / "before.out.parquet", tmp_path / "now.out.parquet")
    readings = {each.measure: each.reading for each in report.drifts}
    assert readings.pop("disguises") == "shifted"
    assert set(readings) == {"risk", "label", "length", "unknown characters"}
    assert report.missing == []


def test_the_command_prints_a_line_a_measure_and_needs_no_torch(tmp_path):
    paths = [str(archive(tmp_path / f"{name}.parquet", seed)) for seed, name in enumerate("ab")]
    code = "import sys; sys.modules['torch'] = sys.modules['scipy'] = sys.modules['matplotlib'] = None; "
    code += "from jingyin.cli import main; main()"
    command = [sys.executable, "-c", code, "drift", *paths, "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 5
    assert (tmp_path / "out.json").is_file()


def test_the_report_never_replaces_an_archive(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"kept")
    with pytest.raises(ConfigError, match="is an archive to compare, or in one; name another file"):
        drift(tmp_path / "b.parquet", path, path)
    assert path.read_bytes() == b"kept"
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="is an archive to compare, or in one; name another file"):
        drift(tmp_path / "folder", path, tmp_path / "folder" / "drift.json")


def test_a_measure_without_values_is_not_compared(tmp_path):
    full = archive(tmp_path / "a.parquet", 1, rows=100)
    table = pq.read_table(full)
    at = table.column_names.index("jingyin_length")
    empty = tmp_path / "b.parquet"
    pq.write_table(table.set_column(at, "jingyin_length", pa.nulls(100, pa.int32())), empty)
    for pair in ((full, empty), (empty, full)):
        report = drift(*pair)
        assert report.missing == ["jingyin_length"]
        assert "length" not in {each.measure for each in report.drifts}
