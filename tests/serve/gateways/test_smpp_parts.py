"""Long messages: their parts are judged together, whatever carries them and however they come."""

import asyncio
import time

import pytest
from tests.serve.gateways.smpp_fakes import THREAT, World, data_sm, play, sar, submit, tlv, udh

from jingyin.serve.gateways.smpp import parts
from jingyin.serve.gateways.smpp.judge import Outcome
from jingyin.serve.gateways.smpp.parts import Joiner
from jingyin.serve.gateways.smpp.report import HELD
from jingyin.serve.sms import Part, Segment

pytestmark = pytest.mark.service

HALF = THREAT.encode("utf-16-be")[:-3], THREAT.encode("utf-16-be")[-3:]
"""Cut within the 死 that makes it a threat."""
PLAIN = "早".encode("utf-16-be")


def by_udh(text: bytes, sequence: int, reference: int, total: int, number: int, to: bytes = b"200") -> bytes:
    return submit(udh(reference, total, number) + text, sequence, esm=0x40, to=to)


def by_sar(text: bytes, sequence: int, reference: int, total: int, number: int) -> bytes:
    return submit(text, sequence, tlvs=sar(reference, total, number))


def by_payload(text: bytes, sequence: int, reference: int, total: int, number: int) -> bytes:
    return submit(b"", sequence, esm=0x40, tlvs=tlv(0x424, udh(reference, total, number) + text))


@pytest.mark.parametrize("carry", [by_udh, by_sar, by_payload])
def test_a_threat_cut_in_two_is_refused_whole(carry) -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(carry(HALF[0], 2, 7, 2, 1), carry(HALF[1], 3, 7, 2, 2))
        assert await esme.answers(2) == {2: 0x45, 3: 0x45}
        esme.send(carry(PLAIN, 5, 7, 2, 2), carry(PLAIN, 4, 7, 2, 1))  # the reference is free again
        assert await esme.answers(2) == {4: 0, 5: 0}
        assert world.smsc.submitted() == [4, 5]  # in the order of their numbers

    play(scenario, hold=20)


def test_data_sm_in_parts() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(data_sm("不给钱就弄", 2, tlvs=sar(1, 2, 1)), data_sm("死你", 3, tlvs=sar(1, 2, 2)))
        assert await esme.answers(2) == {2: 0x45, 3: 0x45}

    play(scenario, hold=20)


def test_parts_over_two_connections_of_one_user_are_joined() -> None:
    async def scenario(world: World) -> None:
        one, two, other = await world.bound(), await world.bound(), await world.bound(b"other")
        one.send(by_udh(HALF[0], 2, 7, 2, 1))
        other.send(by_udh(PLAIN, 2, 7, 2, 2))
        assert await other.answers(1) == {2: 0}  # another user's reference 7, judged alone after the wait
        two.send(by_udh(HALF[1], 3, 7, 2, 2))
        assert await two.answers(1) == {3: 0x45}

    play(scenario, hold=0.2)


def test_messages_to_several_people_are_told_apart() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(
            *(
                by_udh(text, 2 * i + n, 7, 2, n + 1, b"20%d" % i)
                for n in (0, 1)
                for i, text in ((1, HALF[n]), (2, PLAIN))
            )
        )
        assert await esme.answers(4) == {2: 0x45, 3: 0x45, 4: 0, 5: 0}

    play(scenario, hold=20)


def test_a_part_that_never_comes_is_done_without() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        start = time.monotonic()
        esme.send(by_udh(HALF[0], 2, 7, 3, 1), by_udh(HALF[1], 3, 7, 3, 2), by_udh(PLAIN, 4, 8, 3, 1))
        assert await esme.answers(3) == {2: 0x45, 3: 0x45, 4: 0}
        assert time.monotonic() - start >= 0.2

    play(scenario, hold=0.2)
    assert HELD._value.get() == 0


def test_a_part_that_comes_late_is_judged_with_those_that_have_gone() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(by_udh(HALF[0], 2, 7, 2, 1))
        assert await esme.answers(1) == {2: 0}
        esme.send(by_udh(HALF[1], 3, 7, 2, 2))
        assert await esme.answers(1) == {3: 0x45}

    play(scenario, hold=0.1)


def test_who_waits_for_each_answer_is_held_up_once_only() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        start = time.monotonic()
        for number in range(1, 12):
            esme.send(by_udh(PLAIN, number + 1, 7, 12, number))
            assert await esme.answers(1) == {number + 1: 0}
        assert 1 <= time.monotonic() - start < 5

    play(scenario, hold=1)


def test_duplicated_parts_count_once() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(by_udh(HALF[0], 2, 7, 2, 1), by_udh(HALF[0], 3, 7, 2, 1), by_udh(HALF[1], 4, 7, 2, 2))
        assert await esme.answers(3) == {2: 0x45, 3: 0x45, 4: 0x45}

    play(scenario, hold=20)


def test_unbind_does_not_wait_for_parts() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(by_udh(PLAIN, 2, 7, 2, 1), b"\0\0\0\x10\0\0\0\x06\0\0\0\0\0\0\0\x03")
        assert await esme.answers(2) == {2: 0, 3: 0}

    play(scenario, hold=60)


def test_held_parts_go_on_at_the_end() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(by_udh(PLAIN, 2, 7, 2, 1))
        await asyncio.sleep(0.1)
        await world.proxy.drain()
        assert world.smsc.submitted() == [2]
        assert await esme.answers(1) == {2: 0}

    play(scenario, hold=60)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_BYTES", 5_000)

    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(*(by_udh(PLAIN, i, i, 2, 1) for i in range(2, 102)))
        assert set((await esme.answers(85)).values()) == {0}  # the oldest were judged as they were
        assert world.joiner._bytes <= 6_000

    play(scenario, hold=60)


def test_one_message_of_many_parts_is_bounded_too() -> None:
    big = "早".encode("utf-16-be") * 30_000

    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(*(by_payload(big, i, 7, 40, i) for i in range(2, 32)), by_payload(HALF[0] + HALF[1], 32, 7, 40, 32))
        answers = await esme.answers(31)
        assert answers[32] == 0x45

    play(scenario, hold=0.5)


class _Counting:
    """Stands for a judge: passes everything, and counts how often it is asked."""

    asked = 0

    async def outcome(self, segments: list[Segment], coding: str) -> Outcome:
        self.asked += 1
        return Outcome("pass", "scored")


def test_parts_are_forgotten_after_their_time_without_another_message_or_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parts, "REMEMBER_SECONDS", 0.1)
    judge = _Counting()

    async def scenario() -> None:
        joiner = Joiner(judge, hold=0.01)  # type: ignore[arg-type]
        await joiner.add("key", Part(7, 2, 1), [Segment(PLAIN)], "ucs2", object(), hold=True)
        assert joiner._bytes == 502
        while joiner._messages:
            await asyncio.sleep(0.01)
        assert (joiner._bytes, judge.asked) == (0, 1)
        late = await joiner.add("key", Part(7, 2, 2), [Segment(PLAIN)], "ucs2", object(), hold=False)
        assert (late.action, joiner._bytes, judge.asked) == ("pass", 502, 2)  # the first is gone

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_whole_message_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        joiner = Joiner(_Counting(), hold=20)  # type: ignore[arg-type]
        first = joiner.add("key", Part(7, 2, 2), [Segment(PLAIN)], "ucs2", object(), hold=True)
        (message,) = joiner._messages.values()
        other = joiner.add("key", Part(7, 2, 1), [Segment(PLAIN)], "ucs2", object(), hold=True)
        assert {(await each).action for each in (first, other)} == {"pass"}
        assert (joiner._messages, joiner._bytes, message.memory.cancelled()) == ({}, 0, True)

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_what_still_waits_when_its_time_is_up_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "REMEMBER_SECONDS", 0.05)
    judge = _Counting()

    async def scenario() -> None:
        joiner = Joiner(judge, hold=20)  # type: ignore[arg-type]
        outcome = await joiner.add("key", Part(7, 2, 1), [Segment(PLAIN)], "ucs2", object(), hold=True)
        assert (outcome.action, judge.asked, joiner._messages) == ("pass", 1, {})

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_making_room_asks_about_nothing_that_has_gone_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_BYTES", 1)
    judge = _Counting()

    async def scenario() -> None:
        joiner = Joiner(judge, hold=20)  # type: ignore[arg-type]
        for reference in range(5):
            await joiner.add("key", Part(reference, 2, 1), [Segment(PLAIN)], "ucs2", object(), hold=False)
        assert (judge.asked, len(joiner._messages)) == (5, 1)

    asyncio.run(asyncio.wait_for(scenario(), 10))
