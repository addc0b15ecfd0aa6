import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import zstandard
from tests.serve.relabel.relabel_helpers import THREAT, Here, rows

from jingyin import Scorer
from jingyin.cli import main
from jingyin.model.errors import JingyinError
from jingyin.model.prefilter import is_disguised
from jingyin.model.text import clean
from jingyin.serve.archive.columns import FIELDS, NAMES, scorer_columns, verdict_columns
from jingyin.serve.archive.relabel import lines, relabel
from jingyin.serve.archive.workers import _pack, workers


def read(out: Path, kind: str = "parquet") -> list[dict]:
    if kind == "json":
        return [
            json.loads(line) for file in sorted(out.glob("part-*")) for line in file.read_text("utf-8").splitlines()
        ]
    return pyarrow.dataset.dataset(out, format=kind).to_table().to_pylist()


def test_verdicts_are_those_of_the_scorer_and_columns_are_kept(
    archive: Path, tmp_path: Path, here: Here, scorer: Scorer
) -> None:
    report = here(archive, tmp_path / "out.parquet")
    assert (report.rows, report.rejects) == (150, {})
    for row, before in zip(read(tmp_path / "out.parquet"), rows(150), strict=True):
        verdict = scorer.score(before["text"])
        assert {name: row[name] for name in before} == before
        assert row["jingyin_label"] == verdict.label
        assert row["jingyin_risk"] == verdict.risk
        assert row["jingyin_action"] == verdict.action
        assert row["jingyin_probabilities"] == verdict.probabilities
        assert row["jingyin_stage"] in ("prefilter", "network")
        assert row["jingyin_bundle"] == verdict.bundle
        assert row["jingyin_length"] == len(clean(before["text"]).text)
        assert row["jingyin_reasons"] == [reason.sign for reason in verdict.reasons]


MEASURED = {
    "明天见": (3, 0, 0.0),
    "验证码482913": (4, 0, 0.0),  # a masked number is one character
    "妳的電話": (4, 0, 0.0),  # traditional characters are no disguise
    "\u200b明\u200b天①见": (4, 3, 0.0),
    "呼.死.你": (3, 1, 0.0),
    "\U00020000\U00020001好": (3, 0, 0.5),  # two of three, and the start
    "": (0, 0, 0.0),
}


def test_measures_of_messages_are_the_same_from_the_cache(scorer: Scorer) -> None:
    wanted = [list(column) for column in zip(*MEASURED.values(), strict=True)]
    for texts in (list(MEASURED), [f"{text}" for text in MEASURED]):
        columns = dict(zip(NAMES, verdict_columns(scorer, texts), strict=True))
        found = [columns[name].to_pylist() for name in ("jingyin_length", "jingyin_hits", "jingyin_unknown")]
        assert found == wanted
    for text, (_, edits, _) in MEASURED.items():
        assert is_disguised(clean(text).edits) == (edits >= 2)  # the prefilter counts the same kinds


SHOWN = ("曝光你，赎金", None, "回家吃饭", "轰炸", "", "赎金")
SIGNS = [["exposure", "demand_money"], None, [], ["flooding"], [], ["demand_money"]]


def test_reasons_are_lists_of_signs_in_the_last_column(signed: Scorer) -> None:
    assert NAMES[-1] == "jingyin_reasons"
    columns = verdict_columns(signed, SHOWN)
    assert [column.type for column in columns] == [field.type for field in FIELDS]
    assert columns[-1].to_pylist() == SIGNS
    assert columns[0].to_pylist() == [text if text is None else signed.score(text).label for text in SHOWN]
    for texts in ([], [None, None], ["回家吃饭"] * 3, ["轰炸"]):  # a column without rows, texts, items, or other rows
        found = verdict_columns(signed, texts)[-1]
        found.validate(full=True)
        assert found.to_pylist() == [SIGNS[SHOWN.index(text)] for text in texts]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_reasons_go_out_in_every_format_and_are_replaced(
    signed_bundle: Path, tmp_path: Path, here: Here, kind: str
) -> None:
    data = pa.table({"text": [text for text in SHOWN if text is not None], "jingyin_reasons": ["old"] * 5})
    pq.write_table(data, tmp_path / "in.parquet")
    report = here(tmp_path / "in.parquet", tmp_path / f"out.{kind}", bundle=signed_bundle)
    assert (report.rows, report.signs) == (5, 4)
    found = [row["jingyin_reasons"] for row in read(tmp_path / f"out.{kind}", kind.removesuffix("l"))]
    wanted = [signs for signs in SIGNS if signs is not None]
    assert found == ([json.dumps(signs) for signs in wanted] if kind == "csv" else wanted)
    assert here([tmp_path / f"out.{kind}"], tmp_path / "again.parquet", bundle=signed_bundle).rows == 5
    assert [row["jingyin_reasons"] for row in read(tmp_path / "again.parquet")] == wanted


def test_a_bundle_without_signs_says_so(
    make_bundle: Callable[..., Path], archive: Path, tmp_path: Path, here: Here, signed_bundle: Path
) -> None:
    out = tmp_path / "out.parquet"
    first, *_ = lines(here(archive, out, bundle=make_bundle()), out, as_json=False)
    assert first.endswith(", which has no signs, so no row has reasons")
    assert {len(row["jingyin_reasons"]) for row in read(out)} == {0}
    first, *_ = lines(here(archive, out, bundle=signed_bundle, fresh=True), out, as_json=False)
    assert "no signs" not in first


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_texts_are_packed_for_workers_whatever_part_of_an_array_they_are(kind: pa.DataType) -> None:
    texts = pa.array(["一", "", "两百b", "😀"], kind)
    for part in (texts, texts[1:3], texts[2:], texts[1:2], texts[4:]):
        data, starts = _pack(part)
        assert [data[start:end].decode() for start, end in pairwise(starts.tolist())] == part.to_pylist()


@pytest.mark.slow
def test_a_worker_needs_no_arrow_and_relabel_no_pandas(archive: Path, tmp_path: Path) -> None:
    code = "import sys, jingyin.serve.archive.decisions; assert 'pyarrow' not in sys.modules; "
    code += "from jingyin.serve.archive.relabel import relabel; relabel([sys.argv[1]], sys.argv[2], processes=1); "
    code += "assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(archive), str(tmp_path / "out.parquet")], check=True)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(archive: Path, tmp_path: Path, here: Here) -> None:
    here(archive, tmp_path / "one.parquet")
    relabel([archive], tmp_path / "two.parquet", processes=2)
    one, two = (next((tmp_path / name).glob("part-*")).read_bytes() for name in ("one.parquet", "two.parquet"))
    assert one == two


@pytest.mark.slow
def test_a_pool_that_breaks_at_any_step_says_how_to_go_on(scorer: Scorer) -> None:
    with pytest.raises(JingyinError, match=r"a scoring process was killed, .* it goes on"), workers(2, scorer.bundle):
        raise BrokenProcessPool("at submit, not at result")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".csv.gz", ".jsonl.zst", ".ndjson.gz", ".csv.zst"])
def test_every_format_goes_in_and_out(archive: Path, tmp_path: Path, here: Here, suffix: str) -> None:
    here(archive, tmp_path / "a.parquet")
    here(archive, tmp_path / f"b{suffix}")
    assert here([tmp_path / f"b{suffix}"], tmp_path / "c.parquet").rows == 150
    first, again = read(tmp_path / "a.parquet"), read(tmp_path / "c.parquet")
    assert [{n: row[n] for n in ("text", *NAMES)} for row in again] == [
        {n: row[n] for n in ("text", *NAMES)} for row in first
    ]


@pytest.mark.usefixtures("small")
def test_shards_of_several_files_are_one_dataset_in_input_order(archive: Path, tmp_path: Path, here: Here) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        pq.write_table(pq.read_table(archive).slice(number * 50, 50), folder / f"{number}.parquet", row_group_size=33)
    (folder / "_notes.parquet").write_text("bookkeeping")
    here(folder, tmp_path / "out.parquet")
    assert len(list((tmp_path / "out.parquet").glob("part-*"))) > 3
    assert [row["id"] for row in read(tmp_path / "out.parquet")] == list(range(150))
    here([Path(f"{folder}/[0-9].parquet")], tmp_path / "glob.jsonl")
    assert [row["id"] for row in read(tmp_path / "glob.jsonl", "json")] == list(range(150))


@pytest.mark.external
def test_duckdb_reads_the_shards_in_order(archive: Path, tmp_path: Path, here: Here) -> None:
    duckdb = pytest.importorskip("duckdb", reason="needs duckdb: pip install 'jingyin[external]'")
    here(archive, tmp_path / "out.parquet")
    found = duckdb.sql(f"select id from read_parquet('{tmp_path}/out.parquet/part-*.parquet')").fetchall()
    assert [n for (n,) in found] == list(range(150))


def test_types_of_parquet_columns_are_kept(tmp_path: Path, here: Here) -> None:
    table = pa.table(
        {
            "text": pa.array([THREAT, "你好"]).dictionary_encode(),
            "at": pa.array([1, 2], pa.timestamp("us", "UTC")),
            "tags": pa.array([["a"], []], pa.list_(pa.string())),
            "big": pa.array(["x", None], pa.large_string()),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    here(tmp_path / "in.parquet", tmp_path / "out.parquet")
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.select(table.column_names).equals(table)
    here(tmp_path / "in.parquet", tmp_path / "out.csv")
    first = (tmp_path / "out.csv" / "part-00000.csv").read_text(encoding="utf-8").splitlines()[1]
    assert first.startswith(f'"{THREAT}",1970-01-01 00:00:00.000001Z,"[""a""]","x","pay_to_stop",')
    here(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl", "json")[1]["at"] == "1970-01-01T00:00:00.000002+00:00"


def test_concatenated_frames_are_read_to_the_end(tmp_path: Path, here: Here) -> None:
    line = json.dumps({"text": THREAT}).encode() + b"\n"
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line) + gzip.compress(line))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(line) + zstandard.compress(line))
    assert here([tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.zst"], tmp_path / "out.jsonl").rows == 4


def test_gb18030(tmp_path: Path, here: Here) -> None:
    (tmp_path / "in.csv").write_bytes(f"text,号\n{THREAT},1\n".encode("gb18030"))
    here(tmp_path / "in.csv", tmp_path / "out.jsonl", encoding="gb18030")
    (row,) = read(tmp_path / "out.jsonl", "json")
    assert (row["text"], row["号"], row["jingyin_label"]) == (THREAT, "1", "pay_to_stop")


def test_datasets_map(archive: Path, scorer: Scorer) -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets: pip install 'jingyin[train]'")
    data = datasets.Dataset.from_dict({"text": [THREAT, None, "你好"]})
    scored = data.map(scorer_columns, batched=True, batch_size=2)
    assert scored["jingyin_label"] == [scorer.score(THREAT).label, None, scorer.score("你好").label]
    assert scored[0]["jingyin_probabilities"] == scorer.score(THREAT).probabilities
    assert scored[1]["jingyin_risk"] is None
    assert scored["jingyin_length"] == [24, None, 2]  # a masked amount is one character
    assert scored["jingyin_reasons"] == [[reason.sign for reason in scorer.score(THREAT).reasons], None, []]


def test_datasets_map_has_reasons_of_a_bundle_with_signs(signed_bundle: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets: pip install 'jingyin[train]'")
    data = datasets.Dataset.from_dict({"sms": list(SHOWN)})
    options = {"text_column": "sms", "bundle": str(signed_bundle)}
    assert data.map(scorer_columns, batched=True, batch_size=2, fn_kwargs=options)["jingyin_reasons"] == SIGNS


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str | int | None:
    monkeypatch.setattr(sys, "argv", ["jingyin", "relabel", *map(str, arguments)])
    with pytest.raises(SystemExit, match=r"^\d$") as ended:
        main()
    return ended.value.code


def test_command_prints_the_report_and_exits_3_with_rejects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text(f'{{"text": "{THREAT}"}}\n{{"text": null}}\n', encoding="utf-8")
    arguments = (tmp_path / "in.jsonl", tmp_path / "out.csv", "--processes", 1)
    assert run_command(monkeypatch, *arguments) == 3
    printed = capsys.readouterr()
    assert "1 rows in" in printed.out
    assert "1 rows rejected: null text" in printed.out
    assert printed.err == ""
    assert run_command(monkeypatch, *arguments, "--json") == 3  # finished: the report again
    assert json.loads(capsys.readouterr().out)["rejects"] == {"null text": 1}
    assert run_command(monkeypatch, *arguments, "--text-column", "sms") == 2
    assert "has no column 'sms'; it has: text" in capsys.readouterr().err
