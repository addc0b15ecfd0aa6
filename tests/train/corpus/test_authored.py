import json

import pytest

from jingyin.model.errors import InputError
from jingyin.train.corpus.rows import default_folders, load, scan

ROW = {"text": "欠{amount}不还，明天去你单位", "label": "debt_threat", "family": "exposure_employer", "voice": "thug"}


def write(path, *rows):
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_row_becomes_a_record_that_says_where_it_stands(tmp_path):
    path = write(tmp_path / "a.jsonl", "", ROW)
    (record,) = load(path)
    assert (record.text, record.label, record.family, record.voice) == tuple(ROW.values())
    assert (record.source, record.group, record.where) == ("authored", "", f"{path}:2")


def test_a_folder_is_read_in_order_of_name(tmp_path):
    write(tmp_path / "b.jsonl", ROW | {"text": "二"})
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "x.jsonl", ROW | {"text": "一"})
    assert [record.text for record in load(tmp_path)] == ["一", "二"]


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ("{", "Invalid JSON"),
        ("[1]", "Input should be an object"),
        ("[" * 5_000, "Invalid JSON: recursion limit"),
        (ROW | {"label": "spam"}, "label: 'spam' is unknown; known: ordinary"),
        (ROW | {"voice": "robot"}, "voice: 'robot' is unknown"),
        (ROW | {"text": " "}, "text: is empty"),
        (ROW | {"text": 7}, "text: Input should be a valid string"),
        ({k: v for k, v in ROW.items() if k != "family"}, "family: Field required"),
        (ROW | {"lable": "x"}, "lable: Extra inputs are not permitted"),
        (ROW | {"pair": 3}, "pair: Input should be a valid string"),
        (ROW | {"text": "{phne}"}, "text: unknown slot {phne}"),
        (ROW | {"text": "转{amount来"}, "text: a brace that belongs to no slot"),
        (ROW | {"text": "转{amount}}来"}, "text: a brace that belongs to no slot"),
        (ROW | {"text": "长" * 1_001}, "text: Value should have at most 1000"),
        (json.dumps(ROW | {"text": "\ud800"}), "Invalid JSON"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, row, error):
    path = write(tmp_path / "a.jsonl", ROW, row)
    _, (found,) = scan(path)
    assert found.startswith(f"{path}:2: {error}")


def test_a_row_lies_in_the_folder_of_its_label(tmp_path):
    (tmp_path / "debt_threat").mkdir()
    path = write(tmp_path / "debt_threat" / "violence.jsonl", ROW | {"label": "ordinary"})
    _, (found,) = scan(tmp_path)
    assert found == f"{path}:1: label 'ordinary' in the folder debt_threat; move the row, or mend its label"


def test_all_errors_come_at_once_and_hold_no_text(tmp_path):
    path = write(tmp_path / "a.jsonl", *[ROW | {"label": "x", "text": f"秘密{i}"} for i in range(30)])
    with pytest.raises(InputError, match=r"a\.jsonl:20: .*\n\.\.\. and 10 more") as error:
        load(path)
    assert "秘密" not in str(error.value)


def test_wrong_encoding(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes("短信".encode("gbk") + b"\n" + json.dumps(ROW).encode())
    records, (error,) = scan(path)
    assert len(records) == 1
    assert error.startswith(f"{path}:1: Invalid JSON")


def test_duplicates_and_broken_pairs(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        ROW,
        ROW,
        ROW | {"text": "甲", "pair": "p1"},
        ROW | {"text": "乙", "pair": "p2"},
        ROW | {"text": "丙", "pair": "p2"},
    )
    assert scan(path)[1] == [
        f"{path}:2: the same text as {path}:1; drop one",
        f"{path}:3: pair 'p1' has 1 rows; a pair id belongs to two",
        f"{path}:4: pair 'p2' has one label; the rows of a pair differ in label",
    ]


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match="no authored messages here"):
        load(tmp_path)
    with pytest.raises(InputError, match="can't be read"):
        load(tmp_path / "none.jsonl")


@pytest.mark.exhaustive
def test_the_messages_in_the_package_are_sound():
    assert [error for folder in default_folders() for error in scan(folder)[1]] == []


def test_case_and_writer_are_kept(tmp_path):
    path = write(tmp_path / "a.jsonl", ROW | {"case": "B07", "writer": "w2"}, ROW | {"text": "甲"})
    assert [(record.case, record.writer) for record in load(path)] == [("B07", "w2"), ("", "unknown")]
    _, (error,) = scan(write(tmp_path / "b.jsonl", ROW | {"case": 7}))
    assert error.endswith("b.jsonl:1: case: Input should be a valid string")
