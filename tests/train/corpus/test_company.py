from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.train.corpus.company import (
    HELD_OUT,
    LONGEST,
    PLACES,
    REPORTS,
    SENTENCES,
    label_in,
    neighbours,
    training_company,
    with_company,
)
from jingyin.train.corpus.rows import Record

LAWFUL = ("您的账单已逾期。请尽快还款。", "本期应还三百元。", "水费欠费，请缴纳。停水前会通知。谢谢。")
ADS = ("春装上新全场五折起，进店有礼", "贷款秒批额度高", "儿" * 300)


def record(text, label="ordinary", family="chat", source="authored"):
    return Record(text, label, family, "plain", source)


@pytest.fixture(scope="module")
def beside():
    return neighbours(
        [
            *(record(text, "lawful_collection", "bank_reminder") for text in LAWFUL),
            *(record(text, source="fbs") for text in ADS),
            record("你借我的钱该还了。", "lawful_collection", "friend_repay"),
            record("验证码1234。", family="code_notice"),
            record("不给就砍你", "debt_threat", "chat"),
            record("早啊", source="nus"),
            record("吵死了", source="cold"),
            record("长" * 301, source="nus"),
        ]
    )


def test_neighbours_are_benign_by_kind_and_the_held_out_tables(beside):
    assert beside["lawful"] == list(LAWFUL)
    assert beside["ads"] == list(ADS)
    assert beside["service"] == ["验证码1234。"]
    assert beside["chat"] == ["早啊"]
    assert {kind: len(beside[kind]) for kind in ("report", *HELD_OUT)} == {
        "report": 40, "weather": 16, "delivery": 16, "quoted": 8,
    }  # fmt: skip
    assert all(text.count("{}") == 1 for kind in REPORTS for text in beside[kind])
    assert not set(beside["report"]) & set(beside["quoted"])


@given(st.integers(1, 6), st.sampled_from(PLACES), st.integers(0, 200))
def test_whole_notices_of_so_many_sentences_stand_where_they_should(count, place, seed):
    beside = {"lawful": LAWFUL}
    found = with_company("给钱就停", "lawful", count, place, Random(seed), beside)
    assert found == with_company("给钱就停", "lawful", count, place, Random(seed), beside)
    before, after = found.split("给钱就停")
    assert (bool(before), bool(after)) == {
        "before": (True, False), "behind": (False, True), "around": (True, count > 1),
    }[place]  # fmt: skip
    assert (before + after).count("。") >= count  # a seam may be one more
    if count == 1:
        assert (before + after).strip("，。 \n") == "本期应还三百元"


def test_characters_are_counted_and_the_last_message_is_cut(beside):
    for amount in (1, 30, 100, 300):
        for seed in range(20):
            found = with_company("给钱就停", "ads", amount, "behind", Random(seed), {"ads": ["儿" * 200]})
            assert found.startswith("给钱就停")
            assert found.count("儿") == amount
    assert with_company("给钱就停", "ads", 10, "before", Random(1), {}) == "给钱就停"


def test_a_report_surrounds_a_threat_and_makes_it_ordinary(beside):
    found = with_company("给钱{}就停", "report", 1, "behind", Random(2), beside)
    assert "“给钱{}就停”" in found.replace("「", "“").replace("」", "”")
    for label in ("ordinary", "debt_threat", "pay_to_stop"):
        assert {label_in(label, kind) for kind in REPORTS} == {"ordinary"}


def test_the_graver_label_is_that_of_a_message_in_company():
    assert label_in("ordinary", "lawful") == "lawful_collection"
    assert label_in("ordinary", "ads") == label_in("ordinary", "weather") == "ordinary"
    for label in ("lawful_collection", "debt_threat", "pay_to_stop", "other_threat"):
        assert {label_in(label, kind) for kind in ("lawful", "ads", "chat", "service", *SENTENCES)} == {label}


def test_training_company_is_bounded_and_never_held_out(beside):
    kinds = {}
    for label in ("ordinary", "lawful_collection", "debt_threat", "other_threat"):
        found = [training_company("给钱就停" * 100, label, Random(seed), beside) for seed in range(300)]
        assert all(len(text) <= LONGEST for text, _ in filter(None, found))
        kinds[label] = {kind for _, kind in filter(None, found)}
    assert kinds["ordinary"] == kinds["lawful_collection"] == {"lawful", "ads", "chat", "service"}
    assert kinds["debt_threat"] == kinds["ordinary"] | {"report"}
    assert kinds["other_threat"] == kinds["ordinary"] - {"lawful"}
    assert training_company("长" * 499, "ordinary", Random(1), beside) is None
