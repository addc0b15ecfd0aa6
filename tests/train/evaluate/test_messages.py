import hashlib
import json

import numpy as np
import pytest

from jingyin.model.labels import LABELS
from jingyin.train.evaluate.judge import flag_pairs, label_pairs
from jingyin.train.evaluate.samples import pairs, read_messages


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one_of_each(*changes):
    """Return a row of each label, the first ones with changes."""
    some = [*changes, *[{}] * (len(LABELS) - len(changes))]
    return [{"text": f"第{i}条", "label": label, **some[i]} for i, label in enumerate(LABELS)]


@pytest.fixture
def corpus(tmp_path):
    """Rows of one situation, of which the first and the third are a minimal pair."""
    pair = {"group": "g", "pair": "p", "template": "第{number}条"}
    return read_messages([write(tmp_path / "rows.jsonl", one_of_each(pair, {"group": "g", "pair": ""}, pair))])


def test_minimal_pairs_are_the_rows_of_a_pair_and_not_of_a_whole_situation(corpus):
    assert [rows.tolist() for rows in pairs(corpus)] == [[0, 2]]
    assert (corpus.groups, corpus.pairs) == (["g", "g", "g", "", ""], ["p", "", "p", "", ""])
    labels, flags = corpus.labels.copy(), corpus.flagged.copy()
    labels[1], flags[1] = -1, True  # wrong, of the situation, but in no pair
    assert label_pairs(labels, corpus).tolist() == flag_pairs(flags, corpus).tolist() == [True]


def test_rows_of_a_group_without_pairs_are_no_minimal_pair(tmp_path):
    messages = read_messages([write(tmp_path / "rows.jsonl", one_of_each({"group": "g"}, {"group": "g"}))])
    assert pairs(messages) == []


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
