import gzip
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.json_lines import write

from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.train.evaluate.measures import all_right
from jingyin.train.evaluate.samples import (
    Seen,
    pairs,
    read_messages,
    read_rows,
    read_traffic,
    sample_evenly,
    seen_in,
    seen_unseen,
    texts_in,
    unseen_rows,
)


def one_of_each(*changes):
    """Return a row of each label, the first ones with changes."""
    some = [*changes, *[{}] * (len(LABELS) - len(changes))]
    return [{"text": f"第{i}条", "label": label, **some[i]} for i, label in enumerate(LABELS)]


@pytest.fixture
def corpus(tmp_path):
    """Rows of one situation, of which the first and the third are a minimal pair."""
    pair = {"group": "g", "pair": "p", "template": "第{number}条"}
    return read_messages([write(tmp_path / "rows.jsonl", one_of_each(pair, {"group": "g", "pair": ""}, pair))])


def test_json_lines_may_begin_with_a_mark(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "吃面"}\n', encoding="utf-8-sig")
    assert read_rows(tmp_path / "rows.jsonl") == [{"text": "吃面"}]


def test_minimal_pairs_are_the_rows_of_a_pair_and_not_of_a_whole_situation(corpus):
    assert [rows.tolist() for rows in pairs(corpus, corpus.labels)] == [[0, 2]]
    assert (corpus.groups, corpus.pairs) == (["g", "g", "g", "", ""], ["p", "", "p", "", ""])
    assert all_right(pairs(corpus, corpus.labels), np.array([True, False, True, False, False])).tolist() == [True]
    assert all_right(pairs(corpus, corpus.labels), np.array([True, True, False, True, True])).tolist() == [False]


def test_rows_of_a_group_without_pairs_are_no_minimal_pair(tmp_path):
    messages = read_messages([write(tmp_path / "rows.jsonl", one_of_each({"group": "g"}, {"group": "g"}))])
    assert pairs(messages, messages.labels) == []


def test_a_pair_without_a_group_is_one_and_a_row_without_either_is_alone(corpus, tmp_path):
    assert corpus.group_numbers.tolist() == [0, 0, 0, 1, 2]
    messages = read_messages([write(tmp_path / "pairs.jsonl", one_of_each({}, {"pair": "p"}, {"pair": "p"}))])
    assert messages.groups == ["", "p", "p", "", ""]
    assert messages.group_numbers.tolist() == [0, 1, 1, 2, 3]


def test_what_is_taken_keeps_its_own_pair_and_template(corpus):
    taken = corpus.take(np.array([2, 4], np.int64))
    assert (taken.pairs, taken.templates) == (["p", ""], ["第{number}条", "第4条"])


def test_files_of_one_name_keep_their_own_hash_and_rows(tmp_path):
    files = [write(tmp_path / folder / "test.jsonl", one_of_each({"text": folder})) for folder in ("one", "two")]
    messages = read_messages(files)
    assert messages.files == {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert len(set(messages.files.values())) == 2
    assert (messages.where[1], messages.where[6]) == (f"{files[0]}:2", f"{files[1]}:2")


# ---- parts


def test_what_training_has_not_seen_stands_apart(tmp_path):
    changes = (
        {"case": "A1", "writer": "w1"}, {"case": "B7", "writer": "w2"}, {"case": "A1", "writer": "w2"}, {},
        {"source": "nus"},
    )  # fmt: skip
    rows = one_of_each(*changes) + one_of_each({"source": "nus"})
    messages = read_messages([write(tmp_path / "rows.jsonl", rows)])
    seen = Seen(frozenset({"A1"}), frozenset({"w1"}), frozenset({"nus"}))
    kinds = seen_unseen(messages, seen)
    assert {name: index.tolist() for name, index in kinds.items()} == {
        "unseen cases": [1], "unseen writers": [2], "like training": [0, 3, 4, 6, 7, 8, 9], "real traffic": [5],
    }  # fmt: skip
    assert np.flatnonzero(unseen_rows(messages, kinds)).tolist() == [1]
    assert seen_unseen(messages, None) == {}
    assert unseen_rows(messages, {}).all()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_training_split_says_what_it_has(suffix, tmp_path):
    rows = one_of_each({"case": "A1", "source": "nus", "template": "{number}"})
    path = write(tmp_path / "train.jsonl", rows)
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path := tmp_path / "train.parquet")
    assert seen_in(path) == Seen(frozenset({"A1", ""}), frozenset({""}), frozenset({"nus", ""}))
    assert texts_in(path) == {f"第{i}条" for i in range(5)} | {"{number}"}
    assert seen_in(tmp_path / "none.parquet") is None


def test_traffic_that_a_corpus_has_cleaned_or_cut_is_seen(tmp_path):
    raw = ["明天  十点\n到店", "卡号6222020200112233445已停用", "先到先得。" * 90, "没见过。" * 90]
    trained = ["明天 十点 到店", "卡号6222020200998877665已停用", "先到先得。" * 80]
    path = write(tmp_path / "train.jsonl", [{"text": text, "template": text} for text in trained])
    traffic = write(tmp_path / "chat.jsonl", [{"text": text} for text in raw])
    assert read_traffic([traffic], texts_in(path), set()) == {"chat": [raw[-1]]}


def test_traffic_is_read_by_file_without_what_training_has_seen(tmp_path):
    with gzip.open(tmp_path / "chat.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in ("你好", "在吗", "你好", "见过"))
    chat = tmp_path / "chat.jsonl.gz"
    assert read_traffic([chat], {"见过"}, set()) == {"chat": ["你好", "在吗"]}
    other = write(tmp_path / "other" / "chat.jsonl", [{"text": "再见"}])
    assert read_traffic([chat, other], {"见过"}, set()) == {"chat": ["你好", "在吗"], str(other): ["再见"]}
    assert read_traffic([other], set(), {"chat"}) == {str(other): ["再见"]}
    with pytest.raises(InputError, match=r"chat\.jsonl: training has seen all of its messages"):
        read_traffic([other], {"再见"}, set())
    with pytest.raises(InputError, match=r"bad\.jsonl: a row has no text; every row of traffic needs 'text', a string"):
        read_traffic([write(tmp_path / "bad.jsonl", [{"label": "ordinary"}])], set(), set())


def test_samples_are_drawn_evenly_from_families(tmp_path):
    rows = one_of_each() + [{"text": f"甲{i}", "label": "ordinary", "family": "chat"} for i in range(50)]
    messages = read_messages([write(tmp_path / "rows.jsonl", rows)])
    drawn = sample_evenly(messages, messages.benign, 6)
    assert drawn == sample_evenly(messages, messages.benign, 6)
    assert [messages.families[i] for i in drawn].count("chat") == 4
    assert {"ordinary", "lawful_collection"} <= {messages.families[i] for i in drawn}


# ---- what is refused


def test_parquet_and_json_lines_read_alike(tmp_path):
    rows = one_of_each(*[{"group": "g", "source": "s"}] * 5)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    one, other = (read_messages([path]) for path in (write(tmp_path / "rows.jsonl", rows), tmp_path / "rows.parquet"))
    assert one.texts == other.texts
    assert one.labels.tolist() == other.labels.tolist() == [0, 1, 2, 3, 4]
    assert one.groups == other.groups == ["g"] * 5
    assert other.where[1] == f"{tmp_path / 'rows.parquet'}:2"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "好"}], r":1: no label; every row needs 'label', one of ordinary, "),
        ([{"label": "ordinary"}], r":1: no text; every row needs 'text'"),
        ([{"text": None, "label": "ordinary"}], r":1: no text"),
        ([*one_of_each(), {"text": "好", "label": "spam"}], r":6: unknown label 'spam'; known: ordinary, "),
        ([], r"holds no rows"),
    ],
)
def test_rows_that_cannot_be_judged_on_are_refused(rows, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_messages([write(tmp_path / "rows.jsonl", rows)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"text,label", "neither .parquet nor .jsonl"),
        ("rows.jsonl", b"[1]\n", "rows.jsonl:1: not a JSON object"),
        ("rows.jsonl", b'{"text"\n', "rows.jsonl:1: not a JSON object"),
        ("rows.jsonl", b"\xff\n", r"can't be read \(UnicodeDecodeError\)"),
        ("rows.jsonl.gz", b"text", r"can't be read \(BadGzipFile\)"),
        ("rows.jsonl.gz", gzip.compress(b"text", mtime=0)[:10] + b"\xff" * 20, r"can't be read \(error\)"),  # zlib's
        ("rows.parquet", b"PAR1", r"can't be read \(ArrowInvalid\)"),
    ],
)
def test_files_that_cannot_be_read_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_messages([tmp_path / name])


@pytest.mark.parametrize("given", [{}, {"signs": None}, {"signs": ""}, {"signs": "?"}])
def test_data_without_signs_stays_valid(given, tmp_path):
    assert read_messages([write(tmp_path / "rows.jsonl", one_of_each(*[given] * 5))]).signs == ["?"] * 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["joke"], r"rows\.jsonl:1: 'signs' is a list; write ids of signs with commas between them$"),
        ("joke,jest,!fun", r"rows\.jsonl:1: unknown signs 'fun, jest'; known: demand_money, "),
        ("手机1380013" * 9, r"rows\.jsonl:1: unknown signs '.{40}'; known: "),
    ],
)
def test_signs_that_are_none_are_refused(given, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_messages([write(tmp_path / "rows.jsonl", one_of_each({"signs": given}))])
