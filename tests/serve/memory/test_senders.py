from typing import Any

import pytest
from tests.serve.memory.gateway import KEY, MemoryUser, Slow
from tests.serve.memory.test_state import Clock

from jingyin.serve.memory.remote import Guarded
from jingyin.serve.memory.secret import Secret
from jingyin.serve.memory.senders import SAMPLE, Suspects
from jingyin.serve.memory.state import Local, Op
from jingyin.serve.settings import SenderSettings

DAY = 86_400.0
THREAT, NOTICE, MILD = "不还钱就爆你通讯录", "您的验证码是123456", "明天再不转过来你看着办"


class SampledUser(MemoryUser):
    """A gateway with a clock, whose sample is everything or nothing."""

    def __init__(self, *, sampled: bool = False, **settings: Any) -> None:
        self.clock = Clock()
        super().__init__(Local(clock=self.clock), senders=SenderSettings(**settings))
        self.memory.suspects = Suspects(SenderSettings(**settings), self.secret, lambda: 0.0 if sampled else 1.0)


async def test_what_follows_a_flagged_message_is_held_for_a_day() -> None:
    user = SampledUser()
    assert await user.reason(MILD, 0.2, sender="a") == "pass scored"
    assert await user.reason(THREAT, 0.6, sender="a") == "review scored"
    assert await user.reason(MILD, 0.05, sender="a") == "review sender"
    assert await user.reason(MILD, 0.04, sender="a") == "pass scored"
    assert await user.reason(MILD, 0.2, sender="b") == "pass scored"
    assert await user.reason(MILD, 0.2) == "pass scored"
    user.clock.now += DAY - 1
    assert await user.reason(MILD, 0.05, sender="a") == "review sender"
    user.clock.now += 1
    assert await user.reason(MILD, 0.05, sender="a") == "pass scored"


async def test_an_edited_copy_of_a_flagged_message_is_held_at_any_risk() -> None:
    user = SampledUser()
    await user.send(THREAT, 0.6, sender="a")
    edited = f"麻烦看一下，{THREAT}，谢谢"
    assert await user.reason(edited, 0.0, sender="b") == "pass scored"
    assert await user.reason(edited, 0.0, sender="a") == "review sender"
    assert await user.reason(NOTICE, 0.0, sender="a") == "pass scored"
    user.clock.now += DAY
    assert await user.reason(edited, 0.0, sender="a") == "pass scored"


async def test_after_three_strikes_all_of_a_sender_is_held_unless_it_sends_much() -> None:
    for sends_much in (False, True):
        user = SampledUser(sampled=sends_much)
        for _ in range(3):
            assert await user.reason(MILD, 0.0, sender="a") == "pass scored"
            await user.send(THREAT, 0.95, sender="a")
        assert await user.reason(MILD, 0.0, sender="a") == ("pass scored" if sends_much else "review sender")
        assert await user.reason(MILD, 0.0, sender="b") == "pass scored"


async def test_a_second_blocked_message_doubles_the_time() -> None:
    user = SampledUser()
    for _ in range(2):
        await user.send(THREAT, 0.95, sender="a")
    user.clock.now += 2 * DAY - 1
    assert await user.reason(MILD, 0.05, sender="a") == "review sender"
    user.clock.now += 2
    assert await user.reason(MILD, 0.05, sender="a") == "pass scored"


async def test_what_a_sender_is_held_for_does_not_prolong_it() -> None:
    user = SampledUser()
    await user.send(THREAT, 0.6, sender="a")
    for _ in range(23):
        user.clock.now += 3_600
        assert await user.reason(MILD, 0.2, sender="a") == "review sender"
    user.clock.now += 3_600
    assert await user.reason(MILD, 0.2, sender="a") == "pass scored"


async def test_one_stolen_account_does_not_silence_a_bank() -> None:
    user = SampledUser(sampled=True)
    for _ in range(600 // SAMPLE):
        await user.send(NOTICE, sender="95588")
    await user.send(THREAT, 0.95, sender="95588")
    assert await user.reason(MILD, 0.2, sender="95588") == "pass scored"
    await user.send(THREAT, 0.95, sender="95588")
    assert await user.reason(MILD, 0.2, sender="95588") == "review sender"


async def test_a_message_that_is_held_does_not_speak_for_its_contact() -> None:
    user = SampledUser(sampled=True)
    await user.send("不还钱就加微信 laowang_88", 0.95)
    for _ in range(20):
        assert await user.reason("加微信 laowang_88", 0.2) == "review contact"
    await user.send("加微信 laowang_88", 0.0)
    assert await user.reason("加微信 laowang_88", 0.2) == "pass scored"


async def test_keys_do_not_share_their_senders() -> None:
    user = SampledUser()
    await user.send(THREAT, 0.95, sender="a", key="one")
    assert await user.reason(MILD, 0.2, sender="a", key="other") == "pass scored"


async def test_a_message_that_was_not_read_in_time_accuses_nobody() -> None:
    user = SampledUser()
    assert await user.reason(NOTICE, sender="a", final=False, on_deadline="block") == "block deadline"
    assert await user.reason(MILD, 0.2, sender="a") == "pass scored"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("还钱，加微信 laowang_88", "加 V信：laowang_88 谈"),
        ("转到 6222 0212 3456 7890 123", "卡号6222021234567890123"),
        ("打138-1234-5678", "＋8613812345678"),
        ("qq 123456789", "扣扣123456789"),
        ("看 https://pay.evil-site.com/x?a=1", "http://www.evil-site.com"),
    ],
)
async def test_a_contact_gives_away_whoever_rewords(first: str, second: str) -> None:
    user = SampledUser()
    await user.send(f"不还钱就{first}", 0.6, sender="a")
    assert await user.reason(f"最后一次{second}", 0.1, sender="b") == "review contact"
    assert await user.reason(f"最后一次{second}", 0.04, sender="b") == "pass scored"


async def test_a_hotline_is_everybodys() -> None:
    user = SampledUser(sampled=True)
    await user.send("请致电 021-12345678", sender="bank")
    await user.send("不还钱就打 021-12345678", 0.6, sender="a")
    assert await user.reason("打 021-12345678", 0.3, sender="b") == "pass scored"


async def test_an_admin_can_clear_a_sender() -> None:
    user = SampledUser()
    await user.send(THREAT, 0.6, sender="a")
    suspects = user.memory.suspects
    ((mark, left),) = (await user.state.run([Op("marks", "s:")]))[0]
    assert (mark, left) == (suspects.sender("gw", "a"), DAY)
    await user.state.run([Op("drop", mark)])
    assert await user.reason(MILD, 0.2, sender="a") == "pass scored"


def test_marks_hold_no_identifier() -> None:
    suspects = Suspects(SenderSettings(), Secret(KEY, encrypts=False))
    marks = suspects.marks("gateway", "13812345678", ["number 13987654321"])
    assert [len(each) for each in marks] == [34, 34]
    other = Suspects(SenderSettings(), Secret(KEY[::-1], encrypts=False))
    assert set(marks).isdisjoint(other.marks("gateway", "13812345678", ["number 13987654321"]))


async def test_an_offenders_threat_in_pieces_is_blocked_as_without_memory_of_senders() -> None:
    gateway = MemoryUser(senders={}, conversations={})
    gateway.risks = {"甲.*乙": 0.95}
    assert await gateway.reason("死", 0.95, sender="gang", receiver="x") == "block scored"
    assert await gateway.reason("先来甲", 0.1, sender="gang", receiver="y") == "review sender"
    assert await gateway.reason("再来乙", 0.1, sender="gang", receiver="y") == "block conversation"


async def test_a_late_look_up_decides_as_the_setting_says() -> None:
    for setting, reason in (("pass", "pass scored"), ("review", "review memory_timeout")):
        events = list[str]()
        state = Guarded(Slow(0.5), Local(), lambda event, step: events.append(f"{event} {step}"))  # noqa: B023
        gateway = MemoryUser(state, senders={}, on_memory_timeout=setting)
        assert await gateway.reason("你好", 0.1, sender="a") == reason
        assert await gateway.reason("你好", 0.01, sender="a") == "pass scored"
        assert events.count("late look_up") == 2  # reports of what was read come late beside them, in any order
        await state.close()


async def test_a_flagged_message_is_remembered_before_its_answer_goes_out() -> None:
    slow = Slow(0.01)
    state = Guarded(slow, Local(), lambda *_: None)
    gateway = MemoryUser(state, senders={})
    assert await gateway.reason("死", 0.95, sender="gang") == "block scored"
    other = MemoryUser(slow.local, senders={})
    assert await other.reason("你好", 0.1, sender="gang") == "review sender"
    await state.close()
