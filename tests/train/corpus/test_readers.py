import gzip
import json
import re

import pytest
from tests import json_lines

from jingyin.model.errors import InputError
from jingyin.train.corpus import build as building
from jingyin.train.corpus.public import SOURCES, read
from jingyin.train.corpus.store import Public

NUS = """<?xml version="1.0" encoding="UTF-8"?>
<smsCorpus date="2015.03.09" version="1.2"><message id="1"><text>还有 &lt;#&gt; 块，晚上见</text>
<source><srcNumber>s1</srcNumber><userProfile><userID>u7</userID></userProfile></source></message>
<message id="2"><text/><source><userProfile><userID>u8</userID></userProfile></source></message></smsCorpus>
"""


def test_nus_xml_keeps_the_user_and_fills_masks(tmp_path):
    path = tmp_path / "smsCorpus_zh.xml"
    path.write_text(NUS, encoding="utf-8")
    (record,) = read("nus", path)
    assert (record.label, record.voice, record.source, record.group) == ("ordinary", "public", "nus", "nus:u7")
    assert record.text.startswith("还有 ")
    assert "<" not in record.text
    assert [record] == list(read("nus", path))


def test_json_lines_may_begin_with_a_mark(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"text": "吃面", "label": "ordinary"}\n', encoding="utf-8-sig")
    assert [record.text for record in read("jsonl", tmp_path / "own.jsonl")] == ["吃面"]


def test_one_s_own_messages_are_never_excluded(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "is_excluded", lambda text: text == "吃面")
    (tmp_path / "own.jsonl").write_text('{"text": "吃面", "label": "pay_to_stop"}\n', encoding="utf-8")
    for kind, kept in (("own", 1), ("jsonl", 1), ("weibo", 0)):
        assert len(list(building._public([Public(kind=kind, path=tmp_path / "own.jsonl")]))) == kept


def test_nus_json(tmp_path):
    message = {"text": {"$": "好的"}, "source": {"userProfile": {"userID": {"$": 12}}}}
    path = tmp_path / "smsCorpus_zh.json"
    path.write_text(json.dumps({"smsCorpus": {"message": [message]}}), encoding="utf-8")
    assert [(r.text, r.group) for r in read("nus", path)] == [("好的", "nus:12")]
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="is not the NUS SMS Corpus in JSON"):
        list(read("nus", path))


def test_fbs_folder_closes_words_up_and_names_the_category(tmp_path):
    (tmp_path / "AD:Loan").write_text("办理 贷款 DIGIT 万 联系 NAME CELLPHONE\n", encoding="utf-8")
    (tmp_path / "FR_Financial").mkdir()
    (tmp_path / "FR_Financial" / "messages.txt").write_text("登录 URL 领取\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("# FBS", encoding="utf-8")
    records = list(read("fbs", tmp_path))
    assert [record.family for record in records] == ["AD:Loan", "FR:Financial"]
    assert records[0].text.startswith("办理贷款")
    for mask in ("DIGIT", "NAME", "CELLPHONE", "URL"):
        assert all(mask not in record.text for record in records)


def test_800k_fills_runs_of_x_with_digits(tmp_path):
    path = tmp_path / "80w.txt"
    path.write_text("1\t0\t明天x点见\n2\t1\t满xxx减xx，电话xxxxxxxxxxx，Iphonex也有\n", encoding="utf-8")
    first, second = read("sms800k", path)
    assert (first.family, second.family) == ("ham", "spam")
    assert len(second.text) == len("满xxx减xx，电话xxxxxxxxxxx，Iphonex也有")
    assert second.text.count("x") == 1
    assert second.text[second.text.index("话") + 1] == "1"


def test_cold_csv(tmp_path):
    (tmp_path / "dev.csv").write_text("\ufeffTEXT,label,topic\n真烦人,1,race\n不错,0,race\n", encoding="utf-8")
    assert [(r.text, r.label, r.family) for r in read("cold", tmp_path)] == [
        ("真烦人", "ordinary", "offensive"),
        ("不错", "ordinary", "not_offensive"),
    ]


def test_json_lines_stand_in_for_any_source_packed_or_not(tmp_path):
    path = tmp_path / "nus.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write('{"text": "几点到", "user": "a", "country": null}\n')
    assert [(r.text, r.group) for r in read("nus", path)] == [("几点到", "nus:a")]


def test_own_rows_bear_their_label(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,label,family\n给钱就停,pay_to_stop,x\n", encoding="utf-8")
    (record,) = read("csv", path)
    assert (record.label, record.family, record.source) == ("pay_to_stop", "x", "csv")


def test_doubtful_rows_of_a_source_with_one_label_are_left_out(tmp_path):
    path = tmp_path / "80w.txt"
    path.write_text("1\t法院传票通知\n0\t晚上吃什么\n", encoding="utf-8")
    assert [record.text for record in read("sms800k", path)] == ["晚上吃什么"]


def test_of_a_vetted_source_doubtful_rows_stay(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "借了***元，逾期会起诉吗"}\n', encoding="utf-8")
    assert list(read("mudou2014", path)) == []
    (record,) = read("atec", path)
    assert (record.label, record.family) == ("ordinary", "atec")
    assert re.fullmatch(r"借了\d{1,4}元，逾期会起诉吗", record.text)


def test_a_long_message_is_cut_at_the_last_end_of_a_sentence_within_400_characters(tmp_path):
    rows = ["好" * 300 + "。" + "坏" * 150 + "。", "好" * 401, "好" * 399 + "。"]
    path = json_lines.write(tmp_path / "a.jsonl", ({"text": text} for text in rows))
    assert [record.text for record in read("petitions", path)] == ["好" * 300 + "。", "好" * 400, rows[2]]


@pytest.mark.parametrize(
    ("kind", "name", "content", "fault"),
    [
        ("jsonl", "a.jsonl", b'{"text": "x", "label": "spam"}\n' * 2, r"a\.jsonl:1: unknown label 'spam'; every row"),
        ("jsonl", "a.jsonl", b'{"text": "x"}\n', r"a\.jsonl:1: unknown label ''; every row needs one of ordinary"),
        ("jsonl", "a.jsonl", b"{\n", r"a\.jsonl:1: not JSON"),
        ("jsonl", "a.jsonl", b'{"txt": 1}\n', r"a\.jsonl:1: no 'text'"),
        ("jsonl", "a.jsonl", "短".encode("gbk"), "is not UTF-8"),
        ("jsonl", "a.jsonl.gz", b"no gzip", "can't be read"),
        ("jsonl", "a.jsonl.gz", gzip.compress(b"text", mtime=0)[:10] + b"\xff" * 20, "can't be read"),
        ("csv", "a.csv", b"body,label\nx,ordinary\n", r"a\.csv:2: no column 'text'"),
        ("sms800k", "80w.txt", b"spam\tx\n", r"80w\.txt:1: not 'label TAB text'"),
        ("nus", "n.xml", b"<smsCorpus>", "is not a NUS SMS Corpus"),
    ],
)
def test_bad_files(tmp_path, kind, name, content, fault):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=fault):
        list(read(kind, path))


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (["转三百,不然打爆,pay_to_stop"], "{}:2: 3 cells, the first line has 2; put texts with commas or line breaks"),
        (['"明天\n吃面",ordinary', "转三百,不然打爆,,"], "{}:4: 4 cells, the first line has 2; put texts with commas"),
        (["ordinary,不然打爆"], "{}:1: unknown label (not shown, because it may be a message); every row needs one of"),
        (["ordinary," + "不然打爆" * 6] * 2, "{}:1: unknown label (not shown, because it may be a message); every row"),
    ],
)
def test_no_error_quotes_a_cell_that_may_be_a_message(tmp_path, rows, fault):
    path = tmp_path / "own.csv"
    path.write_text("\n".join(("text,label", *rows)), encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(fault.format(path))) as caught:
        list(read("csv", path))
    assert "打爆" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="check the path"):
        list(read("csv", tmp_path / "none.csv"))


def test_every_public_source_is_cited():
    assert all(source.citation and source.licence for source in SOURCES.values() if source.label)
