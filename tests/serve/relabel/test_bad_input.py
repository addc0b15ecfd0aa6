import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.serve.relabel.relabel_helpers import THREAT, Here, contents, rows

from jingyin.model.errors import ConfigError, InputError
from jingyin.serve.archive import readers as lines
from jingyin.serve.archive import readers as read_csv
from jingyin.serve.archive import readers as read_json


def rejects(out: Path) -> list[tuple[int, str]]:
    with (out / "_rejects.csv").open(encoding="utf-8", newline="") as file:
        return [(int(row["row"]), row["reason"]) for row in csv.DictReader(file)]


def ids(out: Path) -> list[str]:
    return [
        json.loads(line)["id"] for file in sorted(out.glob("part-*")) for line in file.read_text("utf-8").splitlines()
    ]


CSV_CASES = {
    "unclosed quote": ('1,"你好\n2,再见\n3,好\n', [(1, "malformed CSV")], ["2", "3"]),
    "unclosed quote, closed by a later one": ('1,"你好\n2,"再见"\n3,好\n', [(1, "malformed CSV")], ["2", "3"]),
    "text after a quote": ('1,"你好"x\n2,再见\n', [(1, "malformed CSV")], ["2"]),
    "too few fields": ("1\n2,再见\n", [(1, "wrong number of fields")], ["2"]),
    "too many fields": ("1,你,好\n2,再见\n", [(1, "wrong number of fields")], ["2"]),
    "line break in quotes": ('1,"你\n好"\n2,再见\n', [], ["1", "2"]),
    "blank line": ("1,你好\n\n2,再见\n", [], ["1", "2"]),
    "no line break at the end": ("1,你好\n2,再见", [], ["1", "2"]),
    "carriage returns": ("1,你好\r\n2,再见\r\n", [], ["1", "2"]),
    "quote at the end": ('1,你好\n2,"', [(2, "malformed CSV")], ["1"]),
}


@pytest.mark.parametrize("case", CSV_CASES)
def test_broken_csv_loses_only_the_broken_rows(tmp_path: Path, here: Here, case: str) -> None:
    body, wanted, left = CSV_CASES[case]
    (tmp_path / "in.csv").write_bytes(f"\ufeffid,text\n{body}".encode())
    report = here(tmp_path / "in.csv", tmp_path / "out.jsonl")
    assert rejects(tmp_path / "out.jsonl") == wanted
    assert sum(report.rejects.values()) == len(wanted)
    assert ids(tmp_path / "out.jsonl") == left


JSON_CASES = {
    "mixed encodings": (THREAT.encode("gbk"), "malformed JSON"),
    "cut off": (b'{"id": "2", "te', "malformed JSON"),
    "a list": (b'["2"]', "not a JSON object"),
    "null text": (b'{"id": "2", "text": null}', "null text"),
    "no text": (b'{"id": "2"}', "null text"),
    "a number for a text": (b'{"id": "2", "text": 5}', "wrong type"),
    "another type": (b'{"id": 2, "text": "x"}', "wrong type"),
    "a lone surrogate": (b'{"id": "2", "text": "\\ud800"}', "wrong type"),
    "a key that the others lack": (b'{"id": "2", "text": "x", "new": 1}', "unknown key"),
    "deep": (b"[" * 100_000, "malformed JSON"),
}


@pytest.mark.parametrize("case", JSON_CASES)
def test_broken_json_loses_only_the_broken_rows(
    tmp_path: Path, here: Here, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_json, "ROWS", 1)  # the first line gives the types
    line, reason = JSON_CASES[case]
    good = '{{"id": "{}", "text": "你好"}}\n'
    data = good.format(1).encode() + line + b"\n" + good.format(3).encode()
    (tmp_path / "in.jsonl").write_bytes(data)
    here(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert rejects(tmp_path / "out.jsonl") == [(2, "not UTF-8" if case == "mixed encodings" else reason)]
    assert ids(tmp_path / "out.jsonl") == ["1", "3"]
    with pytest.raises(InputError, match=r"row 2 of .*in.jsonl can't be scored: .*; mend it"):
        here(tmp_path / "in.jsonl", tmp_path / "strict.jsonl", strict=True)
    (tmp_path / "out.jsonl" / "_report.json").unlink()
    with pytest.raises(InputError, match="1 rows were rejected before this run was resumed with --strict"):
        here(tmp_path / "in.jsonl", tmp_path / "out.jsonl", strict=True)


FIRST_ROWS = {
    "half an emoji for a text": ('{"id": "1", "text": "\\ud83d"}', "wrong type"),
    "half an emoji elsewhere": ('{"id": "1", "text": "好", "name": "\\ud83d"}', "wrong type"),
    "half an emoji in a key": ('{"id": "1", "text": "好", "\\ud83d": 1}', "unknown key"),
    "a number over 64 bits": (f'{{"id": "1", "text": "好", "n": {2**70}}}', "wrong type"),
}


@pytest.mark.parametrize("case", FIRST_ROWS)
def test_a_first_row_that_arrow_refuses_is_rejected(tmp_path: Path, here: Here, case: str) -> None:
    line, reason = FIRST_ROWS[case]
    (tmp_path / "in.jsonl").write_text(f'{line}\n{{"id": "2", "text": "好"}}\n', encoding="utf-8")
    here(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert rejects(tmp_path / "out.jsonl") == [(1, reason)]
    assert ids(tmp_path / "out.jsonl") == ["2"]


def test_the_first_value_that_arrow_takes_gives_the_type(tmp_path: Path) -> None:
    lines_ = [f'{{"text": "好", "n": {n}}}\n' for n in (2**70, 5, '"x"')]
    (tmp_path / "in.jsonl").write_text("".join(lines_), encoding="utf-8")
    schema = read_json.json_schema(tmp_path / "in.jsonl", None, "utf-8", "text")
    assert schema == pa.schema({"text": pa.string(), "n": pa.int64()})


def test_a_new_key_in_a_list_of_objects_is_rejected(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_json, "ROWS", 1)  # the first line gives the types
    parts = ('[{"a": 1}]', '[{"a": 1}, {"a": 2, "b": 3}]', "[]", "[null]")
    lines_ = [f'{{"id": "{n}", "text": "好", "parts": {part}}}\n' for n, part in enumerate(parts, 1)]
    (tmp_path / "in.jsonl").write_text("".join(lines_), encoding="utf-8")
    here(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert rejects(tmp_path / "out.jsonl") == [(2, "unknown key")]
    assert ids(tmp_path / "out.jsonl") == ["1", "3", "4"]


def test_mixed_encodings_in_csv(tmp_path: Path, here: Here) -> None:
    (tmp_path / "in.csv").write_bytes("id,text\n1,你好\n".encode() + f"2,{THREAT}\n".encode("gbk") + "3,好\n".encode())
    here(tmp_path / "in.csv", tmp_path / "out.jsonl")
    assert rejects(tmp_path / "out.jsonl") == [(2, "not UTF-8")]
    assert ids(tmp_path / "out.jsonl") == ["1", "3"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_line_without_end(tmp_path: Path, here: Here, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lines, read_csv, read_json):
        monkeypatch.setattr(module, "MAX_LINE", 1000)
    bodies = {"csv": "id,text\n1,{0}\n2,好\n", "jsonl": '{{"id": "1", "text": "{0}"}}\n{{"id": "2", "text": "好"}}\n'}
    (tmp_path / f"in.{kind}").write_text(bodies[kind].format("长" * 5000), encoding="utf-8")
    here(tmp_path / f"in.{kind}", tmp_path / "out.jsonl")
    assert [row for row, _ in rejects(tmp_path / "out.jsonl")] == [1]
    assert ids(tmp_path / "out.jsonl") == ["2"]


def test_bytes_in_parquet_that_are_not_utf8(tmp_path: Path, here: Here) -> None:
    raw = pa.array([b"ok", "你好".encode(), b"\xff\xfe", None], pa.binary())
    columns = {"id": ["1", "2", "3", "4"], "text": raw.cast(pa.large_binary())}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    here(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert rejects(tmp_path / "out.jsonl") == [(3, "not UTF-8"), (4, "null text")]
    assert ids(tmp_path / "out.jsonl") == ["1", "2"]


def test_missing_column_lists_those_there(archive: Path, tmp_path: Path, here: Here) -> None:
    with pytest.raises(ConfigError, match="has no column 'sms'; it has: id, text, old, family; name one"):
        here(archive, tmp_path / "out.parquet", text_column="sms")
    with pytest.raises(ConfigError, match="there is no column 'older' to compare; there are: id, text, old, family"):
        here(archive, tmp_path / "out.parquet", compare="older")
    with pytest.raises(ConfigError, match=r"column 'id' of .* is int64, wanted strings"):
        here(archive, tmp_path / "out.parquet", text_column="id")
    assert not (tmp_path / "out.parquet").exists()


def test_a_file_with_other_columns(archive: Path, tmp_path: Path, here: Here) -> None:
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match=r"other.parquet holds text: string, the files before it id: int64"):
        here([archive, tmp_path / "other.parquet"], tmp_path / "out.parquet")


@pytest.mark.parametrize("name", ["in.parquet", "in.csv", "in.jsonl"])
def test_empty_files(tmp_path: Path, here: Here, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"is empty \(0 bytes\)"):
        here(tmp_path / name, tmp_path / "out.parquet")


def test_no_rows(tmp_path: Path, here: Here) -> None:
    (tmp_path / "in.csv").write_text("text\n")
    with pytest.raises(InputError, match="the input holds no rows"):
        here(tmp_path / "in.csv", tmp_path / "out.parquet")


@pytest.mark.parametrize("left", [0.5, 0.99])
def test_truncated_parquet(archive: Path, tmp_path: Path, here: Here, left: float) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * left)])
    with pytest.raises(InputError, match=r"in.parquet is damaged or truncated"):
        here(archive, tmp_path / "out.parquet")


@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.jsonl.zst"])
def test_truncated_archives(archive: Path, tmp_path: Path, here: Here, name: str) -> None:
    here(archive, tmp_path / name)
    data = (tmp_path / name / f"part-00000{name[2:]}").read_bytes()
    (tmp_path / f"cut{name[2:]}").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cut.* is damaged or truncated"):
        here(tmp_path / f"cut{name[2:]}", tmp_path / "out.parquet")


def test_utf16(tmp_path: Path, here: Here) -> None:
    (tmp_path / "in.csv").write_text("text\n你好\n", encoding="utf-16")
    with pytest.raises(InputError, match="is UTF-16; convert it first: iconv"):
        here(tmp_path / "in.csv", tmp_path / "out.parquet")


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


@pytest.mark.parametrize("name", ["gone.parquet", "*.parquet"])
def test_a_link_to_nothing(archive: Path, tmp_path: Path, here: Here, name: str) -> None:
    (tmp_path / "gone.parquet").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"gone.parquet can't be read: No such file or directory"):
        here(tmp_path / name, tmp_path / "out.jsonl")


def test_a_folder_of_someone_else_is_left_alone(archive: Path, tmp_path: Path, here: Here) -> None:
    out = tmp_path / "out.parquet"
    out.mkdir()
    (out / "part-thesis.txt").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(ConfigError, match=r"is not empty and holds no earlier run \(1 other files\)"):
            here(archive, out, fresh=fresh)
    assert (out / "part-thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": 3}, "needs a file for them: --label-studio FILE"),
        ({"encoding": "utf-16"}, "encoding 'utf-16' is unknown or not built on ASCII"),
        ({"encoding": "klingon"}, "encoding 'klingon' is unknown or not built on ASCII"),
        ({"label_studio": "/nowhere/at/all.json"}, "must lie in a folder that exists"),
    ],
)
def test_wrong_calls(archive: Path, tmp_path: Path, here: Here, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        here(archive, tmp_path / "out.parquet", **options)


def test_unknown_formats_and_missing_files(archive: Path, tmp_path: Path, here: Here) -> None:
    with pytest.raises(ConfigError, match=r"the format of 'out.xlsx' is unknown; known are \*.parquet"):
        here(archive, tmp_path / "out.xlsx")
    with pytest.raises(InputError, match="does not exist, and as a pattern it matches nothing"):
        here(tmp_path / "gone.parquet", tmp_path / "out.parquet")
    with pytest.raises(ConfigError, match="an input file is named twice"):
        here([archive, archive], tmp_path / "out.parquet")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(InputError, match="holds no file to read"):
        here(tmp_path / "hollow", tmp_path / "out.parquet")


def test_no_error_and_no_side_file_of_bookkeeping_quotes_a_message(tmp_path: Path, here: Here) -> None:
    data = [{"text": row["text"] + "机密"} for row in rows(5)]
    lines_ = [json.dumps(row, ensure_ascii=False) for row in data] + [
        '{"text": "机密", "机密": 1}',
        '["机密"',
        '{"text": ["机密"]}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines_), encoding="utf-8")
    here(tmp_path / "in.jsonl", tmp_path / "out.parquet")
    kept = contents(tmp_path / "out.parquet")
    assert all("机密".encode() not in kept[name] for name in kept if name.startswith("_") and name != "_manifest.json")
    with pytest.raises(InputError) as caught:
        here(tmp_path / "in.jsonl", tmp_path / "strict.parquet", strict=True)
    assert "机密" not in str(caught.value)
