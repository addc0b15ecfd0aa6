"""What no ESME should send, and how each is answered. No text in any log."""

import asyncio
import struct
from collections.abc import Iterator

import pytest
from tests.serve.gateways.smpp_fakes import (
    ENQUIRE,
    GREETING,
    RESPONSE,
    SUBMIT,
    THREAT,
    World,
    head,
    pdu,
    play,
    submit,
    tlv,
)

from jingyin.serve.gateways.smpp import pdu as pdus
from jingyin.serve.gateways.smpp import session
from jingyin.serve.gateways.smpp.report import REGISTRY

pytestmark = pytest.mark.service


def ended(by: str) -> float:
    return REGISTRY.get_sample_value("jingyin_smpp_sessions_ended_total", {"by": by}) or 0.0


@pytest.fixture(autouse=True)
def _silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    log = "".join(capfd.readouterr())
    assert "死" not in log
    assert "\\u6b7b" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("length", [0, 15, 0x20001, 0xFFFFFFFF])
def test_a_lying_length_is_answered_and_ends_the_session(length: int) -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(submit(GREETING, 2), struct.pack(">4I", length, SUBMIT, 0, 3), THREAT.encode("utf-16-be"))
        read = {head(await esme.read()) for _ in range(2)}
        assert read == {(SUBMIT | RESPONSE, 0, 2), (RESPONSE, 2, 0)}  # generic_nack, ESME_RINVCMDLEN
        assert await esme.read() == b""
        assert world.smsc.submitted() == [2]

    play(scenario)


def test_a_lying_length_before_bind() -> None:
    async def scenario(world: World) -> None:
        esme = await world.connect()
        esme.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert head(await esme.read()) == (RESPONSE, 2, 0)
        assert await esme.read() == b""
        assert world.smsc.writers == []

    play(scenario)


def test_a_truncated_pdu_goes_nowhere() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(submit(GREETING, 2), submit(GREETING, 3)[:-1])
        esme.writer.write_eof()
        assert await esme.answers(1) == {2: 0}
        assert await esme.read() == b""
        assert world.smsc.submitted() == [2]

    play(scenario)


@pytest.mark.parametrize(
    "bad",
    [
        submit(THREAT, 2, size=200),
        submit(THREAT, 2, size=3),
        submit(THREAT, 2, tlvs=tlv(0x424, b"abc", 50)),
        pdu(SUBMIT, THREAT.encode("utf-16-be"), 2),
        pdu(SUBMIT, b"", 2),
    ],
)
@pytest.mark.parametrize(("on_failure", "status"), [("pass", 0x43), ("block", 0x45)])
def test_fields_that_do_not_hold_together_are_the_smscs_to_refuse(bad: bytes, on_failure: str, status: int) -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        world.smsc.answer = lambda data: pdu(head(data)[0] | RESPONSE, b"", head(data)[2], 0x43)
        esme.send(bad)
        assert await esme.answers(1) == {2: status}
        assert world.smsc.received[1:] == ([bad] if on_failure == "pass" else [])

    labels = {"action": on_failure, "reason": "unreadable"}
    before = REGISTRY.get_sample_value("jingyin_smpp_messages_total", labels) or 0
    play(scenario, on_failure=on_failure)
    assert REGISTRY.get_sample_value("jingyin_smpp_messages_total", labels) == before + 1


def test_64_kilobytes() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        filler = "早" * 32_700
        large = submit(b"", 2, tlvs=tlv(0x424, filler.encode("utf-16-be")))
        esme.send(large, submit(b"", 3, tlvs=tlv(0x424, (filler + "死").encode("utf-16-be"))))
        assert await esme.answers(2) == {2: 0, 3: 0x45}
        assert world.smsc.received[1:] == [large]

    play(scenario)


@pytest.mark.parametrize("header", [b"\xff\0\3\7", b"\5\0\4\7\2\1", b"\5\0\3\7\2\3", b"\5\0\3\7\0\1", b"\1\0", b"\0"])
def test_headers_with_wrong_lengths_or_numbers_hide_nothing(header: bytes) -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(submit(header + THREAT.encode("utf-16-be"), 2, esm=0x40))
        assert await esme.answers(1) == {2: 0x45}

    play(scenario)


def test_a_slow_sender_is_read_until_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdus, "READ_SECONDS", 2)

    async def scenario(world: World) -> None:
        esme, other = await world.bound(), await world.bound()
        for byte in submit(THREAT, 2):
            esme.send(bytes([byte]))
            await asyncio.sleep(0.001)
        assert await esme.answers(1) == {2: 0x45}
        esme.send(submit(THREAT, 3)[:20])
        other.send(pdu(ENQUIRE, b"", 2))
        assert await other.answers(1) == {2: 0}  # nobody else waits
        assert await esme.read() == b""
        assert world.smsc.submitted() == []

    play(scenario)


def test_who_never_binds_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "BIND_SECONDS", 0.2)

    async def scenario(world: World) -> None:
        esme = await world.connect()
        assert await esme.read() == b""
        assert world.smsc.writers == []

    play(scenario)


def test_a_client_that_does_not_read_holds_up_itself_alone() -> None:
    async def scenario(world: World) -> None:
        deaf, other = await world.bound(), await world.bound()
        deaf.send(*(pdu(0x777, bytes(60_000), i) for i in range(2, 80)))
        world.smsc.answer = lambda data: pdu(head(data)[0] | RESPONSE, data[16:], head(data)[2])
        other.send(submit(GREETING, 2))
        assert (await other.answers(1))[2] == 0

    play(scenario)


def test_a_deluge_without_waiting_for_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MOST_PENDING", 20)

    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(*(submit(GREETING, i) for i in range(2, 202)))
        assert set((await esme.answers(200)).values()) == {0}
        assert world.smsc.submitted() == list(range(2, 202))

    play(scenario)


@pytest.mark.parametrize("faulty", ["_take", "_is_ours"])
def test_a_fault_of_the_proxy_is_blamed_on_no_peer(
    faulty: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*given: object) -> None:
        raise KeyError("死")

    async def scenario(world: World) -> None:
        esme = await world.bound()
        monkeypatch.setattr(session.Session if faulty == "_take" else session, faulty, fail)
        esme.send(submit(GREETING, 2))
        world.smsc.writers[0].write(pdu(ENQUIRE, b"", 9))
        while await esme.read():
            pass

    before = {by: ended(by) for by in ("fault", "esme", "smsc")}
    play(scenario)
    assert {by: ended(by) - before[by] for by in before} == {"fault": 1, "esme": 0, "smsc": 0}
    log = capfd.readouterr().err
    assert '"event": "session_failed", "error": "KeyError"' in log
    assert "死" not in log


@pytest.mark.parametrize(("side", "by"), [("esme", "esme"), ("smsc", "smsc")])
def test_a_peer_that_resets_its_connection_is_no_fault(side: str, by: str) -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        (esme.writer if side == "esme" else world.smsc.writers[0]).transport.abort()
        while ended(by) == before:
            await asyncio.sleep(0.01)

    before, faults = ended(by), ended("fault")
    play(scenario)
    assert ended("fault") == faults


def test_nonsense_from_the_smsc_ends_the_session() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        world.smsc.writers[0].write(bytes(16))
        assert await esme.read() == b""

    play(scenario)
