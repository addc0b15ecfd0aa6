from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.train.corpus.perturb import entries
from jingyin.train.evaluate.attacks import (
    EDITS,
    LONGEST,
    TRIES,
    LazySender,
    attack,
    dressings,
    edited,
    halves,
    passing_shares,
    success,
)
from jingyin.train.evaluate.samples import read_messages
from jingyin.train.evaluate.systems import Scores, System

THREAT = "再不还钱就曝光你，让全村都知道，你看着办"
TEXTS = st.text("你我再不还钱就曝光，。！ ab", min_size=4, max_size=40)


def system(flags) -> System:
    return System("toy", lambda texts: Scores(np.array([float(flags(text)) for text in texts]), None), 0.5)


def test_the_dressings_are_forty_with_what_was_seen_to_pass_and_a_quarter_held_out():
    found = dressings()
    assert found == dressings()
    assert len({each.name for each in found}) == len(found) == 40
    assert {
        "…哈", "…？", "…，谢谢", "…😊", "…[微笑]", "那边说，…", "有人让我转告你，…", "吃了没？…", "【温馨提示】…退订回T",
    } <= {each.name for each in found}  # fmt: skip
    held_out = {*entries("heads_held_out"), *entries("tails_held_out")}
    assert {each.head + each.tail for each in found if each.held_out} <= held_out
    assert sum(each.held_out for each in found) == 11
    assert not {each.head + each.tail for each in found if not each.held_out} & held_out
    assert any("\n" in each.tail for each in found)


def test_golden_attack_on_a_filter_that_a_smile_defeats(data):
    messages = read_messages([data])
    toy = system(lambda text: "曝光" in text and "😊" not in text)
    flags = toy.judge(messages.texts).risks >= 0.5
    found = attack(toy, flags, messages, rows=10)
    assert found.rows == 10
    assert found.dressings[0].name == "…😊"
    assert [each.passed.value for each in found.dressings] == [1.0] + [0.0] * 39
    assert found.mean_passed == pytest.approx(1 / 40)
    assert found.plain_false_positives.count == found.dressings[5].false_positives.count == 0
    assert [each.tries for each in found.sender] == [1, 3, 10]
    passed = [each.passed.count for each in found.sender]
    assert passed == sorted(passed)
    assert passed[-1] > 0
    assert attack(toy, flags, messages, rows=10) == found


def test_what_flags_everything_lets_nothing_pass_and_pays_for_it(data):
    messages = read_messages([data])
    found = attack(system(lambda _: True), np.ones(len(messages), np.bool_), messages, rows=8)
    assert found.mean_passed == 0
    assert found.mean_false_positives == found.plain_false_positives.value == 1
    assert [each.passed.count for each in found.sender] == [0, 0, 0]
    assert [each.false_positives.value for each in found.sender] == [1, 1, 1]


def test_passing_shares_are_of_each_text():
    toy = system(lambda text: "曝光" in text and not text.endswith("哈"))
    assert passing_shares(toy, [THREAT, "曝光你", "明天见"]).tolist() == pytest.approx([1 / 40, 1 / 40, 1.0])


def test_a_message_is_cut_behind_the_comma_nearest_to_its_middle():
    assert halves(THREAT) == ("再不还钱就曝光你，", "让全村都知道，你看着办")
    assert halves("今天，不还就曝光你全家和你单位") == ("今天，", "不还就曝光你全家和你单位")
    assert halves("没有逗号") is None
    assert halves("只在末尾。") is None


@given(TEXTS)
def test_halves_make_up_the_message(text):
    found = halves(text)
    assert found is None or ("".join(found) == text and all(found))


# ---- the lazy sender


@given(TEXTS, st.integers(0, 20))
def test_no_try_is_too_long_or_the_message_itself_and_there_are_ten_at_most(text, seed):
    seen = []
    assert LazySender(lambda each: seen.append(each) or False, seed).tries(text) is None
    assert len(seen) <= TRIES
    assert all(len(each) <= LONGEST * len(text) and each != text for each in seen)


@given(TEXTS, st.sampled_from(sorted(EDITS)), st.integers(0, 20))
def test_edits_are_the_same_by_seed(text, kind, seed):
    assert EDITS[kind](text, Random(seed)) == EDITS[kind](text, Random(seed))


def test_the_last_clause_goes_first_and_politeness_is_polite():
    assert EDITS["order"](THREAT, Random(0)) == "你看着办，再不还钱就曝光你，让全村都知道"
    assert EDITS["order"]("还钱", Random(0)) == "还钱"
    assert EDITS["polite"]("还钱，不然你等着！", Random(0)) == "麻烦还钱，不然您等着，谢谢"


def test_a_sender_learns_which_edit_passes():
    sender = LazySender(lambda text: "您" in text, 4)  # only politeness gets through
    found = [sender.tries(THREAT + "，" + THREAT) for _ in range(5)]
    assert found == [9, 1, 1, 1, 1]


def test_success_counts_tries():
    assert success([1, None, 3, 10], 3) == [True, False, True, False]


def test_benign_messages_are_edited_within_the_same_length():
    for edits in (1, 3, 10):
        after = edited("明天早上九点在学校门口见，记得带伞", edits, Random(3))
        assert after != "明天早上九点在学校门口见，记得带伞"
        assert len(after) <= LONGEST * 17
