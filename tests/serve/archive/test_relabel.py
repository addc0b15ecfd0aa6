import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import json_lines
from tests.command import run_command
from tests.serve.archive.relabel_helpers import TEXT_VALUES as TEXTS
from tests.serve.archive.relabel_helpers import THREAT, VALUES, Here, contents, rows

from jingyin import Scorer
from jingyin.model.errors import ConfigError, InputError, JingyinError
from jingyin.model.prefilter import is_disguised
from jingyin.model.text import clean
from jingyin.serve.archive import relabel as job
from jingyin.serve.archive.blocks import ReadOptions
from jingyin.serve.archive.campaigns import campaigns
from jingyin.serve.archive.columns import FIELDS, NAMES, scorer_columns, verdict_columns
from jingyin.serve.archive.readers import blocks, open_sources
from jingyin.serve.archive.relabel import lines, relabel
from jingyin.serve.archive.workers import _pack, workers


def read(out: Path, kind: str = "parquet") -> list[dict]:
    if kind == "json":
        return [row for file in sorted(out.glob("part-*")) for row in json_lines.read(file)]
    return pyarrow.dataset.dataset(out, format=kind).to_table().to_pylist()


def test_verdicts_are_those_of_the_scorer(archive: Path, tmp_path: Path, here: Here, scorer: Scorer) -> None:
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
def test_reasons_go_out_in_every_format(signed_bundle: Path, tmp_path: Path, here: Here, kind: str) -> None:
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
    make_bundle: Callable[..., Path], archive: Path, out: Path, here: Here, signed_bundle: Path
) -> None:
    first, *_ = lines(here(archive, out, bundle=make_bundle()), out)
    assert first.endswith(", which has no signs, so no row has reasons")
    assert {len(row["jingyin_reasons"]) for row in read(out)} == {0}
    first, *_ = lines(here(archive, out, bundle=signed_bundle, fresh=True), out)
    assert "no signs" not in first


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_texts_are_packed_for_workers_whatever_part_of_an_array_they_are(kind: pa.DataType) -> None:
    texts = pa.array(["一", "", "两百b", "😀"], kind)
    for part in (texts, texts[1:3], texts[2:], texts[1:2], texts[4:]):
        data, starts = _pack(part)
        assert [data[start:end].decode() for start, end in pairwise(starts.tolist())] == part.to_pylist()


def test_a_worker_needs_no_arrow_and_relabel_no_pandas(archive: Path, tmp_path: Path) -> None:
    code = "import sys, jingyin.serve.archive.decisions; assert 'pyarrow' not in sys.modules; "
    code += "from jingyin.serve.archive.relabel import relabel; relabel([sys.argv[1]], sys.argv[2], processes=1); "
    code += "assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(archive), str(tmp_path / "out.parquet")], check=True)


def test_two_processes_write_what_one_writes(archive: Path, tmp_path: Path, here: Here, signed_bundle: Path) -> None:
    here(archive, tmp_path / "one.parquet", bundle=signed_bundle)
    relabel([archive], tmp_path / "two.parquet", bundle=signed_bundle, processes=2)
    one, two = (next((tmp_path / name).glob("part-*")).read_bytes() for name in ("one.parquet", "two.parquet"))
    assert one == two


@pytest.mark.exhaustive
def test_a_pool_that_breaks_at_any_step_says_how_to_go_on(signed: Scorer) -> None:
    with (
        pytest.raises(JingyinError, match=r"a scoring process was killed, .* it resumes"),
        workers(2, 0, signed.bundle),
    ):
        raise BrokenProcessPool("at submit, not at result")


GUARDLESS = "import sys; from jingyin import relabel; relabel([sys.argv[1]], sys.argv[2], processes=2)"


@pytest.mark.exhaustive
def test_a_script_without_a_main_guard_is_told_so(archive: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(GUARDLESS)
    command = [sys.executable, str(script), str(archive), str(tmp_path / "out.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 'put the call under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
    assert "memory" not in done.stderr.splitlines()[-1]


def test_a_number_of_processes_below_one(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="processes must be at least 1, got -1"):
        relabel([archive], tmp_path / "out.parquet", processes=-1)


def test_few_rows_start_no_process(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jingyin.serve.archive.workers.process_pool", None)
    with pytest.raises(TypeError, match="not callable"):
        relabel([archive], tmp_path / "two.parquet", processes=2)
    assert relabel([archive], tmp_path / "out.parquet").rows == 150
    assert relabel([archive], tmp_path / "b.csv").rows == 150


@pytest.mark.exhaustive
@settings(max_examples=3)
@given(
    st.lists(st.fixed_dictionaries({"text": TEXTS | st.none() | st.integers()}, optional={"time": VALUES, "x": VALUES}),
             min_size=1, max_size=20),
    st.sampled_from(["parquet", "csv", "jsonl"]),
)  # fmt: skip
def test_every_row_of_any_archive_is_scored_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, signed_bundle: Path, data: list[dict[str, Any]], kind: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    lines_ = [json.dumps(row) for row in [{"text": "你好"}, *data]]
    (folder / "in.jsonl").write_text("\n".join(islice(cycle(lines_), 10_000)))
    report = relabel([folder / "in.jsonl"], folder / f"out.{kind}", bundle=signed_bundle, processes=1)
    assert report.rows + sum(report.rejects.values()) == 10_000
    with (folder / f"out.{kind}" / "_rejects.csv").open(encoding="utf-8") as file:
        rejected = {int(row["row"]): row["reason"] for row in csv.DictReader(file)}
    texts = [json.loads(line)["text"] for line in islice(cycle(lines_), 10_000)]
    assert rejected.keys() == {n for n, text in enumerate(texts, 1) if not isinstance(text, str)}
    found = open_sources(sorted((folder / f"out.{kind}").glob("part-*")), ReadOptions())
    scored = [text for _, block in blocks(found) for text in block.texts.to_pylist()]
    assert scored == [text for text in texts if isinstance(text, str)]


def test_rejects_name_row_reason_and_id_and_strict_fails(tmp_path: Path, here: Here) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": "a", "text": "x"}\n{"id": "b", "text": null}\n{"id": "c"\n')
    out = tmp_path / "out.jsonl"
    report = here(tmp_path / "in.jsonl", out, id_column="id", keep_rejected=True)
    assert report.rejects == {"malformed JSON": 1, "null text": 1}
    with (out / "_rejects.csv").open(encoding="utf-8", newline="") as file:
        _, *listed = csv.reader(file)
    assert listed == [
        [str(tmp_path / "in.jsonl"), "2", "null text", "b", '{"id": "b", "text": null}'],
        [str(tmp_path / "in.jsonl"), "3", "malformed JSON", "", '{"id": "c"'],
    ]
    with pytest.raises(InputError, match=r"row 2 of .*in.jsonl can't be scored: null text; mend it"):
        here(tmp_path / "in.jsonl", tmp_path / "strict.jsonl", strict=True)
    with pytest.raises(InputError, match="2 rows were rejected by this run before --strict was asked for"):
        here(tmp_path / "in.jsonl", out, id_column="id", keep_rejected=True, strict=True)


def test_replaced_bytes_are_counted_in_a_column_and_told(tmp_path: Path, here: Here) -> None:
    (tmp_path / "in.csv").write_bytes(b"text\n" + b"a\xffb\nc\n" * 3)
    report = here(tmp_path / "in.csv", tmp_path / "out.parquet", encoding="utf-8")
    assert [row["jingyin_replaced"] for row in read(tmp_path / "out.parquet")] == [1, 0] * 3
    told = list(lines(report, tmp_path / "out.parquet"))
    assert told[1] == "3 rows with bytes that aren't text, replaced by U+FFFD; --errors strict rejects them"
    strict = here(tmp_path / "in.csv", tmp_path / "strict.parquet", encoding="utf-8", errors="strict")
    assert strict.rejects == {"not UTF-8": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": 3}, "--sample needs --label-studio FILE and must be at least 1, got 3"),
        ({"encoding": "klingon"}, "encoding 'klingon' is unknown; name one such as"),
        ({"errors": "ignore"}, "errors 'ignore' is unknown; known are replace and strict"),
        ({"label_studio": "/nowhere/at/all.json"}, "must lie in a folder that exists"),
        ({"label_studio": "/"}, "/ is a folder; name a file for Label Studio"),
        ({"compare": "older"}, "there is no column 'older' to compare; there are: id, text, old, family"),
    ],
)
def test_wrong_calls(archive: Path, tmp_path: Path, here: Here, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        here(archive, tmp_path / "out.parquet", **options)
    assert not (tmp_path / "out.parquet").exists()


def test_no_rows(tmp_path: Path, here: Here) -> None:
    (tmp_path / "in.csv").write_text("text\n")
    with pytest.raises(InputError, match="the input holds no rows"):
        here(tmp_path / "in.csv", tmp_path / "out.parquet")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".parquet"])
def test_a_part_without_rows_is_read_again(tmp_path: Path, here: Here, small: None, suffix: str) -> None:
    lines = [{"id": n, "text": THREAT if n >= 20 else None, "old": "ordinary", "family": "f"} for n in range(25)]
    json_lines.write(tmp_path / "in.jsonl", lines)
    out = tmp_path / f"out{suffix}"
    assert here(tmp_path / "in.jsonl", out, compare="old").changes["families"] == {"f": [5, 5]}
    found = campaigns([out], tmp_path / "campaigns", id_column="id", processes=1)
    assert (found.rows, found.reused, found.rejects) == (5, 5, {})


def test_output_and_input_are_kept_apart(archive: Path, tmp_path: Path, here: Here) -> None:
    before = archive.read_bytes()
    with pytest.raises(ConfigError, match="is a file; a folder is wanted"):
        here(archive, archive)
    folder = tmp_path / "folder.parquet"
    folder.mkdir()
    archive.rename(folder / "in.parquet")
    with pytest.raises(ConfigError, match="input and output are both"):
        here(folder, folder)
    with pytest.raises(ConfigError, match="lies in the input folder"):
        here(folder, folder / "out.parquet")
    with pytest.raises(ConfigError, match="lies in the output folder"):
        here(folder / "in.parquet", folder)
    assert contents(folder) == {"in.parquet": before}
    (tmp_path / "out.parquet").mkdir()
    (folder / "in.parquet").rename(tmp_path / "out.parquet" / "in.parquet")
    (folder / "link").symlink_to(tmp_path / "out.parquet")
    with pytest.raises(ConfigError, match="lies in the output folder"):
        here(folder, tmp_path / "out.parquet")


def test_a_pattern_that_matches_the_output_is_refused(archive: Path, tmp_path: Path, here: Here) -> None:
    out, pattern = tmp_path / "out.parquet", tmp_path / "*.parquet"
    assert here(pattern, out).rows == 150
    before = contents(out)
    for fresh in (False, True):
        with pytest.raises(ConfigError, match=r"input and output are both .*out.parquet; .* leaves it out"):
            here(pattern, out, fresh=fresh)
        with pytest.raises(ConfigError, match=r"input .*part-00000.parquet lies in the output folder"):
            here(tmp_path / "*" / "*.parquet", out, fresh=fresh)
    assert contents(out) == before


@pytest.mark.parametrize("suffix", [".csv", ".jsonl.gz", ".csv.zst"])
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


def test_duckdb_reads_the_parts_in_order(archive: Path, tmp_path: Path, here: Here) -> None:
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


def test_command_prints_the_report_and_exits_3_with_rejects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text(f'{{"text": "{THREAT}"}}\n{{"text": null}}\n', encoding="utf-8")
    arguments = ("relabel", tmp_path / "in.jsonl", tmp_path / "out.csv", "--processes", 1)
    assert run_command(*arguments) == 3
    printed = capsys.readouterr()
    assert "1 row in" in printed.out
    assert "1 row rejected: null text" in printed.out
    assert printed.err == ""
    assert run_command(*arguments, "--json") == 3  # finished: the report again
    assert json.loads(capsys.readouterr().out)["rejects"] == {"null text": 1}
    assert run_command(*arguments, "--text-column", "sms") == 2
    assert "has no column 'sms'; it has: text" in capsys.readouterr().err


def test_a_file_named_twice_in_different_ways_is_refused(archive: Path, tmp_path: Path, here: Here) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for other in (tmp_path / "link" / archive.name, Path(f"{tmp_path}/link/../{tmp_path.name}") / archive.name):
        with pytest.raises(ConfigError, match="an input file is named twice"):
            here([archive, other], tmp_path / "out.parquet")


def test_rejects_with_carriage_returns_can_be_read_again(tmp_path: Path, here: Here) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "x", "id": "0"}\n{"id": "a\\rb", "text": null}\nx\ry\n')
    here(tmp_path / "in.jsonl", tmp_path / "out.jsonl", id_column="id", keep_rejected=True)
    with (tmp_path / "out.jsonl" / "_rejects.csv").open(encoding="utf-8", newline="") as file:
        assert [(row["id"], row["line"][-3:]) for row in csv.DictReader(file)] == [("a\rb", "ll}"), ("", "x\ry")]


def test_tasks_never_replace_an_input(tmp_path: Path, here: Here) -> None:
    path = tmp_path / "in" / "in.jsonl"
    path.parent.mkdir()
    path.write_text('{"text": "x"}\n')
    for source, tasks in ((path, path), (path.parent, path), (path.parent, path.parent / "tasks.json")):
        with pytest.raises(ConfigError, match=r"name another output|lies in the input folder"):
            here(source, tmp_path / "out.jsonl", label_studio=tasks)
    assert contents(path.parent) == {"in.jsonl": b'{"text": "x"}\n'}


LYING = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffx"))
STRANGE = {
    "bytes": (pa.array([b"\xffx"]), "\\xffx", "\\xffx"),
    "bytes in a dictionary": (pa.array([b"\xffx"]).dictionary_encode(), "\\xffx", "\\xffx"),
    "fixed bytes": (pa.array([b"\xffx"], pa.binary(2)), "\\xffx", "\\xffx"),
    "year 148108": (pa.array([2**62], pa.timestamp("us")), *["<value out of range: 4611686018427387904>"] * 2),
    "day 2**31": (pa.array([2**31 - 1], pa.int32()).cast(pa.date32()), *["<value out of range: 2147483647>"] * 2),
    "list of what is not UTF-8": (pa.ListArray.from_arrays([0, 1], LYING), ["\ufffdx"], '["\ufffdx"]'),
    "NaN": (pa.array([float("nan")]), None, "nan"),
    "object with infinity": (pa.array([{"a": [float("inf"), 1.5]}]), {"a": [None, 1.5]}, '{"a": [null, 1.5]}'),
}
"""Values that Python, JSON or CSV can't hold, and what stands for them in JSON lines and CSV."""


@pytest.mark.parametrize("case", STRANGE)
def test_strange_values_in_other_columns_cost_no_row(tmp_path: Path, here: Here, case: str) -> None:
    column, in_json, in_csv = STRANGE[case]
    rows_ = pa.table({"text": ["你好", None], "x": pa.chunked_array([column, column])})
    pq.write_table(rows_, tmp_path / "in.parquet")
    here(tmp_path / "in.parquet", tmp_path / "out.jsonl", keep_rejected=True, id_column="x")
    assert read(tmp_path / "out.jsonl", "json")[0]["x"] == in_json
    with (tmp_path / "out.jsonl" / "_rejects.csv").open(encoding="utf-8", newline="") as file:
        assert [json.loads(row["line"], parse_constant=pytest.fail)["x"] for row in csv.DictReader(file)] == [in_json]
    here(tmp_path / "in.parquet", tmp_path / "out.csv")
    with (tmp_path / "out.csv" / "part-00000.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["x"] == in_csv


def test_an_input_that_changes_while_it_is_read(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "x"}\n')
    real = job.decision_columns

    def changing(*arguments: Any) -> list[pa.Array]:
        with path.open("a") as file:
            file.write('{"text": "late"}\n')
        return real(*arguments)

    monkeypatch.setattr(job, "decision_columns", changing)
    with pytest.raises(InputError, match="an input was changed while it was read; run again with --fresh"):
        here(path, tmp_path / "out.jsonl")
    monkeypatch.undo()
    assert here(path, tmp_path / "out.jsonl", fresh=True).rows == 2


INTERRUPTED = """
import os, signal, sys
from jingyin.serve.archive import workers
from jingyin.cli import main

def interrupted(self, *arguments, **options):
    future = submit(self, *arguments, **options)
    os.kill(next(iter(self._processes)), signal.SIGINT)  # as the terminal does, to all processes
    return future

submit = workers.ProcessPoolExecutor.submit
workers.ProcessPoolExecutor.submit = interrupted
if __name__ == "__main__":
    main()
"""


@pytest.mark.exhaustive
def test_an_early_interrupt_leaves_no_traceback(archive: Path, tmp_path: Path, signed_bundle: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    command = [sys.executable, script, "relabel", archive, tmp_path / "out.parquet", "--processes", "2"]
    done = subprocess.run([*command, "--bundle", signed_bundle], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
