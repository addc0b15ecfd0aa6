"""Parts of one message that go through several filters."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.serve.gateways.fakes import HALVES
from tests.serve.http.http_fakes import InThread, serving

from jingyin.serve.gateways.assembly import HeldPart, Owner
from jingyin.serve.gateways.client import SESSION_QUESTIONS, Http, Ruling, VerdictClient
from jingyin.serve.gateways.codec import Message
from jingyin.serve.gateways.parts import Joiner
from jingyin.serve.gateways.shared import NOT_SHARED, SharedParts
from jingyin.serve.memory.state import PUSHED
from jingyin.serve.sms import Part, Segment

BLOCK, PASS = Ruling("block", "scored"), Ruling("pass", "scored")


class _Filter:
    """A filter's joiner, beside others that ask one service."""

    def __init__(self, port: int, *, hold: float, shares: bool = True) -> None:
        self.http = Http(f"http://127.0.0.1:{port}", None, "Content-Type: application/json\r\n")
        shared = SharedParts(self.http, 60) if shares else None
        self.joiner = Joiner(VerdictClient(self.http, seconds=5), {}, hold=hold, remember=60, shared=shared)

    def add(self, number: int, payload: bytes, total: int = 2, to: str = "13800138000") -> HeldPart:
        message = Message([Segment(payload)], 8, Part(7, total, number), "106900", [to])
        return self.joiner.add(message, "submit", Owner(), "a", hold=True)


Scenario = Callable[[_Filter, _Filter], Awaitable[None]]


def play(scenario: Scenario, *, hold: float = 0.05, shares: bool = True) -> None:
    """Run a scenario with two filters of one service."""

    async def inside(port: int) -> None:
        one, other = (_Filter(port, hold=hold, shares=shares) for _ in range(2))
        async with asyncio.timeout(20):
            await scenario(one, other)
        one.http.close()
        other.http.close()

    with InThread() as server:
        asyncio.run(inside(server.port))


@pytest.mark.parametrize(("shares", "second"), [(True, BLOCK), (False, PASS)])
def test_a_threat_cut_in_two_is_refused_by_the_filter_of_its_second_half(*, shares: bool, second: Ruling) -> None:
    async def scenario(one: _Filter, other: _Filter) -> None:
        assert await one.add(1, HALVES[0]).answer == PASS
        assert await other.add(2, HALVES[1]).answer == second

    play(scenario, shares=shares)


def test_a_part_asks_again_before_it_goes_on_incomplete() -> None:
    async def scenario(one: _Filter, other: _Filter) -> None:
        first = one.add(1, HALVES[0])
        await asyncio.sleep(0.1)  # it has asked, and there was none
        assert not first.answer.done()
        other.joiner.hold = 20  # the other filter still waits
        second = other.add(2, HALVES[1], total=3)
        assert (await first.answer, second.answer.done()) == (BLOCK, False)

    play(scenario, hold=0.4)


def test_three_parts_in_two_filters_are_judged_together() -> None:
    async def scenario(one: _Filter, other: _Filter) -> None:
        assert await one.add(1, "不给".encode("utf-16-be"), total=3).answer == PASS
        other.joiner.hold = 20
        second, third = other.add(2, HALVES[0][4:], total=3), other.add(3, HALVES[1], total=3)
        assert {await second.answer, await third.answer} == {BLOCK}

    play(scenario)


def test_a_refused_part_is_taken_back_and_other_receivers_have_their_own() -> None:
    async def scenario(one: _Filter, other: _Filter) -> None:
        assert await one.add(1, HALVES[0]).answer == PASS
        assert await other.add(2, HALVES[1], to="13900139000").answer == PASS
        assert await other.add(2, HALVES[1]).answer == BLOCK
        await asyncio.sleep(0.1)
        assert await one.add(2, "早".encode("utf-16-be")).answer == PASS

    play(scenario)


async def test_a_flood_of_parts_asks_few_questions_at_once_and_fails_none() -> None:
    asking, most = 0, 0

    class Slow(Http):
        async def request(self, *_: object, **__: object) -> tuple[int, bytes]:
            nonlocal asking, most
            asking += 1
            most = max(most, asking)
            await asyncio.sleep(0.001)
            asking -= 1
            return 200, b'{"keys":[{"parts":[],"lost":false}]}'

    shared, before = SharedParts(Slow("http://127.0.0.1:1"), 60), NOT_SHARED._value.get()
    one, other = (SimpleNamespace(places=asyncio.Semaphore(SESSION_QUESTIONS)) for _ in range(2))
    message = Message([Segment(b"x")], 8, Part(7, 2, 1), "106900", ["13800138000"])
    part = {"message": message, "number": 1, "keys": [("1", "2", 3, 4)], "kin": ("106900", 2)}
    parts = [SimpleNamespace(owner=one, **part) for _ in range(300)]
    flood = asyncio.gather(*(shared.exchange(each, again=False) for each in parts))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await shared.exchange(SimpleNamespace(owner=other, **part), again=False)  # type: ignore[arg-type]
    assert not flood.done()  # another session did not wait for it
    await flood
    assert (most, NOT_SHARED._value.get() - before) == (SESSION_QUESTIONS + 1, 0)


def test_without_the_service_a_part_is_judged_with_those_of_its_own_filter() -> None:
    async def scenario() -> None:
        one = _Filter(9, hold=0.05)
        before = NOT_SHARED._value.get()
        assert (await one.add(1, HALVES[0]).answer).reason == "ConnectionRefusedError"
        assert NOT_SHARED._value.get() == before + 2

    asyncio.run(asyncio.wait_for(scenario(), 20))


async def test_the_route_keeps_the_newest_and_says_what_it_lost() -> None:
    async with serving() as (client, _):

        async def push(part: str, **more: object) -> Any:
            body = {"keys": ["k"], "part": part, "seconds": 60} | more
            return (await client.post("/v1/parts", json=body)).json()["keys"]

        answers = [await push(str(i)) for i in range(PUSHED + 2)]
        assert answers[1] == [{"parts": ["0"], "lost": False}]
        await push("9", forget=True)
        last = {"parts": [str(i) for i in range(2, PUSHED + 2) if i != 9], "lost": True}
        assert (await push("x"))[0] == last
        wrong = await client.post("/v1/parts", json={"keys": [], "part": "绝密", "seconds": 0})
        assert wrong.status_code == 422
        assert "绝密" not in wrong.json()["error"]
