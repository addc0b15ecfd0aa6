import codecs
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tests import json_lines

from jingyin.model.errors import ConfigError, InputError
from jingyin.model.text import clean
from jingyin.serve.archive.text_files import TOO_LONG
from jingyin.train import finetune_data
from jingyin.train.corpus.public import HIDDEN_LABEL, fingerprint
from jingyin.train.finetune_data import (
    Columns,
    Labelled,
    UnusableRow,
    count_once,
    is_flagged,
    parse_meanings,
    read_labelled,
    read_unlabelled,
    summary,
)

OUT = Path("nowhere")
ROWS = [("转三百给你安静", "pay_to_stop"), ("明天吃面", "ordinary"), ("还钱，不然打爆", "flagged")]


def read(path: Path, **columns: object) -> list[Labelled]:
    return read_labelled([str(path)], Columns(**columns), OUT)[0]  # type: ignore[arg-type]


def csv(folder: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = folder / "mine.csv"
    path.write_text("\n".join(("text,label", *lines)) + "\n", encoding=encoding)
    return path


def jsonl(folder: Path, *rows: object) -> Path:
    return json_lines.write(folder / "mine.jsonl", rows)


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
    assert as_rows(read_labelled(list(map(str, files)), Columns(), OUT)[0]) == ROWS  # each message once


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
    assert as_rows(found) == ROWS
    assert found[0].where == f"{tmp_path}/two/train: row 1"


def test_answers_of_label_studio(tmp_path):
    tasks = [
        {"data": {"text": text}, "annotations": [{"result": [{"type": "choices", "value": {"choices": [label]}}]}]}
        for text, label in [("再看看", "ordinary"), ("再看看", "debt_threat"), *ROWS[:2]]
    ]
    tasks[0]["annotations"] += tasks[1]["annotations"]  # two people, two answers
    tasks[1] = {"data": {"text": "没人看过"}, "annotations": []}
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    found, rejects = read_labelled([str(path)], Columns(), OUT)
    assert as_rows(found) == ROWS[:2]
    assert found[0].where == f"{path}: task 3"
    assert [tuple(each) for each in rejects] == [
        (f"{path}: task 1", "a message with several labels", "decide which is right")
    ]
    path.write_text(json.dumps([{"text": "no task"}]), encoding="utf-8")
    with pytest.raises(InputError, match=r"export\.json is no Label Studio export"):
        read(path)


def export(folder: Path, *answers: tuple[object, str], name: str = "text", mark: bytes = b"") -> Path:
    tasks = [
        {"data": {name: text}, "annotations": [{"result": [{"type": "choices", "value": {"choices": [label]}}]}]}
        for text, label in answers
    ]
    (folder / "export.json").write_bytes(mark + json.dumps(tasks).encode())
    return folder / "export.json"


def test_answers_are_judged_one_by_one_as_rows_are(tmp_path):
    answers = [
        ("转三百", "敲诈"), ("吃面", "flagged"), ("见面", "再看看"), ("再会", "ordinary"), ("再会", "debt_threat"),
        ("半个\ud83d", "ordinary"), (["两段", "话"], "ordinary"),
    ]  # fmt: skip
    path = export(tmp_path, *answers, name="sms", mark=codecs.BOM_UTF8)
    columns = Columns("sms", meanings={"敲诈": "pay_to_stop"})
    found, rejects = read_labelled([str(path)], columns, OUT)
    assert as_rows(found) == [("转三百", "pay_to_stop"), ("吃面", "flagged")]
    assert [(each.where.removeprefix(f"{path}: task "), each.fault) for each in rejects] == [
        ("3", HIDDEN_LABEL), ("6", "half a character"), ("7", "no text"),
        ("4", "a message with several labels"), ("5", "debt_threat, but the same message is ordinary elsewhere"),
    ]  # fmt: skip
    assert as_rows(read(export(tmp_path, ("转三百", "pay_to_stop")), text="sms")) == [("转三百", "pay_to_stop")]


def test_a_row_without_a_label_gets_none(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["ordinary", "pay_to_stop"])})
    Dataset.from_dict({"text": ["吃面", "见面"], "label": [0, -1]}, features=features).save_to_disk(tmp_path / "set")
    pq.write_table(pa.table({"text": ["再会", "晚安"], "label": [1.0, float("nan")]}), tmp_path / "nan.parquet")
    places = [str(tmp_path / "set"), str(tmp_path / "nan.parquet")]
    found, rejects = read_labelled(places, Columns(meanings={"1.0": "flagged"}), OUT)
    assert as_rows(found) == [("吃面", "ordinary"), ("再会", "flagged")]
    assert [each.fault for each in rejects] == ["no label"] * 2


def test_labels_of_another_type_late_in_a_file_count(tmp_path):
    def spelt(number: int) -> str:
        return "".join("零一二三四五六七八九"[int(digit)] for digit in f"{number:04d}") + "号"

    rows = [{"text": spelt(i), "label": 1} for i in range(4100)]
    path = jsonl(tmp_path, *rows, {"text": "吃面", "label": "ordinary"})
    found, rejects = read_labelled([str(path)], Columns(meanings={"1": "flagged"}), OUT)
    assert not [each for each in rejects if each.fault == "no label"]
    assert as_rows(found)[-1] == ("吃面", "ordinary")


def test_a_text_of_invisible_characters_is_no_text(tmp_path):
    path = jsonl(tmp_path, {"text": "\u200b\u2060", "label": "flagged"}, {"text": "吃面", "label": "ordinary"})
    found, (reject,) = read_labelled([str(path)], Columns(), OUT)
    assert (as_rows(found), reject.fault) == ([("吃面", "ordinary")], "no text")
    texts, (reject,) = read_unlabelled([str(path)], Columns(), OUT)
    assert (texts, reject.fault) == (["吃面"], "no text")


CASE = "不给三百，你店里的电话就别想停"


def test_rows_say_where_they_come_from_and_near_copies_of_a_case_count_once(tmp_path):
    path = jsonl(
        tmp_path,
        {"text": CASE, "label": "pay_to_stop", "count": 900, "decided": "2026-12-01T00:00:00Z", "source": "cases"},
        {"text": f"{CASE}哦", "label": "pay_to_stop", "count": 1, "source": "cases"},
        {"text": CASE.replace("三", "五"), "label": "pay_to_stop"},
        {"text": f"有人收到{CASE}吗", "label": "ordinary", "count": 2, "source": "cases"},
        {"text": "吃面", "label": "ordinary", "source": "mined"},
        {"text": "见面", "label": "ordinary", "source": "elsewhere"},
    )
    found, rejects = read_labelled([str(path)], Columns(), OUT)
    assert not rejects
    assert [(row.text, row.source) for row in count_once(found)] == [
        (CASE, "cases"), (f"有人收到{CASE}吗", "cases"), ("吃面", "mined"), ("见面", "own"),
    ]  # fmt: skip
    alike = [row for row in found if row.source != "cases"]
    assert count_once(alike) == alike


def test_a_label_that_somebody_gave_beats_that_of_a_mined_message(tmp_path):
    rows = {"text": CASE, "label": "ordinary", "source": "mined"}, {"text": CASE, "label": "pay_to_stop"}
    found, rejects = read_labelled([str(jsonl(tmp_path, *rows))], Columns(), OUT)
    assert (as_rows(found), rejects) == ([(CASE, "pay_to_stop")], [])


def test_mined_messages_are_no_traffic(tmp_path):
    rows = [{"text": "吃面", "source": "mined"}, {"text": "见面", "why": "riskiest"}, {"text": "再会", "source": "web"}]
    texts, rejects = read_unlabelled([str(jsonl(tmp_path, *rows))], Columns(), OUT)
    assert texts == ["再会"]
    assert [each.fault for each in rejects] == ["a message that `jingyin mine` picked or drew"] * 2


def test_the_map_that_a_reject_names_is_quoted_for_a_shell(tmp_path):
    _, (reject, _) = read_labelled([str(csv(tmp_path, "吃面,no crime", "见面,no crime"))], Columns(), OUT)
    assert reject.remedy.startswith("say what it means with --label-map 'no crime=LABEL', one of ordinary, ")


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
    found, (reject,) = read_labelled([str(path)], Columns(), OUT)
    assert not found
    assert reject[1:] == ("not UTF-8", "name the file's coding with --encoding, say gb18030, or mend it")
    _, (reject,) = read_unlabelled([str(path)], Columns(), OUT)
    assert reject.remedy == "name the file's coding with --benign-encoding, say gb18030, or mend it"
    with pytest.raises(ConfigError, match="encoding 'klingon' is unknown; name one such as utf-8 or gb18030"):
        read(path, encoding="klingon")
    assert as_rows(read(csv(tmp_path, "转三百,pay_to_stop", encoding="utf-16"))) == [("转三百", "pay_to_stop")]


def test_rows_that_cannot_be_used_are_left_out_and_told_by_kind(tmp_path):
    path = csv(
        tmp_path,
        "吃面,ordinary",
        " ,ordinary",
        "转三百,extortion",
        "见面,",
        f"{'长' * 1001},ordinary",
        "你好,spam",
        "再会,spam",
    )
    found, rejects = read_labelled([str(path)], Columns(), OUT)
    assert as_rows(found) == [("吃面", "ordinary")]
    assert [each.where.removeprefix(f"{path}: ") for each in rejects] == [f"row {row}" for row in range(2, 8)]
    lines = list(summary(rejects))
    assert lines[0] == (
        f"2 row(s): unknown label 'spam' (first: {path}: row 6); say what it means with --label-map spam=LABEL, one of "
        "ordinary, lawful_collection, debt_threat, pay_to_stop, other_threat, flagged, not_flagged"
    )
    assert [line.split(" (first")[0] for line in lines[1:]] == [
        "1 row(s): no text", f"1 row(s): {HIDDEN_LABEL}", "1 row(s): no label",
        "1 row(s): a text of more than 1,000 characters",
    ]  # fmt: skip
    assert not any("长" in line or "再会" in line for line in lines)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_fifty_megabytes_in_one_cell(tmp_path, kind):
    text = "x" * (50 << 20)
    rows = [("吃面", "ordinary"), (text, "ordinary")]
    if kind == "csv":
        path = csv(tmp_path, *map(",".join, rows))
    else:
        path = jsonl(tmp_path, *(dict(zip(("text", "label"), row, strict=True)) for row in rows))
    found, (reject,) = read_labelled([str(path)], Columns(), OUT)
    assert as_rows(found) == rows[:1]
    assert reject == (f"{path}: row 2", TOO_LONG, "cut it to the message, or drop it")


def test_a_column_of_numbers_and_an_empty_file(tmp_path):
    pq.write_table(pa.table({"text": [1, 2], "label": ["ordinary"] * 2}), tmp_path / "ints.parquet")
    with pytest.raises(ConfigError, match=r"column 'text' of .*ints\.parquet is int64, wanted strings; name another"):
        read(tmp_path / "ints.parquet")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(InputError, match=r"empty\.csv is empty \(0 bytes\); leave it out or copy it again"):
        read(tmp_path / "empty.csv")


def test_broken_bytes_among_gb18030(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes("text,label\n转三百,pay_to_stop\n".encode("gb18030") + b"\xff\xff,ordinary\n")
    found, (reject,) = read_labelled([str(path)], Columns(encoding="gb18030"), OUT)
    assert as_rows(found) == [("转三百", "pay_to_stop")]
    assert reject[:2] == (f"{path}: row 2", "not GB18030")


def test_each_message_is_kept_once_with_its_fullest_label(tmp_path):
    rows = [("转三百给我", "flagged"), ("转 三百 给我", "pay_to_stop"), ("转五百给我", "flagged")]
    found = read(csv(tmp_path, *map(",".join, rows)))  # sums of one size are one clean text
    assert as_rows(found) == [("转 三百 给我", "pay_to_stop")]


@pytest.mark.parametrize(
    ("one", "other"),
    [("flagged", "not_flagged"), ("flagged", "ordinary"), ("debt_threat", "pay_to_stop"), ("ordinary", "pay_to_stop")],
)
def test_a_message_with_labels_that_contradict_is_left_out(tmp_path, one, other):
    path = csv(tmp_path, f"转三百给我,{one}", f"转五百给我,{other}", f"转三百给我,{one}", "吃面,ordinary")
    found, rejects = read_labelled([str(path)], Columns(), OUT)
    assert as_rows(found) == [("吃面", "ordinary")]
    assert [each.where for each in rejects] == [f"{path}: row {number}" for number in (1, 2, 3)]  # each of the three
    assert [each.fault for each in rejects] == [
        "a message with several labels", f"{other}, but the same message is {one} elsewhere",
        "a message with several labels",
    ]  # fmt: skip


def test_a_label_has_one_meaning():
    assert parse_meanings(["1=flagged", "1=flagged"]) == {"1": "flagged"}
    with pytest.raises(ConfigError, match="--label-map gives '1' two meanings, flagged and ordinary; leave one out"):
        parse_meanings(["1=flagged", "1=ordinary"])


def test_labels_in_chinese(tmp_path):
    path = csv(tmp_path, "转三百,敲诈", "吃面,正常")
    meanings = parse_meanings(["敲诈=pay_to_stop", "正常=ordinary"])
    assert as_rows(read(path, meanings=meanings)) == [("转三百", "pay_to_stop"), ("吃面", "ordinary")]


def test_what_makes_risk():
    assert [is_flagged(label) for label in ("flagged", "debt_threat", "pay_to_stop")] == [True] * 3
    assert [is_flagged(label) for label in ("not_flagged", "ordinary", "other_threat")] == [False] * 3


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
    assert read_unlabelled([str(path)], Columns(label="none"), OUT) == (
        ["吃面", "见面"], [UnusableRow(f"{path}: row 2", "no text", "give it one, or drop it")],
    )  # fmt: skip
    assert read_unlabelled([], Columns(), OUT) == ([], [])


def test_of_much_traffic_a_sample_by_hash_is_kept(tmp_path, monkeypatch):
    texts = [f"第{chr(0x4E00 + i)}号车位周五能停吗" for i in range(600)]
    path = jsonl(tmp_path, *({"text": text} for text in texts * 2))
    sizes: list[int] = []
    sample = finetune_data._sample
    monkeypatch.setattr(finetune_data, "_sample", lambda texts: sizes.append(len(texts)) or sample(texts))
    monkeypatch.setattr(finetune_data, "MOST_TRAFFIC", 50)
    kept = sorted(texts, key=lambda text: fingerprint(clean(text).text))[:50]
    assert read_unlabelled([str(path)], Columns(), OUT) == ([text for text in texts if text in kept], [])
    assert max(sizes) == 100  # never more at a time
    assert len(sizes) > 10


def test_traffic_that_is_labelled_as_a_threat_is_left_out(tmp_path):
    path = jsonl(tmp_path, {"text": "吃面"}, {"text": "转 三百 给我"}, {"text": "转五百给我！"})
    texts, rejects = read_unlabelled([str(path)], Columns(), OUT, {clean("转三百给我").text})
    assert texts == ["吃面", "转五百给我！"]
    (line,) = summary(rejects)
    assert line == (
        f"1 row(s): traffic that is labelled as a threat elsewhere (first: {path}: row 2); take threats out of "
        "--benign: what stays there is learnt as ordinary"
    )


@pytest.mark.parametrize(
    ("encoding", "message"),
    [("utf-8", "name the coding with --benign-encoding"), ("gb18030", "name one of them with --benign-column")],
)
def test_what_is_wrong_with_traffic_names_the_options_of_traffic(tmp_path, encoding, message):
    path = tmp_path / "traffic.csv"
    path.write_bytes("短信,时间\n吃面,早上\n".encode("gb18030"))
    with pytest.raises((ConfigError, InputError), match=message):
        read_unlabelled([str(path)], Columns(encoding=encoding), OUT)


def test_the_wrong_column_of_labels_is_told_in_a_dozen_lines(tmp_path):
    path = csv(tmp_path, *(f"第{i}条,{i % 250}" for i in range(500)))
    *lines, last = summary(read_labelled([str(path)], Columns(), OUT)[1])
    assert len(lines) == 12
    assert last == "476 row(s): 238 other faults; check that the right columns are named"


@pytest.mark.parametrize("labels", [["转三百", "不转打爆"], ["不转就打爆" * 5] * 2])
def test_labels_that_may_be_messages_are_not_quoted(tmp_path, labels):
    path = csv(tmp_path, *(f"{number},{label}" for number, label in enumerate(labels)))
    (line,) = summary(read_labelled([str(path)], Columns(), OUT)[1])
    assert line.startswith(
        f"2 row(s): unknown label (not shown, because it may be a message) (first: {path}: row 1); say what it means "
        "with --label-map OLD=LABEL, one of ordinary, "
    )
    assert "打爆" not in line


def test_space_around_a_label_does_not_count(tmp_path):
    path = csv(tmp_path, "转三百, pay_to_stop ", "吃面,正常　", "见面, ")
    found, (reject,) = read_labelled([str(path)], Columns(meanings=parse_meanings(["正常 =ordinary"])), OUT)
    assert as_rows(found) == [("转三百", "pay_to_stop"), ("吃面", "ordinary")]
    assert reject.fault == "no label"
