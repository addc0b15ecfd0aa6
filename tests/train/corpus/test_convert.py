import gzip
import json

import pytest
from tests.command import run_command

from jingyin.model.errors import ConfigError, InputError
from jingyin.train.corpus.public import PUBLIC, SOURCES, convert, read

SPAM = "1\t0\t明天x点见\n2\t1\t满xx减x，电话xxxxxxxxxxx\n3\t0\t   \n"
XML = (
    "<smsCorpus><message><text>还有 &lt;#&gt; 块</text><source><userProfile><userID>u7</userID></userProfile></source>"
    "</message><message><text/></message></smsCorpus>"
)


@pytest.fixture
def spam(tmp_path):
    path = tmp_path / "80w.txt"
    path.write_text(SPAM, encoding="utf-8")
    return path


def lines(path):
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return [json.loads(line) for line in file]


def test_public_corpora_are_those_that_have_one_label():
    assert PUBLIC[:4] == ("nus", "fbs", "sms800k", "cold")
    assert set(SOURCES) - set(PUBLIC) == {"jsonl", "csv"}


def test_masks_labels_and_users_stay_and_empty_messages_go(tmp_path, spam):
    assert convert("sms800k", spam, tmp_path / "new" / "spam.jsonl") == 2
    assert lines(tmp_path / "new" / "spam.jsonl") == [
        {"text": "明天x点见", "label": "ham"},
        {"text": "满xx减x，电话xxxxxxxxxxx", "label": "spam"},
    ]
    (tmp_path / "zh.xml").write_text(XML, encoding="utf-8")
    assert convert("nus", tmp_path / "zh.xml", tmp_path / "nus.jsonl") == 1
    assert lines(tmp_path / "nus.jsonl") == [{"text": "还有 <#> 块", "user": "u7"}]


def test_a_converted_corpus_reads_as_the_published_one(tmp_path, spam):
    out = tmp_path / "spam.jsonl.gz"
    convert("sms800k", spam, out)
    published, converted = ([(r.text, r.family) for r in read("sms800k", path)] for path in (spam, out))
    assert converted == published


def test_the_same_source_gives_the_same_bytes_and_another_replaces_them(tmp_path, spam):
    first, second = tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"
    convert("sms800k", spam, first)
    convert("sms800k", spam, second)
    assert first.read_bytes() == second.read_bytes()
    assert convert("sms800k", spam, first, only="spam") == 1
    assert [row["label"] for row in lines(first)] == ["spam"]


def test_a_bad_source_leaves_what_was_there(tmp_path, spam):
    out = tmp_path / "spam.jsonl"
    convert("sms800k", spam, out)
    before = out.read_bytes()
    spam.write_text(SPAM + "broken\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"80w\.txt:4: not 'label TAB text'"):
        convert("sms800k", spam, out)
    assert out.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["80w.txt", "spam.jsonl"]


@pytest.mark.parametrize(
    ("kind", "out", "fault"),
    [
        ("jsonl", "a.jsonl", "unknown kind 'jsonl'; known: nus, fbs, sms800k, cold"),
        ("fbs", "a.json", r"a\.json must end in \.jsonl or \.jsonl\.gz"),
    ],
)
def test_unknown_kinds_and_suffixes(tmp_path, spam, kind, out, fault):
    with pytest.raises(ConfigError, match=fault):
        convert(kind, spam, tmp_path / out)


def test_a_source_without_messages(tmp_path, spam):
    with pytest.raises(InputError, match="holds no message of kind fbs; check path and kind"):
        convert("fbs", tmp_path / "none", tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="holds no message of kind sms800k that it labels 'Spam'"):
        convert("sms800k", spam, tmp_path / "a.jsonl", only="Spam")


def test_the_command(tmp_path, spam, capsys):
    out = tmp_path / "spam.jsonl.gz"
    assert run_command("corpus", "convert", "sms800k", spam, out, "--only", "spam") == 0
    assert capsys.readouterr().out == f"{out}: 1 messages\n"
    assert len(lines(out)) == 1
