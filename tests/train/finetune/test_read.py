import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from jingyin.model.errors import ConfigError, InputError
from jingyin.train.finetune_data import Columns, Labelled, parse_meanings, read_labelled, read_unlabelled

OUT = Path("nowhere")
ROWS = [("转三百给你安静", "pay_to_stop"), ("明天吃面", "ordinary"), ("还钱，不然打爆", "flagged")]


def read(path: Path, **columns: object) -> list[Labelled]:
    return read_labelled([str(path)], Columns(**columns), OUT)  # type: ignore[arg-type]


def csv(folder: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = folder / "mine.csv"
    path.write_text("\n".join(("text,label", *lines)) + "\n", encoding=encoding)
    return path


def jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def as_rows(found: list[Labelled]) -> list[tuple[str, str]]:
    return [(row.text, row.label) for row in found]


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    texts, labels = zip(*ROWS, strict=True)
    pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "mine.parquet")
    files = [
        csv(tmp_path, *(f"{text},{label}" for text, label in ROWS)),
        jsonl(tmp_path, *({"text": text, "label": label} for text, label in ROWS)),
        tmp_path / "mine.parquet",
    ]
    for path in files:
        found = read(path)
        assert as_rows(found) == ROWS
        assert found[1].where.startswith(f"{path}: row ")
    assert len(read_labelled(list(map(str, files)), Columns(), OUT)) == 9


def test_a_folder_that_datasets_saved(tmp_path):
    names = sorted({label for _, label in ROWS})
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    split = Dataset.from_dict(
        {"text": [t for t, _ in ROWS], "label": [names.index(x) for _, x in ROWS]}, features=features
    )
    split.save_to_disk(tmp_path / "one")
    DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "two")
    assert as_rows(read(tmp_path / "one")) == ROWS
    found = read(tmp_path / "two")
    assert as_rows(found) == ROWS * 2
    assert found[0].where == f"{tmp_path}/two/train: row 1"


def test_answers_of_label_studio(tmp_path):
    tasks = [
        {"data": {"text": text}, "annotations": [{"result": [{"type": "choices", "value": {"choices": [label]}}]}]}
        for text, label in [*ROWS[:2], ("再看看", "ordinary"), ("再看看", "debt_threat")]
    ]
    tasks[2]["annotations"] += tasks[3]["annotations"]  # two people, two answers
    tasks[3] = {"data": {"text": "没人看过"}, "annotations": []}
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    found = read(path)
    assert as_rows(found) == ROWS[:2]
    assert found[0].where == f"{path}: answer 1"
    path.write_text(json.dumps([{"text": "no task"}]), encoding="utf-8")
    with pytest.raises(InputError, match=r"export\.json is no Label Studio export"):
        read(path)


def test_columns_and_labels_of_another_scheme(tmp_path):
    path = jsonl(tmp_path, {"sms": "转三百", "spam": 1}, {"sms": "吃面", "spam": 0})
    meanings = parse_meanings(["1=flagged", "0=not_flagged"])
    assert as_rows(read(path, text="sms", label="spam", meanings=meanings)) == [
        ("转三百", "flagged"),
        ("吃面", "not_flagged"),
    ]


def test_another_coding(tmp_path):
    path = csv(tmp_path, "转三百,pay_to_stop", encoding="gb18030")
    assert as_rows(read(path, encoding="gb18030")) == [("转三百", "pay_to_stop")]
    with pytest.raises(
        InputError, match=r"mine\.csv: row 1: not UTF-8; name the file's coding with --encoding, say gb18030"
    ):
        read(path)
    with pytest.raises(ConfigError, match="encoding 'klingon' is unknown; name one such as utf-8 or gb18030"):
        read(path, encoding="klingon")
    assert as_rows(read(csv(tmp_path, "转三百,pay_to_stop", encoding="utf-16"))) == [("转三百", "pay_to_stop")]


def test_every_row_that_cannot_be_used_is_named(tmp_path):
    path = csv(tmp_path, "吃面,ordinary", " ,ordinary", "转三百,extortion", "见面,", f"{'长' * 1001},ordinary")
    with pytest.raises(InputError) as error:
        read(path)
    lines = str(error.value).splitlines()
    assert lines[0] == "4 row(s) can't be used:"
    assert lines[1] == f"{path}: row 2: an empty text; give it one, or drop it"
    assert lines[2].startswith(f"{path}: row 3: unknown label 'extortion'; known are ordinary, ")
    assert lines[2].endswith("flagged, not_flagged: say what it means with --label-map extortion=LABEL")
    assert lines[3] == f"{path}: row 4: no label; give it one, or drop it"
    assert lines[4] == f"{path}: row 5: a text of 1,001 characters, 1,000 at most; cut it to the message, or drop it"
    assert "长" not in str(error.value)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_fifty_megabytes_in_one_cell(tmp_path, kind):
    text = "x" * (50 << 20)
    rows = [("吃面", "ordinary"), (text, "ordinary")]
    if kind == "csv":
        path = csv(tmp_path, *map(",".join, rows))
    else:
        path = jsonl(tmp_path, *(dict(zip(("text", "label"), row, strict=True)) for row in rows))
    with pytest.raises(InputError, match=r"row 2: line over 4 MiB; cut it to the message, or drop it"):
        read(path)


def test_more_errors_than_are_shown(tmp_path):
    path = csv(tmp_path, *["吃面,spam"] * 25)
    with pytest.raises(InputError, match=r"^25 row\(s\) can't be used:(?s:.*)\n\.\.\. and 5 more$"):
        read(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "sms"}, r"has no column 'sms'; it has: text, label; name one of them with --text-column"),
        ({"label": "spam"}, r"has no column 'spam'; it has: text, label; name one with --label-column"),
    ],
)
def test_columns_that_are_not_there(tmp_path, columns, message):
    with pytest.raises(ConfigError, match=message):
        read(csv(tmp_path, "吃面,ordinary"), **columns)


@pytest.mark.parametrize("given", ["spam", "spam=evil", "="])
def test_a_map_that_is_none(given):
    with pytest.raises(ConfigError, match=r"--label-map '.*' is not OLD=NEW with NEW one of ordinary, .*, not_flagged"):
        parse_meanings([given])


def test_traffic_needs_no_labels(tmp_path):
    path = jsonl(tmp_path, {"text": "吃面"}, {"text": ""}, {"text": "见面"})
    assert read_unlabelled([str(path)], Columns(label="none"), OUT) == ["吃面", "见面"]
    assert read_unlabelled([], Columns(), OUT) == []
