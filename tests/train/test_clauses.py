import re

from hypothesis import given
from hypothesis import strategies as st

from jingyin.train.data import clauses

TEXTS = ["明早还钱，不然打爆电话；说到做到。", "今晚吃面！记得带伞，", "没有标点的一句"]


def cut(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[，。！？；,!?;\n])", text) if part]


def test_pieces_are_made_of_whole_clauses() -> None:
    known = {clause for text in TEXTS for clause in cut(text)}
    found = clauses(TEXTS * 50, 1.0, seed=1)
    assert len(found) == 100  # the text of one clause gives none
    assert {clause for piece in found for clause in cut(piece)} == known - {"没有标点的一句"}
    assert set(map(len, map(cut, found))) == {1, 2, 3, 4}  # one or two of three, before one or two of another


def test_half_of_the_pieces_come_before_one_of_another_text() -> None:
    found = clauses(["一，二", "三，四"] * 500, 1.0, seed=1)
    alone, of_two = [piece for piece in found if len(piece) <= 2], [piece for piece in found if len(piece) > 2]
    assert len(alone) + len(of_two) == 1000
    assert set(alone) >= {"一，", "二", "三，", "四"}
    assert {len(piece) for piece in of_two} <= {3, 4}


def test_share_and_seed() -> None:
    texts = ["一，二，三"] * 2000
    assert clauses(texts, 0, seed=1) == []
    assert 540 < len(clauses(texts, 0.3, seed=1)) < 660
    assert clauses(texts, 0.3, seed=1) == clauses(texts, 0.3, seed=1) != clauses(texts, 0.3, seed=2)


@given(st.lists(st.text("甲，。\n乙")), st.integers())
def test_any_text_can_be_cut(texts: list[str], seed: int) -> None:
    assert all(clauses(texts, 1.0, seed))
