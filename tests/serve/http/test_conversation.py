import subprocess
import sys
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serve.http.http_fakes import SECRET

from jingyin.model.text import CleanString, clean
from jingyin.serve.http import memory as conversation
from jingyin.serve.http.memory import CONVERSATION_CHARACTERS, Conversations, ConversationSettings, JoinedText

KEY = "机密发信人->13900139000"


def conversations(seconds: float = 600, megabytes: int = 1) -> Conversations:
    return Conversations(ConversationSettings(seconds=seconds, megabytes=megabytes))


def say(kept: Conversations, *texts: str, key: str = KEY, now: float = 0.0) -> list[str | None]:
    return [kept.join(key, text, now, keep=True) for text in texts]


# ---- what is joined


def test_a_message_is_joined_with_the_two_before_it_oldest_first() -> None:
    assert say(conversations(), "甲", "乙", "丙", "丁") == [None, "甲,乙", "甲,乙,丙", "乙,丙,丁"]


def test_each_conversation_by_itself() -> None:
    kept = conversations()
    say(kept, "甲", key="a>b")
    assert say(kept, "乙", key="b>a") == [None]
    assert say(kept, "丙", key="a>b") == ["甲,丙"]


def test_what_was_cut_at_a_comma_is_as_it_was() -> None:
    kept, text = conversations(), "你的电话会一直响，给两百就停，随便你"
    for cut in (text.index("，"), text.index("，") + 1):
        kept = conversations()
        assert say(kept, text[:cut], text[cut:].removeprefix("，"))[1] == clean(text).text


@pytest.mark.parametrize("mark", [*",.!?;:", "。", "，", "？"])
def test_no_comma_behind_a_mark(mark: str) -> None:
    assert say(conversations(), f"甲{mark}", "乙")[1] == clean(f"甲{mark}").text + "乙"


def test_a_message_that_is_not_kept_is_joined_with_those_before_it_alone() -> None:
    kept = conversations()
    say(kept, "甲")
    assert kept.join(KEY, "乙", 0.0, keep=False) == "甲,乙"
    assert say(kept, "丙") == ["甲,丙"]


def test_a_text_that_comes_again_is_joined_once_and_counts_as_new() -> None:
    kept = conversations()
    assert say(kept, "甲", "甲", "甲") == [None, None, None]
    assert len(kept) == 1
    assert say(kept, "乙", "甲", "丙") == ["甲,乙", "乙,甲", "乙,甲,丙"]


def test_a_forgotten_message_is_not_joined() -> None:
    kept = conversations()
    say(kept, "甲", "乙")
    kept.forget(KEY, "乙")
    kept.forget(KEY, "丁")
    assert say(kept, "丙") == ["甲,丙"]


def test_messages_of_which_nothing_is_left_are_no_messages() -> None:
    kept = conversations()
    assert say(kept, "甲", "", "\u200b ", "乙") == [None, None, None, "甲,乙"]


def test_numbers_are_masked_and_nobody_can_type_a_mask() -> None:
    kept = conversations()
    joined = say(kept, "打13800138000", "转300元\ue000")[1]
    assert isinstance(joined, JoinedText)
    assert joined == f"{clean('打13800138000').text},{clean('转300元').text}"
    assert clean(joined).text is joined
    assert not set("0138") & set(joined)
    assert isinstance(joined, CleanString)


def test_of_a_long_message_the_beginning_is_joined() -> None:
    kept = conversations()
    joined = say(kept, *(chr(0x4E00 + i) * 100_000 for i in range(3)))[2]
    assert joined is not None
    assert len(joined) == 3 * CONVERSATION_CHARACTERS + 2


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["甲", "乙", "丙", "丁", ""]), st.booleans())))
def test_whatever_comes(said: list[tuple[str, str, bool]]) -> None:
    kept = conversations()
    passed: dict[str, list[str]] = {"a": [], "b": []}
    for now, (key, text, keep) in enumerate(said):
        earlier = [each for each in passed[key] if each != text]
        joined = kept.join(key, text, float(now), keep=keep)
        assert joined == (",".join([*earlier, text]) if text and earlier else None)
        if text and keep:
            passed[key] = [*earlier, text][-2:]
    assert len(kept) == sum(map(len, passed.values()))
    assert (kept.used > 0) == (len(kept) > 0)
    kept.expire(1e9)
    assert (len(kept), kept.used) == (0, 0)


# ---- how long, and how much


def test_each_message_is_forgotten_at_its_own_age() -> None:
    kept = conversations(seconds=600)
    say(kept, "甲", now=0.0)
    say(kept, "乙", now=300.0)
    assert kept.join(KEY, "丙", 599.9, keep=False) == "甲,乙,丙"
    assert kept.join(KEY, "丙", 600.0, keep=False) == "乙,丙"
    assert kept.join(KEY, "丙", 900.0, keep=False) is None
    assert (len(kept), kept.used) == (0, 0)


def test_what_is_old_goes_even_if_nothing_comes() -> None:
    kept = conversations(seconds=600)
    for second in range(100):
        say(kept, "甲", key=str(second), now=float(second))
    kept.expire(650.0)
    assert len(kept) == 49
    kept.expire(699.0)
    assert (len(kept), kept.used) == (0, 0)


def test_a_message_that_comes_again_is_kept_from_then_on() -> None:
    kept = conversations(seconds=600)
    say(kept, "甲", now=0.0)
    say(kept, "甲", now=500.0)
    assert kept.join(KEY, "乙", 1000.0, keep=False) == "甲,乙"


def test_when_memory_is_full_the_oldest_go_first() -> None:
    kept, full = conversations(megabytes=1), 0
    while len(kept) == full:
        full += 1
        say(kept, "甲", key=str(full))
    assert 1 << 20 >= kept.used > (1 << 20) * 0.99
    assert [kept.join(str(i), "乙", 0.0, keep=False) for i in (1, 2, 3, full)] == [None] + ["甲,乙"] * 3


@pytest.mark.slow
def test_a_million_conversations_do_not_grow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "clean", lambda text: conversation_text[text])
    conversation_text = {"好": clean("好")}
    kept = conversations(megabytes=1)
    sizes = set()
    for number in range(1_000_000):
        kept.join(f"{number}", "好", 0.0, keep=True)
        if number > 10_000:
            sizes.add((len(kept), kept.used))
    assert len(sizes) == 1
    assert max(sizes)[1] <= 1 << 20


@pytest.mark.slow
def test_it_takes_no_more_memory_than_it_says() -> None:
    kept = conversations(megabytes=4)
    clean("甲")  # what it loads once is not of the conversations
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(12_000):
            say(kept, f"{chr(0x4E00 + number)}" * (number % 60), key=f"{number}")
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept.used > 0.9 * kept.budget
    assert after - before < kept.budget


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"seconds": 601}, {"megabytes": 0}, {"megabyte": 3}])
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ConversationSettings(**wrong)


# ---- privacy


def test_neither_key_nor_number_is_kept_and_no_text_is_printed() -> None:
    kept = conversations()
    say(kept, SECRET, f"又{SECRET}")
    printed = repr(kept) + repr(list(kept._kept.values()))
    held = repr(vars(kept)) + repr([asdict(each) for each in kept._kept.values()])
    assert "绝密" in held  # the clean text is what is kept
    assert not [word for word in ("绝密", "短信", "机密", "13900139000", "13800138000") if word in printed]
    assert not [word for word in ("机密", "发信人", "13900139000", "13800138000") if word in held]


def test_a_key_can_only_be_looked_up_with_the_salt() -> None:
    first, second = conversations(), conversations()
    assert first._slots(KEY) == first._slots(KEY)
    assert first._slots(KEY) != second._slots(KEY)
    assert not set(first._slots("a")) & set(first._slots("b"))


@pytest.mark.service
def test_each_process_has_a_salt_of_its_own() -> None:
    program = (
        "from jingyin.serve.http.memory import Conversations, ConversationSettings;"
        "print(Conversations(ConversationSettings())._slots('a')[0].hex())"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
        for _ in range(2)
    ]
    first, second = (process.communicate()[0].strip() for process in started)
    assert len(first) == len(second) == 34
    assert first != second
