from importlib.resources import files

import pytest

from jingyin.train.vocabulary.parts import EXTRA, candidates, dictionary, parts_table


def test_every_line_is_a_way_of_the_dictionary() -> None:
    ways = set(candidates(dictionary()))
    table = files("jingyin.model").joinpath("tables/parts.txt").read_text(encoding="utf-8")
    lines = [line.split(" ")[0] for line in table.splitlines()]
    assert [line for line in lines if (line[1:], line[0]) not in ways and line[1:] not in EXTRA] == []
    assert len({line[1:] for line in lines}) == len(lines)


def test_a_way_of_another_character_is_none() -> None:
    found = set(candidates({"我": [["扌", "戈"]], "找": [["扌", "戈"]], "錢": [["金", "戔"]], "掷": [["扌", "掷"]]}))
    assert found == {("扌戈", "找"), ("金戋", "钱")}


@pytest.mark.slow
def test_what_is_honest_is_put_together_only_beside_what_shows_it() -> None:
    table = parts_table(["汽车专业的人开车专门来", "车专入会", "一三五六八"] * 2)
    assert table["扌戈"] == ("找", None)
    character, beside = table["车专"]
    assert character == "转"
    assert beside is not None
    assert {"账", "钱"} <= beside.after
    assert not {"业", "门", "入"} & beside.after
