from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.train.corpus.perturb import FAMILIES, HELD_OUT, entries
from jingyin.train.evaluate import attacks
from jingyin.train.evaluate.attacks import EDITS, LONGEST, TRIES, Suite, affixes, edited, greedy_tries, halves
from jingyin.train.evaluate.measures import changed, greedy
from jingyin.train.evaluate.samples import read_messages
from jingyin.train.evaluate.systems import System

THREAT = "再不还钱就曝光你，让全村都知道，你看着办"
TEXTS = st.text("你我再不还钱就曝光，。！ ab", min_size=4, max_size=40)


def system(flags) -> System:
    return System("toy", lambda texts: (np.array([float(flags(text)) for text in texts]), None), 0.5, 2.0)


@pytest.fixture(scope="module")
def messages(data):
    return read_messages([data])


@pytest.fixture(scope="module")
def rows(messages):
    """Five threats that say 曝光, and five innocents."""
    threats = [i for i, text in enumerate(messages.texts) if messages.flagged[i] and "曝光" in text]
    return threats[:5] + np.flatnonzero(messages.benign)[:5].tolist()


def test_the_affixes_are_forty_with_what_was_seen_to_pass_and_a_quarter_held_out():
    found = affixes()
    assert found == affixes()
    assert len({head + tail for head, tail, _ in found}) == len(found) == 40
    assert {
        ("", "哈"), ("", "？"), ("", "，谢谢"), ("", "😊"), ("", "[微笑]"), ("那边说，", ""), ("吃了没？", ""),
        ("【温馨提示】", "退订回T"),
    } <= {(head, tail) for head, tail, _ in found}  # fmt: skip
    held_out = {*entries("heads_held_out"), *entries("tails_held_out")}
    assert {head + tail for head, tail, held in found if held} <= held_out
    assert sum(held for *_, held in found) == 11
    assert not {head + tail for head, tail, held in found if not held} & held_out


def test_suites_mark_what_training_never_shows_and_leave_out_what_does_not_change(messages, rows):
    disguised = attacks.disguised(messages, rows)
    assert [suite.name.removesuffix(" *") for suite in disguised] == list(FAMILIES)
    assert [suite.name for suite in disguised if suite.name.endswith("*")] == [
        f"{name} *" for name in FAMILIES if name in HELD_OUT
    ]
    assert all(
        text != messages.texts[i] for suite in disguised for i, text in zip(suite.rows, suite.texts, strict=True)
    )
    again = attacks.disguised(messages, rows)
    assert [suite.texts for suite in again] == [suite.texts for suite in disguised]


def test_repunctuated_messages_have_the_marks_that_their_suite_names(messages):
    suites = {suite.name: suite for suite in attacks.repunctuated(messages, range(len(messages)))}
    assert len(suites) == 7
    assert all(text.endswith("！") and not text.endswith("！！") for text in suites["！ at the end"].texts)
    assert all(text.endswith("……") for text in suites["…… at the end"].texts)
    assert not any(set("，。！、；,!;~～…") & set(text) for text in suites["no marks"].texts)
    assert not any(set("，。；") & set(text) for text in suites["！ for all marks"].texts)


def test_a_suite_keeps_the_rows_that_change(messages):
    suite = Suite.of("half", [0, 1, 2], messages, lambda text, _: text + "!" if text == messages.texts[1] else text)
    assert (suite.rows.tolist(), suite.texts) == ([1], [messages.texts[1] + "!"])


def test_threats_are_quoted_in_reports_that_no_training_row_has(messages):
    everything = np.ones(len(messages), np.bool_)
    found = attacks.quoted(messages, everything, 20)
    assert found == attacks.quoted(messages, everything, 20)
    assert len(found) == 20
    threats = [messages.texts[i] for i in np.flatnonzero(messages.flagged)]
    frames = [line.removeprefix("quoted ") for line in entries("company_held_out") if line.startswith("quoted ")]
    assert all(any(frame.replace("{}", threat) == text for frame in frames for threat in threats) for text in found)
    assert attacks.quoted(messages, ~messages.flagged, 20) == []


def test_company_stands_where_it_should_and_is_of_other_messages(messages, rows):
    found = {suite.name: suite for suite in attacks.in_company(messages, rows)}
    assert {"behind 2 sentences of weather *", "behind 2 sentences of delivery *", "behind 2 sentences of lawful"} <= (
        found.keys()
    )
    behind = found["behind 2 sentences of weather *"]
    assert all(text.startswith(messages.texts[i]) for i, text in zip(behind.rows, behind.texts, strict=True))
    before = found["before 2 sentences of delivery *"]
    assert all(text.endswith(messages.texts[i]) for i, text in zip(before.rows, before.texts, strict=True))


def test_golden_attack_on_a_filter_that_a_smile_defeats(messages, rows):
    toy = system(lambda text: "曝光" in text and "😊" not in text)
    found = changed(toy.judge(messages.texts), attacks.heads_and_tails(messages, rows), messages)
    assert list(found)[:3] == ["mean", "worst", "…😊"]
    assert found["mean"]["flagged alone, now pass"] == pytest.approx(1 / 40)
    passed = [row["flagged alone, now pass"].count for row in list(found.values())[1:]]
    assert passed == [5, 5] + [0] * 39
    assert found["…😊"]["threats found"].count == found["…😊"]["innocents flagged"].count == 0
    assert {row["blocked"].count for row in list(found.values())[1:]} == {0}


def test_what_flags_everything_lets_nothing_pass_and_pays_for_it(messages, rows):
    judged = system(lambda _: True).judge(messages.texts)
    assert changed(judged, attacks.heads_and_tails(messages, rows), messages)["mean"]["innocents flagged"] == 1
    found = greedy(judged, messages, rows)
    assert list(found) == [
        "greedy sender, 1 try", "greedy sender, 3 tries", "greedy sender, 10 tries", "in two halves",
    ]  # fmt: skip
    assert {row["flagged alone, now pass"].count for row in found.values()} == {0}
    assert {row["innocents flagged"].value for name, row in found.items() if "tr" in name} == {1}


def test_the_greedy_sender_gets_through_by_and_by_and_always_the_same_way(messages, rows):
    judged = system(lambda text: "曝光" in text and "😊" not in text).judge(messages.texts)
    found = greedy(judged, messages, rows)
    passed = [found[name]["flagged alone, now pass"].count for name in list(found)[:3]]
    assert passed == sorted(passed)
    assert passed[-1] > 0
    assert greedy(judged, messages, rows) == found


def test_a_message_is_cut_behind_the_comma_nearest_to_its_middle():
    assert halves(THREAT) == ("再不还钱就曝光你，", "让全村都知道，你看着办")
    assert halves("今天，不还就曝光你全家和你单位") == ("今天，", "不还就曝光你全家和你单位")
    assert halves("没有逗号") is None
    assert halves("只在末尾。") is None


@given(TEXTS)
def test_halves_make_up_the_message(text):
    found = halves(text)
    assert found is None or ("".join(found) == text and all(found))


# ---- the greedy sender


@given(TEXTS)
def test_no_try_is_too_long_or_the_message_itself_and_there_are_ten_at_most(text):
    seen = []
    assert list(greedy_tries(lambda each: seen.append(each) or False, [text])) == [None]
    assert len(seen) <= TRIES
    assert all(len(each) <= LONGEST * len(text) and each != text for each in seen)


@given(TEXTS, st.sampled_from(sorted(EDITS)), st.integers(0, 20))
def test_edits_are_the_same_by_seed(text, kind, seed):
    assert EDITS[kind](text, Random(seed)) == EDITS[kind](text, Random(seed))


def test_the_last_clause_goes_first_and_politeness_is_polite():
    assert EDITS["order"](THREAT, Random(0)) == "你看着办，再不还钱就曝光你，让全村都知道"
    assert EDITS["order"]("还钱", Random(0)) == "还钱"
    assert EDITS["polite"]("还钱，不然你等着！", Random(0)) == "麻烦还钱，不然您等着，谢谢"


def test_a_sender_learns_which_edit_passes(monkeypatch):
    monkeypatch.setattr(attacks, "_SEED", 4)
    found = greedy_tries(lambda text: "您" in text, [THREAT + "，" + THREAT] * 5)  # only politeness gets through
    assert list(found) == [9, 1, 1, 1, 1]


def test_benign_messages_are_edited_within_the_same_length():
    for edits in (1, 3, 10):
        after = edited("明天早上九点在学校门口见，记得带伞", edits, Random(3))
        assert after != "明天早上九点在学校门口见，记得带伞"
        assert len(after) <= LONGEST * 17


def test_a_share_of_no_rows_counts_in_no_mean(messages, rows):
    judged = system(lambda text: False).judge(messages.texts)
    found = changed(judged, attacks.heads_and_tails(messages, rows), messages)
    assert "flagged alone, now pass" not in found["mean"]
    assert found["mean"]["threats found"] == 0
