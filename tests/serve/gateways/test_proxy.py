"""The proxy between real sockets, in every protocol: what goes on, what is refused, and how sessions end."""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from tests.serve.gateways.dialects import RESPONSE, SMPP, Dialect, tlv
from tests.serve.gateways.fakes import GREETING, HALVES, SLOW, THREAT, Peer, World, counts, play, played, until
from tests.serve.http.http_fakes import InThread

from jingyin.model.errors import ConfigError
from jingyin.serve.gateways import parts, proxy, session
from jingyin.serve.gateways.accounts import Accounts
from jingyin.serve.gateways.client import MESSAGES, MOST_FAILURES, REGISTRY, SECONDS_TO_WAIT
from jingyin.serve.sms import Decoded, Segment

V2 = b"\r\n\r\n\0\r\nQUIT\n"
"""The signature of a PROXY header of version 2."""


@pytest.fixture(autouse=True)
def _silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    log = "".join(capfd.readouterr())
    assert not any(secret in log for secret in ("死", "\\u6b7b", "Traceback", "13800000000", "10690001", "secret7"))


def ended(by: str) -> float:
    return REGISTRY.get_sample_value("jingyin_gateway_sessions_ended_total", {"by": by}) or 0.0


# ---- what goes on


@played()
async def test_a_threat_is_refused_and_the_rest_goes_on_untouched(world: World, peer: Peer, dialect: Dialect) -> None:
    requests = [dialect.alive(2), dialect.submit(GREETING, 3), dialect.submit(THREAT, 4)]
    with counts({("block", "scored"): 1, ("pass", "scored"): 1}):
        assert await peer.ask(*requests) == {2: 0, 3: 0, 4: dialect.blocked}
    assert world.gateway.received == [dialect.login(), *requests[:2]]


@played(block_status=99)
async def test_a_refusal_has_the_configured_status(peer: Peer, dialect: Dialect) -> None:
    peer.send(dialect.submit(THREAT, 9))
    assert dialect.read(await peer.read()) == (dialect.command["submit"] | RESPONSE, 99, 9)


@played(given="review dry_run")
@pytest.mark.parametrize(("review", "dry_run"), [("refuse", False), ("refuse", True), ("forward", False)])
async def test_what_is_to_be_reviewed_is_refused_for_now_on_request(
    world: World, peer: Peer, dialect: Dialect, review: str, dry_run: bool
) -> None:
    action = "review" if review == "forward" else "would_block" if dry_run else "refuse"
    world.scoring.answer = {"action": "review", "reason": "scored"}
    with counts({(action, "scored"): 1}):
        assert await peer.ask(dialect.submit(GREETING, 9)) == {9: dialect.busy if action == "refuse" else 0}


@played()
async def test_sender_and_receivers_come_with_each_question(world: World, peer: Peer, dialect: Dialect) -> None:
    to = ("8613800000001", "13800000002")
    peer.send(dialect.submit("弄", 2, to=to), dialect.submit("完", 3), dialect.submit("完", 4, to=to[1:]))
    assert await peer.answers(3) == {2: 0, 3: 0, 4: dialect.blocked}  # two plain messages to one phone
    assert {(each["sender"], each["receiver"]) for each in world.scoring.asked} == {
        ("10690001", "13800000001"), ("10690001", "13800000002"), ("10690001", "13800000000")
    }  # fmt: skip


@played()
async def test_what_is_flagged_for_one_destination_is_refused_for_all(peer: Peer, dialect: Dialect) -> None:
    peer.send(dialect.submit("弄", 2, to=("13800000002",)), dialect.submit("完", 3, to=("13800000001", "13800000002")))
    assert await peer.answers(2) == {2: 0, 3: dialect.blocked}


@played(given="judge")
@pytest.mark.parametrize("judge", ["submit", "deliver", "both"])
async def test_messages_from_phones_are_judged_where_the_settings_say_and_reports_never(
    world: World, peer: Peer, dialect: Dialect, judge: str
) -> None:
    sent = [dialect.deliver(THREAT, 7), dialect.deliver(GREETING, 8), dialect.report(9)]
    world.gateway.writers[0].write(b"".join(sent))
    wanted = sent if judge == "submit" else sent[1:]
    assert [await peer.read() for _ in wanted] in (wanted, wanted[::-1])  # a report need not wait
    peer.send(*map(dialect.answer, wanted), dialect.submit(THREAT, 2))
    assert await peer.answers(1) == {2: dialect.blocked if judge != "deliver" else 0}
    answered = {dialect.read(each)[2]: dialect.read(each)[1] for each in world.gateway.received[1:]}
    assert bool(answered[7]) == (judge != "submit")
    assert answered[8] == answered[9] == 0


@played()
async def test_a_message_is_judged_by_its_way_not_its_command(world: World, peer: Peer, dialect: Dialect) -> None:
    assert await peer.ask(dialect.deliver(THREAT, 2)) == {2: dialect.blocked}
    if dialect.name != "sgip":  # its reports are a command of their own
        peer.send(dialect.deliver(THREAT, 3, **({"esm": 4} if dialect.name == "smpp" else {"report": 1})))
        assert await peer.answers(1) == {3: dialect.blocked}
    assert len(world.gateway.received) == 1
    world.gateway.writers[0].write(dialect.submit(THREAT, 4))
    assert await peer.read() == dialect.submit(THREAT, 4)


@played(judge="both")
async def test_one_sequence_number_may_be_alive_in_both_directions(world: World, peer: Peer, dialect: Dialect) -> None:
    world.gateway.answer = lambda data: b""
    submitted, delivered = dialect.submit(GREETING, 7), dialect.deliver(GREETING, 7)
    peer.send(submitted)
    await until(lambda: len(world.gateway.received) >= 2)
    world.gateway.writers[0].write(delivered)
    assert await peer.read() == delivered
    peer.send(dialect.answer(delivered))
    world.gateway.writers[0].write(dialect.answer(submitted))
    assert await peer.read() == dialect.answer(submitted)


@played()
async def test_other_frames_pass_byte_for_byte_both_ways(world: World, peer: Peer, dialect: Dialect) -> None:
    strange = dialect.frame(0x7777, b"\xff\x00anything", 5)
    world.gateway.answer = lambda data: strange
    peer.send(strange)
    assert await peer.read() == strange
    assert world.gateway.received[1:] == [strange]


@played()
async def test_answers_come_in_any_order_and_are_passed_on(world: World, peer: Peer, dialect: Dialect) -> None:
    world.gateway.answer = lambda data: b""
    sent = [dialect.submit(GREETING, i) for i in range(2, 34)]
    peer.send(*sent)
    await until(lambda: len(world.gateway.received) >= 33)
    for data in reversed(sent):
        world.gateway.writers[0].write(dialect.answer(data, 8 if data is sent[3] else 0))
    answers = await peer.answers(32)
    assert list(answers) == list(range(33, 1, -1))
    assert answers.pop(5) == 8
    assert set(answers.values()) == {0}


@played()
async def test_a_frame_sent_again_is_answered_twice(peer: Peer, dialect: Dialect) -> None:
    peer.send(*[dialect.submit(GREETING + "慢" * 20, 2)] * 2, *[dialect.submit(THREAT + "慢" * 20, 3)] * 2)
    read = [dialect.read(await peer.read())[1:] for _ in range(4)]
    assert sorted(read) == sorted([(0, 2), (0, 2), (dialect.blocked, 3), (dialect.blocked, 3)])


@played()
@SLOW
async def test_single_messages_keep_their_order(world: World, peer: Peer, dialect: Dialect) -> None:
    texts = ["慢" * (20 if i % 5 == 0 else 0) + "早" for i in range(40)]
    await peer.ask(*(dialect.submit(text, i + 2) for i, text in enumerate(texts)))
    assert world.gateway.submitted() == list(range(2, 42))


@played()
async def test_a_frame_in_pieces(peer: Peer, dialect: Dialect) -> None:
    for byte in dialect.submit(THREAT, 2):
        peer.send(bytes([byte]))
        await asyncio.sleep(0)
    assert await peer.answers(1) == {2: dialect.blocked}


# ---- logins


@played()
async def test_nothing_is_judged_or_passed_before_a_login_has_succeeded(world: World, dialect: Dialect) -> None:
    stranger = await world.connect()
    world.gateway.answer = lambda data: dialect.answer(
        data, 3 if dialect.read(data)[0] == dialect.command["login"] else 0
    )
    stranger.send(dialect.submit(GREETING, 2), dialect.login(3), dialect.submit(THREAT, 4), dialect.submit(GREETING, 5))
    assert await stranger.answers(4) == {2: dialect.unbound, 3: 3, 4: dialect.unbound, 5: dialect.unbound}
    assert world.gateway.received == [dialect.login(3)]
    assert world.scoring.asked == []


@played()
async def test_an_answer_to_another_command_is_no_login(world: World, dialect: Dialect) -> None:
    stranger = await world.connect()
    world.gateway.answer = lambda data: b""
    stranger.send(dialect.alive(3), dialect.login(3))
    await until(lambda: len(world.gateway.received) >= 2)
    world.gateway.writers[0].write(dialect.answer(dialect.alive(3)) + dialect.answer(dialect.login(3), 3))
    stranger.send(dialect.submit(GREETING, 4))
    await stranger.read()
    assert await stranger.answers(2) == {3: 3, 4: dialect.unbound}
    assert len(world.gateway.received) == 2


@played()
async def test_a_login_by_the_gateway_leaves_the_clients_own(world: World, peer: Peer, dialect: Dialect) -> None:
    world.gateway.writers[0].write(dialect.login(9))
    assert await peer.read() == dialect.login(9)
    peer.send(dialect.answer(dialect.login(9), 1), dialect.submit(GREETING, 2))
    assert await peer.answers(1) == {2: 0}


@SLOW
def test_a_login_that_is_not_answered_ends_the_session(dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LOGIN_SECONDS", 0.2)

    async def scenario(world: World) -> None:
        world.gateway.answer = lambda data: b""
        peer = await world.connect()
        peer.send(dialect.login(), dialect.submit(GREETING, 2))
        assert await peer.read() == b""
        assert world.gateway.received == [dialect.login()]

    before = ended("silent"), ended("slow")
    play(scenario, dialect)
    assert (ended("silent"), ended("slow")) == (before[0] + 1, before[1])


@played()
async def test_who_never_logs_in_is_sent_away(world: World, dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LOGIN_SECONDS", 0.1)
    peer = await world.connect()
    assert await peer.read() == b""
    assert world.gateway.writers == []


@played()
@pytest.mark.parametrize("logs_in", [False, True])
@SLOW
async def test_a_stranger_does_not_keep_a_connection(
    world: World, dialect: Dialect, logs_in: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "LOGIN_SECONDS", 0.1)
    login = dialect.command["login"]
    world.gateway.answer = lambda data: dialect.answer(data, 3 if dialect.read(data)[0] == login else 0)
    peer = await world.connect()
    assert await peer.ask(dialect.login(2) if logs_in else dialect.alive(2)) == {2: 3 if logs_in else 0}
    assert await peer.read() == b""


@pytest.mark.parametrize("status", [-1, 256, 1 << 32])
def test_a_status_that_no_response_can_have(dialect: Dialect, status: int) -> None:
    fields = {
        "gateway": ("", 1), "hold": 1, "remember": 1, "part_memory": 1, "judge": "submit", "coding": [], "rate": None,
        "proxy_protocol": False, "share_parts": False,
    }  # fmt: skip
    given = argparse.Namespace(**fields, block_status=status)
    if status == 256 and dialect.name in ("smpp", "smgp"):
        assert proxy.settings(dialect.codec, given, None).statuses["block"] == 256  # type: ignore[arg-type]
        return
    with pytest.raises(ConfigError, match=f"--block-status {status} does not fit"):
        proxy.settings(dialect.codec, given, None)  # type: ignore[arg-type]


@played()
async def test_connections_are_bounded(world: World, dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.proxy._listener, "_most", 2)
    peers = [await world.bound(), await world.bound()]
    before = ended("too_many")
    assert await (await world.connect()).read() == b""
    assert ended("too_many") - before == 1
    peers[0].send(dialect.submit(GREETING, 2))
    assert await peers[0].answers(1) == {2: 0}


# ---- without a verdict


@played(given="on_failure", jingyin=1)
@pytest.mark.parametrize("on_failure", ["pass", "block"])
async def test_without_jingyin(
    world: World, peer: Peer, dialect: Dialect, on_failure: str, capfd: pytest.CaptureFixture[str]
) -> None:
    status = dialect.blocked if on_failure == "block" else 0
    world.client._answered = -1e9
    with counts({(on_failure, "resting"): 1}):
        failures = await peer.ask(*(dialect.submit(THREAT, i) for i in range(2, 2 + MOST_FAILURES)))
        assert set(failures.values()) == {status}
        peer.send(dialect.submit(THREAT, 98), dialect.submit(THREAT, 99))  # one more is asked about, the next is not
        assert await peer.answers(2) == {98: status, 99: status}
    assert capfd.readouterr().err.count("jingyin_fails") == 1


@played(seconds=0.05)
@SLOW
async def test_what_a_sender_can_bring_about_makes_nobody_rest(peer: Peer, dialect: Dialect) -> None:
    for i in range(2, 40, 2):
        peer.send(dialect.submit("慢" * 60, i), dialect.submit(THREAT, i + 1))
        assert await peer.answers(2) == {i: 0, i + 1: dialect.blocked}


@SLOW
def test_a_service_that_comes_back_is_used_again(dialect: Dialect, capfd: pytest.CaptureFixture[str]) -> None:
    with InThread() as first:
        port = first.port

        async def scenario(world: World) -> None:
            peer = await world.bound()
            assert await peer.ask(dialect.submit(THREAT, 2)) == {2: dialect.blocked}
            await asyncio.to_thread(first.__exit__)
            assert await peer.ask(dialect.submit(THREAT, 3)) == {3: 0}
            with InThread(port=port):
                assert await peer.ask(dialect.submit(THREAT, 4)) == {4: dialect.blocked}

        play(scenario, dialect, jingyin=port)
    assert "jingyin_answers" in capfd.readouterr().err


@played(dry_run=True)
async def test_a_dry_run_blocks_nothing_and_counts(world: World, peer: Peer, dialect: Dialect) -> None:
    sent = [dialect.submit(THREAT, 2), dialect.part(THREAT, 3, (1, 2, 1)), dialect.part(GREETING, 4, (1, 2, 2))]
    with counts({("would_block", "scored"): 3, ("block", "scored"): 0}):
        assert await peer.ask(*sent) == {2: 0, 3: 0, 4: 0}
    assert sorted(world.gateway.received[1:]) == sorted(sent)


@played()
async def test_any_reason_is_counted(world: World, peer: Peer, dialect: Dialect) -> None:
    with counts({("review", "sender"): 1, ("pass", "ValueError"): 1}):
        for sequence, reason in ((2, "sender"), (3, "死 13800000000")):
            world.scoring.answer = {"action": "review", "reason": reason}
            assert await peer.ask(dialect.submit(GREETING, sequence)) == {sequence: 0}
    labels = {value for metric in MESSAGES.collect() for sample in metric.samples for value in sample.labels.values()}
    assert all(label.isascii() for label in labels)


# ---- how sessions end


@played()
async def test_the_end_of_a_session_follows_what_was_submitted(world: World, peer: Peer, dialect: Dialect) -> None:
    peer.send(dialect.submit("慢" * 50, 2), dialect.submit(GREETING, 3), dialect.submit(THREAT, 4), dialect.close(5))
    assert await peer.answers(4) == {2: 0, 3: 0, 4: dialect.blocked, 5: 0}
    submit, close = dialect.command["submit"], dialect.command["close"]
    assert [dialect.read(each)[0] for each in world.gateway.received[1:]] == [submit, submit, close]


@played(hold=60)
async def test_the_gateways_end_is_answered_behind_messages(world: World, peer: Peer, dialect: Dialect) -> None:
    close = dialect.close(9)
    peer.send(dialect.submit("慢" * 50, 2), dialect.part("早", 3, (7, 2, 1)))
    (session,) = world.proxy._sessions
    while len(session._client.unanswered) < 2:
        await asyncio.sleep(0)
    world.gateway.writers[0].write(close)
    assert await peer.read() == close
    peer.send(dialect.answer(close))
    await until(lambda: len(world.gateway.received) >= 4)
    assert sorted(world.gateway.submitted()) == [2, 3]
    assert world.gateway.received[3] == dialect.answer(close)


@played()
async def test_a_client_that_goes_away_has_still_sent_its_messages(world: World, peer: Peer, dialect: Dialect) -> None:
    peer.send(*(dialect.submit("慢" * 5, i) for i in range(2, 12)))
    peer.writer.close()
    await until(lambda: world.gateway.closed)
    assert world.gateway.submitted() == list(range(2, 12))


@played()
async def test_a_gateway_that_drops_answers_or_nobody_does(world: World, peer: Peer, dialect: Dialect) -> None:
    answer = world.gateway.answer

    def drop_after_five(data: bytes) -> bytes:
        if len(world.gateway.submitted()) == 5:
            asyncio.get_running_loop().call_soon(world.gateway.writers[0].close)
        return answer(data)

    world.gateway.answer = drop_after_five
    peer.send(*(dialect.submit("慢" * 2 * i, i) for i in range(2, 52)))
    answered = []
    while data := await peer.read():
        answered.append(dialect.read(data)[2])
    assert 5 <= len(answered) < 50
    assert set(answered) <= set(world.gateway.submitted())  # the client sends the others again


@played()
async def test_a_gateway_that_is_down_refuses_the_login(world: World, dialect: Dialect) -> None:
    world.gateway.stop()
    peer = await world.connect()
    peer.send(dialect.login(4))
    assert dialect.read(await peer.read()) == (dialect.command["login"] | RESPONSE, dialect.down, 4)
    assert await peer.read() == b""


@played()
@SLOW
async def test_a_drain_refuses_the_new_and_loses_nothing(world: World, peer: Peer, dialect: Dialect) -> None:
    answer = world.gateway.answer
    submit, close = dialect.command["submit"], dialect.command["close"]
    world.gateway.answer = lambda data: b"" if dialect.read(data)[0] == submit else answer(data)  # it answers late
    peer.send(dialect.submit("慢" * 50, 2), dialect.submit(THREAT, 3))
    (session,) = world.proxy._sessions
    while len(session._client.unanswered) < 2:
        await asyncio.sleep(0)
    draining = asyncio.create_task(world.proxy.drain())
    while not session.draining:
        await asyncio.sleep(0)
    peer.send(dialect.submit(GREETING, 4), dialect.alive(5))
    assert await peer.answers(3) == {3: dialect.blocked, 4: dialect.busy, 5: 0}
    assert not draining.done()
    await until(lambda: world.gateway.submitted())
    world.gateway.writers[0].write(dialect.answer(dialect.submit(GREETING, 2)))
    assert await peer.answers(1) == {2: 0}
    asked = await peer.read()
    assert dialect.read(asked)[0] == close
    peer.send(dialect.answer(asked))
    assert await peer.read() == b""
    await draining
    assert world.gateway.submitted() == [2]
    assert dialect.read(world.gateway.received[-1])[0] == close
    with pytest.raises(ConnectionRefusedError):
        await world.connect()


# ---- what no peer should send


@pytest.mark.parametrize("length", [0, 11, 1 << 24, 0xFFFFFFFF])
def test_a_length_that_can_not_be_ends_the_session(dialect: Dialect, length: int) -> None:
    async def scenario(world: World) -> None:
        peer = await world.bound()
        peer.send(dialect.submit(GREETING, 2), length.to_bytes(4), THREAT.encode("utf-16-be"))
        answers = []
        while data := await peer.read():
            answers.append(dialect.read(data))
        assert (dialect.command["submit"] | RESPONSE, 0, 2) in answers
        assert world.gateway.submitted() == [2]

    before = ended("frame")
    play(scenario, dialect)
    assert ended("frame") == before + 1


@played()
async def test_what_is_no_frame_at_all(world: World, dialect: Dialect) -> None:
    peer = await world.connect()
    peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    while await peer.read():
        pass
    assert world.gateway.writers == []


@played()
async def test_half_a_frame_goes_nowhere(world: World, peer: Peer, dialect: Dialect) -> None:
    peer.send(dialect.submit(GREETING, 2), dialect.submit(GREETING, 3)[:-1])
    peer.writer.write_eof()
    assert await peer.answers(1) == {2: 0}
    assert await peer.read() == b""
    assert world.gateway.submitted() == [2]


@SLOW
def test_a_slow_sender_is_read_until_its_time_is_up(dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "READ_SECONDS", 0.3)

    async def scenario(world: World) -> None:
        peer, other = await world.bound(), await world.bound()
        for byte in dialect.submit(THREAT, 3)[:-1]:
            peer.send(bytes([byte]))
            await asyncio.sleep(0.01)
            if peer.reader.at_eof():
                break
        assert await other.ask(dialect.alive(2)) == {2: 0}  # nobody else waits
        while await peer.read():
            pass
        assert world.gateway.submitted() == []

    before = ended("slow")
    play(scenario, dialect)
    assert ended("slow") == before + 1


@SLOW
def test_a_frame_gets_its_time_even_after_a_wait_for_others(dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "READ_SECONDS", 0.2)

    async def run() -> None:
        reader, data = asyncio.StreamReader(), dialect.submit(GREETING, 2)
        peer = session._Peer(reader, None, dialect.codec())  # type: ignore[arg-type]
        reader.feed_data(data + data[:30])
        frames = [await peer.read()]
        await asyncio.sleep(0.3)
        asyncio.get_running_loop().call_later(0.05, reader.feed_data, data[30:])
        frames.append(await peer.read())
        assert [frame.data for frame in frames if frame] == [data, data]

    asyncio.run(run())


@played(on_failure="pass")
async def test_a_message_cut_short_is_refused_whatever_is_set(world: World, peer: Peer, dialect: Dialect) -> None:
    for i, cut in enumerate(range(4, len(dialect.submit(THREAT, 2)) - 24, 7)):
        whole = dialect.submit(THREAT, i + 2)
        data = whole[: len(dialect.frame(0)) + cut]
        peer.send(len(data).to_bytes(4) + data[4:])
        command, status, sequence = dialect.read(await peer.read())
        assert (command, sequence) == (dialect.command["submit"] | RESPONSE, i + 2)
        assert status in (dialect.unreadable, dialect.blocked)
    assert len(world.gateway.received) == 1


@played()
async def test_a_client_that_does_not_read_holds_up_itself_alone(world: World, dialect: Dialect) -> None:
    deaf, other = await world.bound(), await world.bound()
    world.gateway.answer = lambda data: data  # as large as what was asked
    deaf.send(*(dialect.frame(0x777, bytes(10_000), i) for i in range(2, 400)))
    other.send(dialect.submit(GREETING, 2))
    assert await other.read() == dialect.submit(GREETING, 2)


@pytest.mark.parametrize("side", ["client", "gateway"])
@SLOW
def test_a_peer_that_does_not_read_is_disconnected(
    dialect: Dialect, side: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "WRITE_SECONDS", 0.3)

    async def scenario(world: World) -> None:
        peer = await world.bound()
        before = ended(side)
        busy = world.gateway.writers[0] if side == "client" else peer.writer
        if side == "gateway":
            world.gateway.reads.clear()
        data = dialect.frame(0x7777, bytes(8_000), 2) * 100
        for _ in range(40):
            busy.write(data)
        await until(lambda: not world.proxy._sessions)
        assert ended(side) == before + 1
        world.gateway.reads.set()

    play(scenario, dialect)
    assert "socket.send" not in capfd.readouterr().err


@played()
@SLOW
async def test_a_deluge_without_waiting(world: World, dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SESSION_BYTES", 20_000)
    most, peer = 0, await world.bound()
    reading = asyncio.create_task(peer.ask(*(dialect.submit(GREETING + "慢", i) for i in range(2, 202))))
    while not reading.done():
        most = max(most, world.settings.waiting_bytes)
        await asyncio.sleep(0)
    assert set((await reading).values()) == {0}
    assert world.gateway.submitted() == list(range(2, 202))
    assert world.settings.waiting_bytes == 0
    assert 10_000 < most < 25_000


@played()
@SLOW
async def test_a_flood_of_one_session_leaves_room_for_another(world: World, dialect: Dialect) -> None:
    flooding, other = await world.bound(), await world.bound()
    flooding.send(*(dialect.submit("慢" * 40, i, to=(str(13900000000 + i),)) for i in range(2, 202)))
    await asyncio.sleep(0.02)
    assert await other.ask(dialect.submit(THREAT, 2)) == {2: dialect.blocked}
    assert len(world.gateway.submitted()) < 150  # of the flood's 200


@pytest.mark.parametrize(("size", "count", "seconds"), [(10_000, 4, 0.1), (100, 100, 0.005)])
def test_long_readings_hold_up_nobody(size: int, count: int, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nonsense takes up to half a second; if that delayed the answers about others, they would pass unread."""
    read, slow_ones = parts.readings, 0

    def slow(segments: Sequence[Segment], coding: str | int) -> list[Decoded]:
        nonlocal slow_ones
        if len(segments[0].payload) >= size:
            time.sleep(seconds)
            slow_ones += 1
        return read(segments, coding)

    monkeypatch.setattr(parts, "readings", slow)

    async def scenario(world: World) -> None:
        flooding, other = await world.bound(), await world.bound()
        flooding.send(*(SMPP.submit(b"", i, tlvs=tlv(0x424, b"\x65\xe9" * (size // 2))) for i in range(2, count + 2)))
        await until(lambda: slow_ones)
        assert await other.ask(SMPP.submit(THREAT, 2)) == {2: SMPP.blocked}
        assert slow_ones < count

    play(scenario, SMPP)


@pytest.mark.parametrize("faulty", ["_take", "_is_own"])
def test_a_fault_of_the_proxy_is_blamed_on_no_peer(
    dialect: Dialect, faulty: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("死")

    async def scenario(world: World) -> None:
        peer = await world.bound()
        monkeypatch.setattr(session._Flow, faulty, fail)
        peer.send(dialect.submit(GREETING, 2))
        world.gateway.writers[0].write(dialect.alive(9))
        while await peer.read():
            pass

    before = {by: ended(by) for by in ("fault", "client", "gateway")}
    play(scenario, dialect)
    assert {by: ended(by) - before[by] for by in before} == {"fault": 1, "client": 0, "gateway": 0}
    assert '"event": "session_failed", "error": "KeyError"' in capfd.readouterr().err


@pytest.mark.parametrize("side", ["client", "gateway"])
def test_a_peer_that_resets_its_connection_is_no_fault(dialect: Dialect, side: str) -> None:
    async def scenario(world: World) -> None:
        peer: Peer = await world.bound()
        (peer.writer if side == "client" else world.gateway.writers[0]).transport.abort()
        await until(lambda: ended(side) != before)

    before, faults = ended(side), ended("fault")
    play(scenario, dialect)
    assert ended("fault") == faults


@played()
async def test_nonsense_from_the_gateway_ends_the_session(world: World, peer: Peer, dialect: Dialect) -> None:
    world.gateway.writers[0].write(bytes(16))
    assert await peer.read() == b""


# ---- not read in full


@played()
@pytest.mark.parametrize(
    ("action", "risk", "refused"),
    [("pass", 0.09, False), ("pass", 0.1, True), ("pass", None, True), ("review", 0.7, True)],
)
async def test_what_was_not_read_in_full_and_is_risky_is_refused_for_now(
    world: World, peer: Peer, dialect: Dialect, action: str, risk: float | None, refused: bool
) -> None:
    world.scoring.answer = {"action": action, "reason": "deadline", "risk": risk}
    halves = (dialect.part(half, 4 + i, (7, 2, 1 + i)) for i, half in enumerate(HALVES))
    with counts({("refuse", "deadline"): 3 * refused}):
        answers = await peer.ask(dialect.submit(GREETING, 3), *halves)
    assert set(answers.values()) == {dialect.busy if refused else 0}
    assert len(world.gateway.submitted()) == (0 if refused else 3)


@pytest.mark.parametrize(("setting", "action"), [({"unread": "forward"}, "review"), ({"dry_run": True}, "would_block")])
def test_what_was_not_read_in_full_may_be_forwarded(dialect: Dialect, setting: dict[str, Any], action: str) -> None:
    async def scenario(world: World) -> None:
        world.scoring.answer = {"action": "pass", "reason": "deadline", "risk": 0.5}
        peer = await world.bound()
        with counts({(action, "deadline"): 1}):
            assert await peer.ask(dialect.submit(GREETING, 3)) == {3: 0}

    play(scenario, dialect, **setting)


@played(seconds=SECONDS_TO_WAIT)
async def test_the_service_gets_two_thirds_of_the_wait(world: World, peer: Peer, dialect: Dialect) -> None:
    await peer.ask(dialect.submit(GREETING, 3))
    assert [each["deadline_ms"] for each in world.scoring.asked] == [2_000]


# ---- accounts


@played(rate=0.001)
async def test_an_account_that_sends_more_than_its_rate_is_told_to_wait(world: World, dialect: Dialect) -> None:
    peer, other = await world.bound(), await world.bound("other1")
    with counts({("refuse", "rate"): 1}):
        assert await peer.ask(dialect.submit(GREETING, 2), dialect.submit(GREETING, 3)) == {2: 0, 3: dialect.busy}
        two = dialect.submit(GREETING, 2, to=("138", "139"))  # more receivers than a second's worth
        assert await other.ask(two) == {2: 0}


def test_the_refused_account_is_named_by_a_salted_hash(
    dialect: Dialect, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JINGYIN_ACCOUNT_SALT", "salt")

    async def scenario(world: World) -> None:
        peer = await world.bound("901234")
        await peer.ask(*(dialect.submit(THREAT, sequence) for sequence in (2, 3)))

    name = Accounts(salt="salt").name("901234")
    labels = {"account": name, "action": "block"}
    before = REGISTRY.get_sample_value("jingyin_gateway_refused_total", labels) or 0
    play(scenario, dialect)
    assert REGISTRY.get_sample_value("jingyin_gateway_refused_total", labels) == before + 2
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    (refused,) = [line for line in lines if line["event"] == "refused"]
    assert (refused["account"], refused["reason"], refused["messages"]) == (name, "scored", 1)
    (end,) = [line for line in lines if line["event"] == "session_ended"]
    assert (end["account"], end["session"]) == (name, refused["session"])
    assert "901234" not in json.dumps(lines)


@pytest.mark.parametrize(
    ("header", "source"),
    [
        (b"PROXY TCP4 192.0.2.7 192.0.2.8 5000 2776\r\n", "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::8 5000 2776\r\n", "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n", ""),
        (V2 + bytes.fromhex("2111000f c0000207 c0000208 1388 0ad8 aabbcc"), "192.0.2.7"),
        (V2 + bytes.fromhex("20000000"), ""),
        (b"PROXY TCP4 host 192.0.2.8 5000 2776\r\n", None),
        (b"PROXY TCP4 999.0.2.7 192.0.2.8 5000 2776\r\n", None),
        (b"PROXY TCP4 " + b"1" * 200, None),
        (V2 + bytes.fromhex("21110004 c0000207"), None),
        (b"", None),
    ],
)
def test_the_source_behind_a_load_balancer(
    header: bytes, source: str | None, dialect: Dialect, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario(world: World) -> None:
        peer = await world.connect()
        peer.send(header + dialect.login() + dialect.close(2))
        await peer.read()

    play(scenario, dialect, proxy_protocol=True)
    (end,) = [json.loads(line) for line in capfd.readouterr().err.splitlines() if "session_ended" in line]
    assert (end["by"] == "frame") == (source is None)
    assert end["source"] == (source or "")
