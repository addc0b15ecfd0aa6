from collections import Counter

import pytest

from jingyin.train.corpus.build import comparable_text
from jingyin.train.corpus.rows import default_folders, load
from jingyin.train.corpus.similar import similar_pairs
from jingyin.train.evaluate.evaluate import plain_messages
from jingyin.train.evaluate.samples import read_rows


def test_there_are_as_many_threats_as_innocents_and_no_text_twice():
    rows = read_rows(plain_messages())
    assert all(row.keys() == {"text", "label", "family"} for row in rows)
    assert len({row["text"] for row in rows}) == len(rows) == 500
    labels = Counter(row["label"] for row in rows)
    assert labels["debt_threat"] + labels["pay_to_stop"] == labels["ordinary"] + labels["lawful_collection"] == 250


@pytest.mark.exhaustive
def test_no_row_of_them_is_a_training_row_or_like_one():
    plain = [comparable_text(row["text"]) for row in read_rows(plain_messages())]
    trained = [comparable_text(record.text) for folder in default_folders() for record in load(folder)]
    found = [(i, j) for i, j, _ in similar_pairs([*plain, *trained], 0.5) if i < len(plain) <= j]
    assert found == []
