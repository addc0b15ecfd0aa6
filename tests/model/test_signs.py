from collections import Counter

from jingyin.model.signs import SIGN_IDS, SIGNS, name_of


def test_ids_and_names_are_those_of_one_sign_each():
    assert len(SIGNS) == 25
    for each in (SIGN_IDS, [sign.chinese for sign in SIGNS], [sign.english for sign in SIGNS]):
        assert len(set(each)) == len(each)
    assert all(sign.id.isascii() and sign.id.isidentifier() and sign.id.islower() for sign in SIGNS)


def test_groups_stand_one_behind_the_other_in_the_order_of_the_outputs():
    assert tuple(sign.id for sign in SIGNS) == SIGN_IDS
    assert list(Counter(sign.group for sign in SIGNS).items()) == [("demand", 4), ("pressure", 15), ("frame", 6)]
    order = [sign.group for sign in SIGNS]
    assert order == sorted(order, key=("demand", "pressure", "frame").index)


def test_the_law_is_named_where_its_clause_says_so():
    assert {sign.id: sign.source for sign in SIGNS if sign.source} == {
        "demand_money": "刑法 274",
        "flooding": "刑法 293-1",
        "exposure": "互联网金融逾期债务催收自律公约",
        "violence": "刑法 293-1",
    }


def test_a_name_in_either_language():
    assert (name_of("joke", "zh"), name_of("joke", "en")) == ("玩笑", "jokes")
    assert name_of("of_tomorrow", "en") == "of_tomorrow"
