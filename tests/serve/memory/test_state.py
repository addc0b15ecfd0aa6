import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serve.memory.conftest import Valkey

from jingyin.model.errors import ConfigError
from jingyin.serve.memory import state
from jingyin.serve.memory.state import Guarded, Local, Op, Socket, State, ValkeyState, listening

EVERY = [
    (Op("tally", "t", 1, 600.0), 0.0),
    (Op("tally", "t", 16, 600.0), 1.0),
    (Op("tally", "t", 0, 600.0), 17.0),
    (Op("marked", "s:a"), 0),
    (Op("mark", "s:a", 5.0, 2.0), None),
    (Op("mark", "s:a", 5.0, 2.0), None),
    (Op("mark", "s:a", 1.0, 2.0), None),
    (Op("mark", "s:b", 1.0, 2.0), None),
    (Op("marked", "s:a"), 1),
    (Op("marks", "s:"), [("s:a", pytest.approx(5, abs=0.2)), ("s:b", pytest.approx(2, abs=0.2))]),
    (Op("drop", "s:a"), None),
    (Op("marks", "s:"), [("s:b", pytest.approx(2, abs=0.2))]),
    (Op("shift", "v", b"1", 5.0), []),
    (Op("shift", "v", b"\0\xff", 5.0), [b"1"]),
    (Op("shift", "v", b"3", 5.0), [b"\0\xff", b"1"]),
    (Op("shift", "v", b"4", 5.0), [b"3", b"\0\xff", b"1"]),
    (Op("shift", "v", b"", 5.0), [b"4", b"3", b"\0\xff"]),
    (Op("unshift", "v", b"4"), None),
    (Op("shift", "v", b"5", 5.0), [b"3", b"\0\xff"]),
    (Op("unshift", "v", b"3"), None),
    (Op("unshift", "v", b"4"), None),
    (Op("shift", "v", b"6", 5.0), [b"5", b"\0\xff"]),
    (Op("shift", "v", b"", 5.0), [b"6", b"5", b"\0\xff"]),
    (Op("put", "known", (b"x", b"\0")), None),
    (Op("put", "known", (b"x", b"\1")), None),
    (Op("fields", "known"), [b"x"]),
    (Op("field", "known", b"x"), b"\1"),
    (Op("field", "known", b"y"), None),
    (Op("add", "hits", b"x"), None),
    (Op("add", "hits", b"x"), None),
    (Op("field", "hits", b"x"), b"2"),
    (Op("remove", "known", b"x"), None),
    (Op("fields", "known"), []),
    (Op("now", ""), pytest.approx(time.time(), abs=600)),
]
"""Every operation, and its result in this order."""


def lasting(name: str, key: str, seconds: float) -> Op:
    return Op(name, key, {"tally": 1, "mark": seconds, "shift": b"x"}[name], seconds)


class Clock:
    def __init__(self) -> None:
        self.now = 6e8

    def __call__(self) -> float:
        return self.now


def check(found: list[Any]) -> None:
    for (op, wanted), result in zip(EVERY, found, strict=True):
        # Results that Op does not name are None or anything that the caller is not to look at.
        if wanted is not None or op.name == "field":
            assert result == wanted, op


def test_in_memory() -> None:
    check(Local().run_now([op for op, _ in EVERY]))


def test_of_many_marks_the_longest_are_listed_at_once() -> None:
    local = Local(clock=Clock())
    local.run_now([Op("mark", f"s:{i}", 20.0 * (i % 3), 10.0) for i in range(150_000)])
    local.run_now([Op("mark", f"s:{i}", 20.0, 10.0) for i in range(0, 150_000, 3)])
    start = time.process_time()
    found = local.run_now([Op("marks", "s:")])[0]
    assert time.process_time() - start < 0.02
    assert [name for name, _ in found[:3]] == ["s:149997", "s:149994", "s:149991"]
    assert len(found) == state.LISTED
    assert {left for _, left in found} == {20}


async def test_behind_a_socket(tmp_path: Path) -> None:
    with listening(Local(), tmp_path / "state"):
        remote = Socket(tmp_path / "state")
        check(await remote.run([op for op, _ in EVERY]))
        remote.close()


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
    monkeypatch.setattr(state, "ANSWER_SECONDS", 0.3)
    server = ValkeyState(valkey.address)
    assert await server.run([Op("tally", "t", 1, 60.0)]) == [0.0]
    valkey.freeze()
    with pytest.raises(Exception, match=r"^Timeout"):
        await asyncio.wait_for(server.run([Op("tally", "t", 0, 60.0)]), 30)
    valkey.thaw()
    assert await server.run([Op("marked", "s:a"), Op("tally", "t", 0, 60.0)]) == [0, 1.0]
    await server.close()


def test_setting_the_clock_moves_nothing_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    local, wall = Local(), time.time()
    local.run_now([MARK])
    monkeypatch.setattr(time, "time", lambda: wall + 86_400)
    assert local.run_now([MARKED, Op("now", "")]) == [1, pytest.approx(wall, abs=600)]


def test_counts_fade_over_two_windows() -> None:
    clock = Clock()  # at the start of a window
    local = Local(clock=clock)
    local.run_now([Op("tally", "t", 10, 600.0)])
    found = []
    for _ in range(6):
        found += local.run_now([Op("tally", "t", 0, 600.0)])
        clock.now += 300
    assert found == [10.0, 10.0, 10.0, 5.0, 0.0, 0.0]
    assert len(local) == 0


@given(st.lists(st.tuples(st.sampled_from(["tally", "mark", "shift"]), st.sampled_from("abc"), st.integers(1, 9))))
def test_nothing_outlives_twice_its_time(done: list[tuple[str, str, int]]) -> None:
    clock = Clock()
    local = Local(clock=clock)
    for name, key, seconds in done:
        local.run_now([lasting(name, f"{name}{key}", float(seconds))])
        clock.now += 1
    clock.now += 18
    local.expire()
    assert (len(local), local.used) == (0, 0)


def test_memory_is_bounded_and_the_oldest_go_first() -> None:
    local = Local(budget=100_000)
    local.run_now([Op("mark", f"s:{number}", 60.0, 60.0) for number in range(1_000)])
    assert local.used <= 100_000
    assert local.run_now([Op("marked", f"s:{number}") for number in (0, 999)]) == [0, 1]


def test_services_that_share_a_file_lose_nothing_of_each_other(tmp_path: Path) -> None:
    one, other = Local(file=tmp_path / "known.json"), Local(file=tmp_path / "known.json")
    for local, name in ((one, b"x"), (other, b"y"), (one, b"z")):
        local.run_now([Op("put", "known", (name, b"1"))])
        local.run_now([Op("add", "hits", b"x")])
    other.run_now([Op("remove", "known", b"z")])
    assert [local.run_now([Op("fields", "known")]) for local in (one, other)] == [[[b"x", b"y"]]] * 2
    for local in (one, other):
        local.save()
    assert Local(file=tmp_path / "known.json").run_now([Op("field", "hits", b"x")]) == [b"3"]


def test_tables_survive_a_restart_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "below" / "known.json"
    first = Local(file=file)
    first.run_now([Op("put", "known", (b"a", b"\xff")), Op("add", "hits", b"a"), Op("mark", "s:a", 60.0, 60.0)])
    first.save()
    assert file.stat().st_mode & 0o777 == 0o600
    second = Local(file=file)
    assert second.run_now([Op("field", "known", b"a"), Op("field", "hits", b"a"), Op("marked", "s:a")]) == [
        b"\xff",
        b"1",
        0,
    ]
    file.write_text("[]")
    with pytest.raises(ConfigError, match=r"known\.json can't be read as known wordings"):
        Local(file=file)


def test_a_table_that_can_not_be_saved_is_unchanged(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    local = Local(file=tmp_path / "folder" / "known.json")
    local.run_now([Op("put", "known", (b"x", b"1"))])
    (tmp_path / "folder").rename(tmp_path / "other")
    (tmp_path / "folder").touch()
    for op in (Op("put", "known", (b"y", b"2")), Op("remove", "known", b"x")):
        with pytest.raises(OSError, match="folder"):
            local.run_now([op])
    assert local.run_now([Op("fields", "known")]) == [[b"x"]]


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


MARK, MARKED = Op("mark", "s:a", 60.0, 60.0), Op("marked", "s:a")


async def test_messages_at_one_time_share_a_round_trip_in_their_order() -> None:
    async with guarded() as (guard, remote, _):
        found = await asyncio.gather(*(guard.run([MARKED, MARK]) for _ in range(5)))
        assert [marked for marked, _ in found] == [0, 1, 1, 1, 1]
        assert remote.calls == [10]


async def test_a_late_answer_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "PATIENCE_SECONDS", 5.0)
    async with guarded() as (guard, remote, events):
        remote.seconds = 0.2
        start = time.perf_counter()
        assert await guard.run([MARK, MARKED]) == [None, 1]  # by local memory
        assert time.perf_counter() - start < 0.1
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
    monkeypatch.setattr(state, "RETRY_SECONDS", 0.01)
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
    monkeypatch.setattr(state, "PATIENCE_SECONDS", 0.03)
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
async def test_a_server_that_stops_hangs_or_is_full_delays_nobody(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "RETRY_SECONDS", 0.05)
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

    await load(0.2)
    assert "away" not in events
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
