import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.serve.memory.conftest import Valkey
from tests.serve.memory.operations import EVERY, MARK, MARKED, check

from jingyin.model.errors import ConfigError
from jingyin.serve.memory.remote import Guarded, Socket, ValkeyState, listening
from jingyin.serve.memory.state import Local, Op, State


async def test_behind_a_socket(tmp_path: Path) -> None:
    with listening(Local(), tmp_path / "state"):
        remote = Socket(tmp_path / "state")
        check(await remote.run([op for op, _ in EVERY]))
        remote.close()


async def test_calls_that_overlap_share_one_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, connect = list[object](), asyncio.open_unix_connection

    async def open_(path: Path) -> Any:
        opened.append(path)
        return await connect(path)

    monkeypatch.setattr(asyncio, "open_unix_connection", open_)
    with listening(Local(), tmp_path / "state"):
        remote = Socket(tmp_path / "state")
        results = await asyncio.gather(*(remote.run([Op("tally", "t", 1, 60.0)]) for _ in range(5)))
        remote.close()
    assert (results, len(opened)) == ([[0.0], [1.0], [2.0], [3.0], [4.0]], 1)


@pytest.mark.external
async def test_on_a_server(valkey: Valkey) -> None:
    server = ValkeyState(valkey.address)
    check(await server.run([op for op, _ in EVERY]))
    await server.close()


@pytest.mark.external
async def test_a_server_gives_the_same_results_as_memory(valkey: Valkey) -> None:
    random = Random(0)

    def any_op() -> Op:
        key, seconds = random.choice("ab"), 1000.0 * random.randint(1, 3)
        value = b"%d" % random.randrange(3)
        return random.choice(
            [
                Op("tally", f"t{key}", random.choice([0, 1, 16]), 1e6),
                Op("mark", f"s:{key}", 1000.0 * random.randint(1, 3), seconds),
                Op("marked", f"s:{key}"),
                Op("drop", f"s:{key}"),
                Op("shift", f"v{key}", random.choice([b"", value]), seconds),
                Op("unshift", f"v{key}", value),
            ]
        )

    server = ValkeyState(valkey.address)
    for _ in range(100):
        await server._client.flushall()
        ops = [any_op() for _ in range(30)]
        pairs = zip(ops, Local().run_now(ops), await server.run(ops), strict=True)
        differing = [(op, one, other) for op, one, other in pairs
                     if op.name in ("tally", "marked", "shift") and one != pytest.approx(other)]  # fmt: skip
        assert not differing, ops
    await server.close()


@pytest.mark.external
async def test_everything_on_a_server_expires_but_tables(valkey: Valkey) -> None:
    server = ValkeyState(valkey.address)
    await server.run([op for op, _ in EVERY])
    client = server._client
    left = {key: await client.pttl(key) for key in await client.keys("*")}
    await server.close()
    assert left.pop(b"jingyin:hits") == -1
    assert 0 < min(left.values()) <= max(left.values()) <= 1_200_000


@pytest.mark.external
async def test_a_server_that_never_answers_is_not_waited_for(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jingyin.serve.memory.remote.ANSWER_SECONDS", 0.3)
    server = ValkeyState(valkey.address)
    assert await server.run([Op("tally", "t", 1, 60.0)]) == [0.0]
    valkey.freeze()
    with pytest.raises(Exception, match=r"^Timeout"):
        await asyncio.wait_for(server.run([Op("tally", "t", 0, 60.0)]), 30)
    valkey.thaw()
    assert await server.run([Op("marked", "s:a"), Op("tally", "t", 0, 60.0)]) == [0, 1.0]
    await server.close()


def test_a_socket_that_can_not_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a shorter one, in TMPDIR"), listening(Local(), tmp_path / ("x" * 120)):
        pass


def test_addresses_that_are_none() -> None:
    with pytest.raises(ConfigError, match="state must be memory, redis://"):
        ValkeyState("valkey:6379")


# ---- when it is away


class Remote:
    """A state that answers after `seconds`, or fails with `error`."""

    def __init__(self) -> None:
        self.local = Local()
        self.seconds = 0.0
        self.error: Exception | None = None
        self.calls: list[int] = []

    async def run(self, ops: Sequence[Op]) -> list[Any]:
        self.calls.append(len(ops))
        await asyncio.sleep(self.seconds)
        if self.error:
            raise self.error
        return self.local.run_now(ops)


@asynccontextmanager
async def guarded() -> AsyncIterator[tuple[Guarded, Remote, list[str]]]:
    remote, events = Remote(), list[str]()
    guard = Guarded(remote, Local(), lambda event, error: events.append(f"{event} {error}".strip()))
    yield guard, remote, events
    await guard.close()


async def test_messages_at_one_time_share_a_round_trip_in_their_order() -> None:
    async with guarded() as (guard, remote, _):
        found = await asyncio.gather(*(guard.run([MARKED, MARK]) for _ in range(5)))
        assert [marked for marked, _ in found] == [0, 1, 1, 1, 1]
        assert remote.calls == [10]


async def test_a_late_answer_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jingyin.serve.memory.remote.PATIENCE_SECONDS", 5.0)
    async with guarded() as (guard, remote, events):
        remote.seconds = 0.2
        assert await guard.run([MARK, MARKED]) == [None, 1]  # by local memory
        assert (events, guard.away) == (["late look_up"], False)
        await asyncio.sleep(0.3)
        remote.seconds = 0.0
        assert await guard.run([MARKED]) == [1]  # it came there in the end


async def test_a_late_look_up_knows_what_this_process_has_flagged() -> None:
    async with guarded() as (guard, remote, events):
        await guard.run([MARK, Op("tally", "fs:a", 1, 60.0)])
        remote.seconds = 0.2
        assert await guard.run([MARKED, Op("tally", "fs:a", 0, 60.0)]) == [1, 1.0]
        assert events == ["late look_up"]


async def test_one_that_fails_is_left_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jingyin.serve.memory.remote.RETRY_SECONDS", 0.01)
    async with guarded() as (guard, remote, events):
        remote.error = ConnectionError()
        assert await guard.run([MARK]) == [None]
        calls = len(remote.calls)
        assert [await guard.run([MARKED]) for _ in range(20)] == [[1]] * 20
        assert len(remote.calls) == calls  # nobody waits for it
        await asyncio.sleep(0.05)
        assert guard.away
        remote.error = None
        await asyncio.sleep(0.05)
        assert events == ["away ConnectionError", "back"]
        assert await guard.run([MARKED]) == [0]


async def test_one_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jingyin.serve.memory.remote.PATIENCE_SECONDS", 0.03)
    async with guarded() as (guard, remote, events):
        remote.seconds = 60.0
        for _ in range(10):
            await guard.run([MARK])
        await asyncio.sleep(0.05)
        assert guard.away
        assert set(events) == {"late look_up", "away TimeoutError"}


async def test_workers_share_a_socket_and_its_end_is_noticed(tmp_path: Path) -> None:
    workers: list[State] = [Socket(tmp_path / "state") for _ in range(3)]
    with listening(Local(), tmp_path / "state"):
        for number, worker in enumerate(workers):
            assert await worker.run([Op("tally", "t", 1, 60.0)]) == [number]
    for worker in workers:
        with pytest.raises((OSError, EOFError)):
            await worker.run([MARKED])


@pytest.mark.external
async def test_a_server_that_hangs_or_is_full_delays_nobody(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jingyin.serve.memory.remote.RETRY_SECONDS", 0.05)
    events: list[str] = []
    server = ValkeyState(valkey.address)
    guard = Guarded(server, Local(), lambda event, _: events.append(event))
    rng = Random(3)
    waits: list[float] = []

    async def load(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            await guard.run([Op("mark", f"s:{rng.random()}", 60.0, 60.0), Op("tally", "t", 1, 60.0)])
            waits.append(time.perf_counter() - start)
            await asyncio.sleep(0.001)

    async def back() -> None:
        for _ in range(100):
            await load(0.05)
            if not guard.away:
                return
        raise TimeoutError

    await back()  # on a busy machine a healthy server may be late once too
    valkey.freeze()
    await load(0.3)
    assert guard.away
    valkey.thaw()
    await back()
    valkey.stop()
    await load(0.2)
    assert guard.away
    valkey.start("--maxmemory", "1kb", "--maxmemory-policy", "noeviction")
    await load(0.3)
    assert guard.away  # it answers, but takes nothing
    valkey.stop()
    valkey.start()
    await back()
    assert events.count("away") >= 2
    # The machine may be busy: what counts is that nobody waited for the server.
    assert sorted(waits)[int(len(waits) * 0.95)] < 0.05
    await guard.close()
    await server.close()
