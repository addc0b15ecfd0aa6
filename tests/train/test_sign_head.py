from dataclasses import replace

import numpy as np
import pytest

from jingyin.model.errors import InputError
from jingyin.model.text import clean
from jingyin.train.data import Rows, unlabelled
from jingyin.train.network import annotated_messages


def rows(*signs: str, messages: list[int]) -> Rows:
    plain = unlabelled([clean(f"第{i}条") for i in range(len(signs))])
    return replace(plain, messages=np.array(messages), signs=list(signs))


def test_only_messages_that_people_read_teach_signs_and_none_of_their_copies():
    found = annotated_messages(rows("joke", "joke", "?", "-", messages=[0, 0, 1, 2]))
    assert [each.original for each in found.cleaned] == ["第0条", "第3条"]


def test_without_one_there_is_nothing_to_learn():
    wanted = r"none of 2 training messages has signs that people read.*leave signs out of the"
    with pytest.raises(InputError, match=wanted):
        annotated_messages(rows("?", "!joke,?", messages=[0, 1]))
