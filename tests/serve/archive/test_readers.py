import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import json_lines
from tests.serve.archive.relabel_helpers import TEXT_VALUES as TEXTS
from tests.serve.archive.relabel_helpers import THREAT, VALUES, rows

from jingyin.model.errors import ConfigError, InputError
from jingyin.serve.archive import readers, text_files
from jingyin.serve.archive.blocks import ReadOptions, Reject
from jingyin.serve.archive.readers import blocks, find, open_sources
from jingyin.serve.archive.text_files import RESCUED


def read(*files: Path, **how: Any) -> tuple[list[dict[str, Any]], list[Reject]]:
    """Return the rows and rejects of files."""
    found = [block for _, block in blocks(open_sources(files, ReadOptions(**how)))]
    return [row for block in found for row in block.batch.to_pylist()], [
        each for block in found for each in block.rejects
    ]


def ids(data: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in data]


def reasons(rejects: list[Reject]) -> list[tuple[int, str]]:
    return [(row, reason) for row, reason, *_ in rejects]


# CSV


CSV_CASES = {
    "unclosed quote": ('1,"你好\n2,再见\n3,好\n', [(1, "malformed CSV")], ["2", "3"]),
    "unclosed quote, closed by a later one": ('1,"你好\n2,"再见"\n3,好\n', [(1, "malformed CSV")], ["2", "3"]),
    "text after a quote": ('1,"你好"x\n2,再见\n', [(1, "malformed CSV")], ["2"]),
    "too few fields": ("1\n2,再见\n", [(1, "wrong number of fields")], ["2"]),
    "too many fields": ("1,你,好\n2,再见\n", [(1, "wrong number of fields")], ["2"]),
    "line break in quotes": ('1,"你\n好"\n2,再见\n', [], ["1", "2"]),
    "blank line": ("1,你好\n\n2,再见\n", [], ["1", "2"]),
    "no line break at the end": ("1,你好\n2,再见", [], ["1", "2"]),
    "carriage returns and line feeds": ("1,你好\r\n2,再见\r\n", [], ["1", "2"]),
    "a field over 128 KiB": (f"1,{'长' * 131_073}\n2,好\n", [(1, text_files.LONG_FIELD)], ["2"]),
    "unclosed quote of a long file": ('1,"你\n' + "2,好\n" * 40_000, [(1, text_files.LONG_FIELD)], ["2"] * 40_000),
    "quote at the end": ('1,你好\n2,"', [(2, "malformed CSV")], ["1"]),
}


@pytest.mark.parametrize("case", CSV_CASES)
def test_broken_csv_loses_only_the_broken_rows(tmp_path: Path, case: str) -> None:
    body, wanted, left = CSV_CASES[case]
    (tmp_path / "in.csv").write_bytes(f"\ufeffid,text\n{body}".encode())
    data, rejects = read(tmp_path / "in.csv")
    assert (reasons(rejects), ids(data)) == (wanted, left)


def test_carriage_returns_alone_end_lines(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes("id,text\r1,你好\r2,再见\r".encode())
    (tmp_path / "in.jsonl").write_bytes(b'{"id": "3", "text": "x"}\r{"id": "4", "text": "y"}\r')
    data, rejects = read(tmp_path / "in.csv", tmp_path / "in.jsonl")
    assert (ids(data), rejects) == (["1", "2", "3", "4"], [])


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_another_delimiter(tmp_path: Path, delimiter: str) -> None:
    (tmp_path / "in.csv").write_text(f"id{delimiter}text\n1{delimiter}a,b\n", encoding="utf-8")
    assert read(tmp_path / "in.csv", delimiter=delimiter)[0] == [{"id": "1", "text": "a,b"}]


def test_a_carriage_return_outside_quotes_in_any_line_of_a_record_is_a_space(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes('id,text,n\n1,"你\n好",c\rd\n2,再见,"e\rf"\n'.encode())
    data, rejects = read(tmp_path / "in.csv")
    assert (data, rejects) == ([
        {"id": "1", "text": "你\n好", "n": "c d"}, {"id": "2", "text": "再见", "n": "e\rf"},
    ], [])  # fmt: skip


# JSON


JSON_CASES = {
    "cut off": ('{"id": "2", "te', "malformed JSON"),
    "a list": ('["2"]', "not a JSON object"),
    "null text": ('{"id": "2", "text": null}', "null text"),
    "no text": ('{"id": "2"}', "null text"),
    "a number for a text": ('{"id": "2", "text": 5}', "column 'text' is a number, wanted text"),
    "a list for a text": ('{"id": "2", "text": ["x"]}', "column 'text' is a list, wanted text"),
    "deep": ("[" * 100_000, "malformed JSON"),
}


@pytest.mark.parametrize("case", JSON_CASES)
def test_broken_json_loses_only_the_broken_rows(tmp_path: Path, case: str) -> None:
    line, reason = JSON_CASES[case]
    good = '{{"id": "{}", "text": "你好"}}\n'
    (tmp_path / "in.jsonl").write_text(good.format(1) + line + "\n\n" + good.format(4), encoding="utf-8")
    data, rejects = read(tmp_path / "in.jsonl")
    assert (reasons(rejects), ids(data)) == ([(2, reason)], ["1", "4"])


def test_a_column_of_several_types_is_text_and_costs_no_row(tmp_path: Path) -> None:
    values = [5, "six", {"a": 7}, None, 2**70, [8], True]
    json_lines.write(tmp_path / "in.jsonl", ({"text": "好", "time": value} for value in values))
    data, rejects = read(tmp_path / "in.jsonl")
    assert rejects == []
    assert [row["time"] for row in data] == ["5", "six", '{"a": 7}', None, str(2**70), "[8]", "true"]


def test_what_fits_no_column_later_is_rescued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "ROWS", 1)  # the first line gives the types
    first = {"text": "好", "n": 1, "parts": [{"a": 1}]}
    later = [{"n": "two"}, {"n": 2**70}, {"new": "值"}, {"parts": [{"a": 2, "b": 3}]}, {"n": 2, "parts": []}]
    json_lines.write(tmp_path / "in.jsonl", ({"text": "好", **row} for row in [first, *later]))
    data, rejects = read(tmp_path / "in.jsonl")
    assert rejects == []
    assert [json.loads(row[RESCUED] or "null") for row in data] == [None, *later[:4], None]
    assert [row["n"] for row in data] == [1, None, None, None, None, 2]


def test_rescued_values_of_an_earlier_output_stay(tmp_path: Path) -> None:
    json_lines.write(tmp_path / "in.jsonl", [{"text": "x", RESCUED: '{"a": 1}'}])
    assert read(tmp_path / "in.jsonl")[0] == [{"text": "x", RESCUED: '{"a": 1}'}]


@pytest.mark.parametrize(
    ("earlier", "kept"), [('{"a": 1}', {"a": 1}), ("[1]", {RESCUED: "[1]"}), ("x", {RESCUED: "x"})]
)
def test_rescued_values_are_added_to_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: str, kept: dict[str, Any]
) -> None:
    monkeypatch.setattr(text_files, "ROWS", 1)
    lines = [{"text": "x", "n": 1}, {"text": "y", "n": "two", RESCUED: earlier}]
    json_lines.write(tmp_path / "in.jsonl", lines)
    assert json.loads(read(tmp_path / "in.jsonl")[0][1][RESCUED]) == {**kept, "n": "two"}


def test_infinity_is_kept_as_text_and_rescued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "ROWS", 1)
    (tmp_path / "in.jsonl").write_text('{"text": "x", "n": 1, "m": "a"}\n{"text": "y", "n": Infinity, "m": NaN}\n')
    second = read(tmp_path / "in.jsonl")[0][1]
    assert second == {"text": "y", "n": None, "m": "NaN", RESCUED: '{"n": Infinity}'}


def test_halves_of_emoji_are_replaced_and_whole_ones_kept(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "\\ud83d", "\\ud83d": 1}\n{"text": "\\ud83d\\ude00"}\n')
    sources = open_sources([tmp_path / "in.jsonl"], ReadOptions())
    ((_, block),) = blocks(sources)
    assert block.texts.to_pylist() == ["\ufffd", "😀"]
    assert block.replaced.tolist() == [2, 0]


@pytest.mark.parametrize("depth", [90, 150, 400, 900])
def test_deep_values_are_kept(tmp_path: Path, depth: int) -> None:
    deep = "[" * depth + "]" * depth
    (tmp_path / "in.jsonl").write_text(f'{{"text": "x", "n": {deep}}}\n' * 2)
    found = [row["n"] for row in read(tmp_path / "in.jsonl")[0]]
    assert [each if isinstance(each, str) else json.dumps(each) for each in found] == [deep] * 2


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_line_without_end(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_LINE", 1000)
    bodies = {"csv": "id,text\n1,{0}\n2,好\n", "jsonl": '{{"id": "1", "text": "{0}"}}\n{{"id": "2", "text": "好"}}\n'}
    (tmp_path / f"in.{kind}").write_text(bodies[kind].format("长" * 5000), encoding="utf-8")
    data, rejects = read(tmp_path / f"in.{kind}")
    assert (reasons(rejects), ids(data)) == ([(1, text_files.TOO_LONG)], ["2"])


# Bytes and encodings


def test_bytes_that_are_no_text_are_replaced_and_counted(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes("id,text\n1,你好\n2,".encode() + b"a\xff\xfeb\n" + "3,好\n".encode())
    (tmp_path / "in.jsonl").write_bytes(b'{"id": "\xff", "text": "x"}\n')
    pq.write_table(pa.table({"id": ["5"], "text": pa.array([b"\xffx"], pa.binary())}), tmp_path / "in.parquet")
    for name, texts, replaced in (
        ("in.csv", ["你好", "a\ufffd\ufffdb", "好"], [0, 2, 0]),
        ("in.jsonl", ["x"], [1]),
        ("in.parquet", ["\ufffdx"], [1]),
    ):
        ((_, block),) = blocks(open_sources([tmp_path / name], ReadOptions()))
        assert (block.texts.to_pylist(), block.replaced.tolist(), block.rejects) == (texts, replaced, [])
        assert read(tmp_path / name, strict=True)[1][0].reason == "not UTF-8"


def test_strings_in_parquet_that_are_not_utf8(tmp_path: Path) -> None:
    lying = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xff\xfe"))
    columns = {"text": ["a", "b"], "name": lying, "other": lying.dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    data, rejects = read(tmp_path / "in.parquet")
    assert [row["name"] for row in data] == [row["other"] for row in data] == ["ok", "\ufffd\ufffd"]
    assert rejects == []


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("encoding", ["gb18030", "big5"])
def test_another_encoding_is_found_at_once_and_named(tmp_path: Path, encoding: str, suffix: str) -> None:
    text = "請您今天還錢，我們不是在開玩笑" if encoding == "big5" else THREAT
    lines = {"csv": f"text\n{text}\n", "jsonl": json.dumps({"text": text}, ensure_ascii=False)}[suffix]
    path = tmp_path / f"in.{suffix}"
    path.write_bytes(lines.encode(encoding))
    with pytest.raises(InputError, match=rf"isn't UTF-8: 1 of its first . lines .*: --encoding {encoding} \(or"):
        read(path)
    assert read(path, encoding=encoding)[0][0]["text"] == text
    assert "\ufffd" in read(path, encoding="utf-8")[0][0]["text"]


def test_a_few_broken_lines_are_no_other_encoding(tmp_path: Path) -> None:
    good = "".join(f"{n},你好\n" for n in range(9)).encode()
    (tmp_path / "in.csv").write_bytes(b"id,text\n" + good + f"9,{THREAT}\n".encode("gbk"))
    assert len(read(tmp_path / "in.csv")[0]) == 10


def test_utf16_is_read_by_its_mark(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\n1,你好\n2,再见\n", encoding="utf-16")
    assert read(tmp_path / "in.csv")[0] == [{"id": "1", "text": "你好"}, {"id": "2", "text": "再见"}]


# Columns of several files, ids, what is kept of rejects


def test_columns_of_several_files_are_united(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "n": [1], "only": ["x"]}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("n,text\ntwo,b\n")
    (tmp_path / "c.jsonl").write_text('{"text": "c", "n": [3]}\n')
    data, rejects = read(*(tmp_path / name for name in ("a.parquet", "b.csv", "c.jsonl")))
    assert rejects == []
    assert [(row["text"], row["n"], row["only"]) for row in data] == [
        ("a", "1", "x"),
        ("b", "two", None),
        ("c", "[3]", None),
    ]


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        (pa.array([2**60 + 1]), pa.array([0.5]), [str(2**60 + 1), "0.5"]),
        (pa.array([-1]), pa.array([2**64 - 1], pa.uint64()), ["-1", str(2**64 - 1)]),
        (pa.array([[2**60 + 1]]), pa.array([[0.5]]), [f"[{2**60 + 1}]", "[0.5]"]),
        (pa.array([2**62], pa.timestamp("us")), pa.array([1], pa.timestamp("ns")),
         ["<value out of range: 4611686018427387904>", "1970-01-01 00:00:00.000000001"]),
        (pa.array([5], pa.int32()), pa.array([0.5]), [5.0, 0.5]),
        (pa.array([5], pa.int8()), pa.array([200], pa.uint8()), [5, 200]),
        (pa.array([{"a": 1}]), pa.array([{"b": "x"}]), [{"a": 1, "b": None}, {"a": None, "b": "x"}]),
    ],
)  # fmt: skip
def test_columns_of_two_types_keep_values(tmp_path: Path, one: pa.Array, other: pa.Array, kept: list[Any]) -> None:
    for name, column in (("a", one), ("b", other)):
        pq.write_table(pa.table({"text": ["x"], "n": column}), tmp_path / f"{name}.parquet")
    assert [row["n"] for row in read(tmp_path / "a.parquet", tmp_path / "b.parquet")[0]] == kept


def test_bytes_in_a_dictionary_are_no_text(tmp_path: Path) -> None:
    column = pa.array([b"\xff", b"\xfe"]).dictionary_encode()
    pq.write_table(pa.table({"text": ["a", "b"], "hash": column}), tmp_path / "in.parquet")
    data, rejects = read(tmp_path / "in.parquet", strict=True)
    assert ([row["hash"] for row in data], rejects) == ([b"\xff", b"\xfe"], [])


@pytest.mark.parametrize("coded", [False, True])
def test_few_long_texts_of_parquet_dont_fill_memory(tmp_path: Path, coded: bool) -> None:
    texts = pa.array([f"{n % 3}" + "长" * 20_000 for n in range(1000)])  # 60 KB each; the file has 0.2 MB
    pq.write_table(pa.table({"text": texts.dictionary_encode() if coded else texts}), tmp_path / "in.parquet")
    found = [block for _, block in blocks(open_sources([tmp_path / "in.parquet"], ReadOptions()))]
    assert [len(block.texts) for block in found] == [128] * 7 + [104]
    assert [text for block in found for text in block.texts.to_pylist()] == texts.to_pylist()


def test_a_file_without_any_text_has_only_rejects(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.nulls(2)}), tmp_path / "b.parquet")
    data, rejects = read(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert (data, reasons(rejects)) == ([{"text": "a"}], [(1, "null text"), (2, "null text")])


def test_views_are_read_as_strings(tmp_path: Path) -> None:
    table = pa.table(
        {"text": pa.array(["a", None, "c"], pa.string_view()), "b": pa.array([b"x"] * 3, pa.binary_view())}
    )
    pq.write_table(table, tmp_path / "in.parquet")
    data, rejects = read(tmp_path / "in.parquet")
    assert (data, reasons(rejects)) == ([{"text": "a", "b": b"x"}, {"text": "c", "b": b"x"}], [(2, "null text")])


def test_rejects_have_the_id_and_on_request_the_row(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b"id,text\nm1,a,b\nm2,ok\n\xff\n")
    (tmp_path / "in.jsonl").write_text('{"id": 7, "text": null}\n')
    pq.write_table(pa.table({"id": ["p"], "text": pa.array([None], pa.string())}), tmp_path / "in.parquet")
    found = read(*(tmp_path / f"in.{kind}" for kind in ("csv", "jsonl", "parquet")), id="id", keep=True)[1]
    assert found == [
        Reject(1, "wrong number of fields", "m1", "m1,a,b"),
        Reject(3, "wrong number of fields", "\ufffd", "\\xff"),
        Reject(1, "null text", "7", '{"id": 7, "text": null}'),
        Reject(1, "null text", "p", '{"id": "p", "text": null}'),
    ]
    assert {each.line for each in read(tmp_path / "in.csv", id="id")[1]} == {""}


def test_reading_of_some_columns(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows(3)), tmp_path / "in.parquet")
    (tmp_path / "in.jsonl").write_text('{"text": "x", "id": 5, "rest": {}}\n')
    data, _ = read(tmp_path / "in.parquet", tmp_path / "in.jsonl", columns=("text", "id", "absent"))
    assert data[0].keys() == {"text", "id"}
    assert ids(data) == ["0", "1", "2", "5"]


# From any row on


@pytest.mark.parametrize("name", ["in.parquet", "in.csv", "in.jsonl"])
def test_what_follows_a_block_does_not_depend_on_where_reading_began(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (readers, text_files):
        monkeypatch.setattr(module, "ROWS", 7)
    data = [row | {"text": None if n % 5 == 3 and "csv" not in name else row["text"]} for n, row in enumerate(rows(60))]
    if name == "in.parquet":
        pq.write_table(pa.Table.from_pylist(data), tmp_path / name, row_group_size=25)
    elif name == "in.csv":
        (tmp_path / name).write_text("id,text\n" + "".join(f'{n},"{n}\n好"\n' for n in range(60)), encoding="utf-8")
    else:
        json_lines.write(tmp_path / name, data)
    sources = open_sources([tmp_path / name], ReadOptions())
    whole = [block for _, block in blocks(sources)]
    assert len(whole) > 8
    for number, block in enumerate(whole):
        rest = [each for _, each in blocks(sources, 0, block.next)]
        assert [(each.next, each.batch.to_pylist(), each.rejects) for each in rest] == [
            (each.next, each.batch.to_pylist(), each.rejects) for each in whole[number + 1 :]
        ]


@pytest.mark.parametrize(
    ("name", "body", "how", "error", "message"),
    [
        *(("in.csv", "text\nx\n", {"delimiter": each}, ConfigError, "isn't a character that can separate fields")
          for each in ("", ";;", '"', "\n")),
        *(("in.csv", "text\nx\n", {"encoding": each}, ConfigError, r"encoding .* is unknown; name one such as")
          for each in ("klingon", "undefined", "a\0")),
        *(("in.csv", body, {}, InputError, "does not begin with a header of column names") for body in ('"a\n', "\n")),
        *(("in.json", body, {}, InputError, r"has no JSON object in its first \d lines; wanted one object a line")
          for body in ('[{"text": "x"}]\n', '{\n"text": "x"\n}\n')),
    ],
)  # fmt: skip
def test_wrong_options_and_forms(
    tmp_path: Path, name: str, body: str, how: dict[str, str], error: type[Exception], message: str
) -> None:
    (tmp_path / name).write_text(body)
    with pytest.raises(error, match=message):
        read(tmp_path / name, **how)


# Files


def test_a_first_row_without_names_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(
        "13800001111,再不还钱就上门！,ok,这一行没有列名所以这里其实是一条消息的全文\n1,a,b,c\n"
    )
    wanted = r"has no column 'text'; it has: \(not shown\), \(not shown\), ok, \(not shown\); name one"
    with pytest.raises(ConfigError, match=wanted):
        read(tmp_path / "in.csv")


def test_missing_column_lists_those_there(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows(3)), tmp_path / "in.parquet")
    with pytest.raises(ConfigError, match="has no column 'sms'; it has: id, text, old, family; name one"):
        read(tmp_path / "in.parquet", text="sms")
    with pytest.raises(ConfigError, match=r"column 'id' of .* is int64, wanted strings"):
        read(tmp_path / "in.parquet", text="id")
    with pytest.raises(ConfigError, match="has no column 'key' for --id-column; it has: id, text, old, family"):
        read(tmp_path / "in.parquet", id="key")
    (tmp_path / "in.csv").write_text("text,text\na,b\n")
    with pytest.raises(InputError, match="has columns of the same name: text, text; rename them"):
        read(tmp_path / "in.csv")


@pytest.mark.parametrize("left", [0.5, 0.99])
def test_truncated_parquet(tmp_path: Path, left: float) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(rows(150)), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    with pytest.raises(InputError, match=r"in.parquet is damaged or truncated"):
        read(path)


@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_truncated_text(tmp_path: Path, codec: str) -> None:
    data = pa.compress(b'{"text": "x"}\n' * 90_000, {"gz": "gzip", "zst": "zstd"}[codec], asbytes=True)
    (tmp_path / f"in.jsonl.{codec}").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"in.jsonl.* is damaged or truncated"):
        read(tmp_path / f"in.jsonl.{codec}")


@pytest.mark.parametrize("name", ["in.parquet", "in.csv", "in.jsonl"])
def test_files_that_cant_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"is empty \(0 bytes\)"):
        find([tmp_path / name], tmp_path / "out")
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match="does not exist, and as a pattern it matches nothing"):
        find([tmp_path / name], tmp_path / "out")
    (tmp_path / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"can't be read: No such file or directory"):
        find([tmp_path / "in.*"], tmp_path / "out")


def test_files_of_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv.gz", "notes.txt", "_part.csv", "deep/c.parquet", ".hidden/d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    out = tmp_path.parent / "out"
    assert [path.name for path in find([tmp_path], out)] == ["a.csv.gz", "b.jsonl", "c.parquet"]
    assert [path.name for path in find([tmp_path / "*.jsonl", tmp_path / "**" / "*.parquet"], out)] == [
        "b.jsonl",
        "c.parquet",
    ]
    with pytest.raises(ConfigError, match="an input file is named twice"):
        find([tmp_path, tmp_path / "b.jsonl"], out)
    with pytest.raises(ConfigError, match=r"the format of 'notes.txt' is unknown; known are \*.parquet"):
        find([tmp_path / "notes.txt"], out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no file to read"):
        find([tmp_path / "empty"], out)


def test_no_file_of_a_folder_is_left_out_silently(tmp_path: Path) -> None:
    (folder := tmp_path / "in").mkdir()
    (elsewhere := tmp_path / "elsewhere").mkdir()
    for file in (folder / "a.csv", elsewhere / "b.csv", folder / "_moved.csv"):
        file.write_text("text\nx\n")
    (folder / "link").symlink_to(elsewhere)
    assert [path.name for path in find([folder])] == ["a.csv", "b.csv"]
    assert [path.name for path in find([folder / "*.csv"])] == ["a.csv"]
    (gone := folder / "gone.csv").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"gone.csv can't be read: No such file or directory"):
        find([folder])
    gone.unlink()
    (folder / "c.csv.bz2").touch()
    with pytest.raises(ConfigError, match=r"the format of 'c.csv.bz2' is unknown; .* leave it out"):
        find([folder])


# Any archive: whatever stands in other columns, every row is scored or rejected with its reason


ROWS = st.lists(
    st.fixed_dictionaries(
        {"text": TEXTS | st.none() | st.integers()}, optional=dict.fromkeys(("time", "n", "x"), VALUES),
    ),
    min_size=1, max_size=30,
)  # fmt: skip


@settings(max_examples=60)
@given(
    ROWS,
    st.sampled_from(["utf-8", "utf-8-sig", "gb18030", "utf-16"]),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(1, 9),
)
def test_any_json(tmp_path_factory: Any, data: list[dict[str, Any]], encoding: str, end: str, size: int) -> None:
    path = tmp_path_factory.mktemp("any") / "in.jsonl"
    lines = [json.dumps(row, ensure_ascii=encoding == "utf-8") for row in data]
    path.write_bytes(end.join(lines).encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "ROWS", size)  # the types are those of the first rows alone
        found, rejects = read(path, encoding=None if "utf" in encoding else encoding)
    wanted = {n: "null text" if row["text"] is None else "column 'text' is a number, wanted text"
              for n, row in enumerate(data, 1) if not isinstance(row["text"], str)}  # fmt: skip
    assert dict(reasons(rejects)) == wanted
    kept = [row for row in data if isinstance(row["text"], str)]
    assert [row["text"] for row in found] == [row["text"] for row in kept]
    for row, given_row in zip(found, kept, strict=True):  # and nothing else of a row is lost
        rescued = json.loads(row[RESCUED] or "{}")
        for name, value in given_row.items():
            assert same(rescued.get(name, row.get(name)), value), name


def same(found: object, given_value: object) -> bool:
    """Whether a value is kept, be it as text or with the keys that others have."""
    if isinstance(found, str) and not isinstance(given_value, str):
        return json.loads(found) == given_value
    if isinstance(found, dict) and isinstance(given_value, dict):
        return {key: value for key, value in found.items() if value is not None} == given_value
    return found == given_value


@settings(max_examples=40)
@given(
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=30),
    st.sampled_from(["utf-8", "utf-8-sig", "gb18030", "utf-16"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(",;\t"),
)
def test_any_csv(
    tmp_path_factory: Any, data: list[tuple[str, str]], encoding: str, end: str, quoting: Any, delimiter: str
) -> None:
    path = tmp_path_factory.mktemp("any") / "in.csv"
    if any("\r" in field for row in data for field in row):
        quoting = csv.QUOTE_ALL  # Python 3.11 would leave it open
    lines = io.StringIO()
    csv.writer(lines, lineterminator=end, quoting=quoting, delimiter=delimiter).writerows([("id", "text"), *data])
    path.write_bytes(lines.getvalue().encode(encoding))
    found, rejects = read(path, encoding=None if "utf" in encoding else encoding, delimiter=delimiter)
    assert rejects == []
    assert [(row["id"], row["text"]) for row in found] == data


def damaged(lines: list[bytes]) -> Iterator[bytes]:
    for n, line in enumerate(lines):
        yield line[: len(line) // 2] + b"\xff" + line[len(line) // 2 :] if n % 3 == 0 else line


@settings(max_examples=20)
@given(st.lists(st.text("还钱你好abc", min_size=2, max_size=9), min_size=1, max_size=30))
def test_a_bad_byte_anywhere_costs_no_text(tmp_path_factory: Any, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("any") / "in.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in ["还钱", *texts]]
    path.write_bytes(b"\n".join([lines[0], *damaged(lines[1:])]))
    found, rejects = read(path, encoding="utf-8")
    assert len(found) + len(rejects) == len(texts) + 1
    assert {reason for _, reason in reasons(rejects)} <= {"malformed JSON", "null text"}  # the byte hit what isn't text
