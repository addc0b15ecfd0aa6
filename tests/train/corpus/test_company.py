from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.train.corpus.company import (
    FRAMES,
    HELD_OUT,
    LONGEST,
    MARKS,
    PLACES,
    SENTENCES,
    Placed,
    framed,
    frames_of,
    label_beside,
    label_in,
    neighbours,
    training_company,
    twin_frames,
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
    assert {kind: len(beside[kind]) for kind in HELD_OUT} == {"weather": 16, "delivery": 16}
    assert len(beside["quoted"]) == 8
    assert all(text.count("{}") == 1 for text in beside["quoted"])


@given(st.integers(1, 6), st.sampled_from(PLACES), st.integers(0, 200))
def test_whole_notices_of_so_many_sentences_stand_where_they_should(count, place, seed):
    beside = {"lawful": LAWFUL}
    found = with_company("给钱就停", "lawful", count, place, Random(seed), beside)
    assert found == with_company("给钱就停", "lawful", count, place, Random(seed), beside)
    assert found.text[found.start : found.end] == "给钱就停"
    before, after = found.text.split("给钱就停")
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
            assert found.text.startswith("给钱就停")
            assert found.text.count("儿") == amount
            assert (found.start, found.end) == (0, 4)
    assert with_company("给钱就停", "ads", 10, "before", Random(1), {}) == Placed("给钱就停", 0, 4)


@given(st.sampled_from(["{m}老板让我带的话", "他们说{m}你看着办", "老板原话{m}"]), st.integers(0, 500))
def test_a_frame_holds_the_message_where_it_says_and_the_seed_gives_the_marks(frame, seed):
    found = framed("给钱{}就停", frame, Random(seed))
    assert found == framed("给钱{}就停", frame, Random(seed))
    assert found.text[found.start : found.end] == "给钱{}就停"
    head, tail = frame.split("{m}")
    assert found.text.startswith(head)
    assert found.text.endswith(tail)
    for marks in (*MARKS, ""):
        given_marks = framed("给钱就停", frame, Random(seed), marks)
        around = given_marks.text[given_marks.start - 1 : given_marks.end + 1] if marks else ""
        assert around == (f"{marks[0]}给钱就停{marks[1]}" if marks else "")


def test_a_report_makes_a_threat_ordinary_and_passing_it_on_does_not():
    for label in ("ordinary", "debt_threat", "pay_to_stop"):
        assert label_in(label, "report") == "ordinary"
        assert label_in(label, "passed_on") == label_in(label, "innocent") == label
    assert {label_beside(kind) for kind in FRAMES} == {""}
    assert (label_beside("lawful"), label_beside("ads")) == ("lawful_collection", "ordinary")


def test_no_frame_is_in_two_splits_and_a_pair_stays_together():
    splits = ("train", "calibration", "test")
    frames = {split: [each for kind in FRAMES for each in frames_of(split)[kind]] for split in splits}
    for kind in FRAMES:
        assert sum(len(frames_of(split)[kind]) for split in splits) >= 115
        assert all(len(frames_of(split)[kind]) >= 8 for split in splits)
    for one, other in (("train", "calibration"), ("train", "test"), ("calibration", "test")):
        assert not {frame for frame, _ in frames[one]} & {frame for frame, _ in frames[other]}
        assert not {pair for _, pair in frames[one] if pair} & {pair for _, pair in frames[other] if pair}
    assert all(frame.count("{m}") == 1 for split in splits for frame, _ in frames[split])


def test_twin_frames_are_a_pair_where_there_is_one():
    pairs = dict(frames_of("train")["passed_on"])
    reports = dict(frames_of("train")["report"])
    found = [twin_frames("train", Random(seed)) for seed in range(200)]
    twins = [(one, other) for one, other in found if pairs[one] in {*reports.values()} - {""}]
    assert len(twins) > 20
    assert all(pairs[one] == reports[other] for one, other in twins)


def test_the_graver_label_is_that_of_a_message_in_company():
    assert label_in("ordinary", "lawful") == "lawful_collection"
    assert label_in("ordinary", "ads") == label_in("ordinary", "weather") == "ordinary"
    for label in ("lawful_collection", "debt_threat", "pay_to_stop", "other_threat"):
        assert {label_in(label, kind) for kind in ("lawful", "ads", "chat", "service", *SENTENCES)} == {label}


def test_training_company_is_bounded_and_never_held_out(beside):
    kinds = {}
    for label in ("ordinary", "lawful_collection", "debt_threat", "other_threat"):
        found = [training_company("给钱就停" * 100, label, Random(seed), beside) for seed in range(300)]
        assert all(len(placed.text) <= LONGEST for placed, _ in filter(None, found))
        kinds[label] = {kind for _, kind in filter(None, found)}
    assert kinds["ordinary"] == kinds["lawful_collection"] == {"lawful", "ads", "chat", "service"}
    assert kinds["debt_threat"] == kinds["ordinary"]
    assert kinds["other_threat"] == kinds["ordinary"] - {"lawful"}
    assert training_company("长" * 499, "ordinary", Random(1), beside) is None
