"""The proxy between real sockets: what goes on, what is refused, and how sessions end."""

import asyncio

import pytest
from tests.serve.gateways.smpp_fakes import (
    DELIVER,
    ENQUIRE,
    GREETING,
    RESPONSE,
    SUBMIT,
    THREAT,
    UNBIND,
    World,
    bind,
    data_sm,
    head,
    multi,
    pdu,
    play,
    submit,
    tlv,
)
from tests.serve.http.http_fakes import InThread

from jingyin.serve.gateways.smpp.judge import MOST_FAILURES
from jingyin.serve.gateways.smpp.report import MESSAGES, REGISTRY

pytestmark = pytest.mark.service


def counted(action: str, reason: str) -> float:
    return REGISTRY.get_sample_value("jingyin_smpp_messages_total", {"action": action, "reason": reason}) or 0.0


def test_a_threat_is_refused_and_the_rest_goes_on_untouched() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        greeting = submit(GREETING, 2, tlvs=tlv(0x1403, b"vendor"))
        esme.send(greeting, submit(THREAT, 3), submit(b"", 4, tlvs=tlv(0x424, THREAT.encode("utf-16-be"))))
        assert await esme.answers(3) == {2: 0, 3: 0x45, 4: 0x45}
        assert world.smsc.received == [bind(), greeting]

    before = counted("block", "scored"), counted("pass", "scored")
    play(scenario)
    assert (counted("block", "scored"), counted("pass", "scored")) == (before[0] + 2, before[1] + 1)


def test_a_refusal_is_a_header_with_the_configured_status() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(submit(THREAT, 9))
        assert await esme.read() == pdu(SUBMIT | RESPONSE, b"", 9, 0x400)

    play(scenario, status=0x400)


def test_data_sm_and_submit_multi_are_judged() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(data_sm(THREAT, 2), data_sm(GREETING, 3), multi(THREAT, 4), multi(GREETING, 5))
        assert await esme.answers(4) == {2: 0x45, 3: 0, 4: 0x45, 5: 0}
        assert world.smsc.received[1:] == [data_sm(GREETING, 3), multi(GREETING, 5)]

    play(scenario)


def test_review_passes_and_is_counted() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(submit("慢" * 30, 2))
        assert await esme.answers(1) == {2: 0}
        assert world.smsc.submitted() == [2]

    before = counted("review", "deadline")
    with InThread(deadline_ms=1, on_deadline="review") as slow:
        play(scenario, jingyin=slow.port)
    assert counted("review", "deadline") == before + 1


def test_other_pdus_pass_byte_for_byte_both_ways() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        strange, vendor = pdu(0x00000777, b"\xff\x00anything", 5), pdu(0x00010203, b"", 6, status=9)
        esme.send(strange, pdu(ENQUIRE, b"", 7), vendor)
        assert [head(await esme.read())[0] for _ in range(3)] == [
            0x777 | RESPONSE,
            ENQUIRE | RESPONSE,
            0x10203 | RESPONSE,
        ]
        delivery = pdu(DELIVER, b"\0\x01\x01200\0\x01\x01100\0\4\0\0\0\0\0\0\0\0\2id", 77)
        world.smsc.writers[0].write(delivery)
        assert await esme.read() == delivery
        esme.send(pdu(DELIVER | RESPONSE, b"\0", 77))
        esme.send(pdu(ENQUIRE, b"", 8))
        await esme.read()
        assert world.smsc.received[1:] == [
            strange, pdu(ENQUIRE, b"", 7), vendor, pdu(DELIVER | RESPONSE, b"\0", 77), pdu(ENQUIRE, b"", 8)
        ]  # fmt: skip

    play(scenario)


def test_throttling_is_passed_on() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        world.smsc.answer = lambda data: pdu(head(data)[0] | RESPONSE, b"", head(data)[2], 0x58)
        esme.send(submit(GREETING, 2))
        assert await esme.answers(1) == {2: 0x58}

    play(scenario)


def test_single_messages_keep_their_order() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        texts = ["慢" * (20 if i % 5 == 0 else 0) + "早" for i in range(40)]
        esme.send(*(submit(text, i + 2) for i, text in enumerate(texts)))
        await esme.answers(40)
        assert world.smsc.submitted() == list(range(2, 42))

    play(scenario)


def test_unbind_follows_what_was_submitted_before_it() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(submit("慢" * 50, 2), submit(GREETING, 3), submit(THREAT, 4), pdu(UNBIND, b"", 5))
        assert await esme.answers(4) == {2: 0, 3: 0, 4: 0x45, 5: 0}
        assert [head(each)[0] for each in world.smsc.received[1:]] == [SUBMIT, SUBMIT, UNBIND]

    play(scenario)


def test_an_esme_that_goes_away_has_still_sent_its_messages() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(*(submit("慢" * 5, i) for i in range(2, 12)))
        esme.writer.close()
        while not world.smsc.closed:
            await asyncio.sleep(0.01)
        assert world.smsc.submitted() == list(range(2, 12))

    play(scenario)


def test_when_the_smsc_drops_each_message_is_answered_by_it_or_not_at_all() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        answer = world.smsc.answer

        def drop_after_five(data: bytes) -> bytes:
            if len(world.smsc.submitted()) == 5:
                asyncio.get_running_loop().call_soon(world.smsc.writers[0].close)
            return answer(data)

        world.smsc.answer = drop_after_five
        esme.send(*(submit("慢" * 2 * i, i) for i in range(2, 52)))
        answered = []
        while data := await esme.read():
            answered.append(head(data)[2])
        assert 5 <= len(answered) < 50
        assert set(answered) <= set(world.smsc.submitted())  # the ESME sends the others again

    play(scenario)


def test_an_smsc_that_is_down_refuses_the_bind() -> None:
    async def scenario(world: World) -> None:
        world.smsc.stop()
        esme = await world.connect()
        esme.send(bind(4))
        assert head(await esme.read()) == (0x80000009, 0x0D, 4)
        assert await esme.read() == b""

    play(scenario)


@pytest.mark.parametrize(("on_failure", "status"), [("pass", 0), ("block", 0x45)])
def test_without_jingyin(on_failure: str, status: int, capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(*(submit(THREAT, i) for i in range(2, 2 + MOST_FAILURES)))
        assert set((await esme.answers(MOST_FAILURES)).values()) == {status}
        esme.send(submit(THREAT, 99))
        assert await esme.answers(1) == {99: status}

    before = counted(on_failure, "resting")
    play(scenario, jingyin=1, on_failure=on_failure)
    assert counted(on_failure, "resting") == before + 1
    log = capfd.readouterr().err
    assert log.count("jingyin_fails") == 1
    assert "死" not in log


def test_a_service_that_comes_back_is_used_again(capfd: pytest.CaptureFixture[str]) -> None:
    with InThread() as first:
        port = first.port

        async def scenario(world: World) -> None:
            esme = await world.bound()
            esme.send(submit(THREAT, 2))
            assert await esme.answers(1) == {2: 0x45}
            await asyncio.to_thread(first.__exit__)
            esme.send(submit(THREAT, 3))
            assert await esme.answers(1) == {3: 0}
            with InThread(port=port):
                esme.send(submit(THREAT, 4))
                assert await esme.answers(1) == {4: 0x45}

        play(scenario, jingyin=port)
    assert "jingyin_answers" in capfd.readouterr().err


def test_a_wrong_key_is_named_in_the_log(
    capfd: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"gateway {'0' * 64}\n")

    async def scenario(world: World) -> None:
        esme = await world.bound()
        esme.send(submit(THREAT, 2))
        assert await esme.answers(1) == {2: 0}

    with InThread(keys=keys) as closed:
        play(scenario, jingyin=closed.port, key="wrong")
    assert '"error": "status 401"' in capfd.readouterr().err


def test_requests_after_drain_are_refused_for_a_while_and_nothing_taken_is_lost() -> None:
    async def scenario(world: World) -> None:
        esme = await world.bound()
        answer = world.smsc.answer
        world.smsc.answer = lambda data: b"" if head(data)[0] == SUBMIT else answer(data)  # it answers late
        esme.send(submit("慢" * 50, 2), submit(THREAT, 3))
        (session,) = world.proxy._sessions.values()
        while len(session._unanswered) < 2:
            await asyncio.sleep(0)
        draining = asyncio.create_task(world.proxy.drain())
        while not session._draining:
            await asyncio.sleep(0)
        esme.send(submit(GREETING, 4), pdu(ENQUIRE, b"", 5))
        assert await esme.answers(3) == {3: 0x45, 4: 0x58, 5: 0}
        assert not draining.done()
        while not world.smsc.submitted():
            await asyncio.sleep(0.01)
        world.smsc.writers[0].write(pdu(SUBMIT | RESPONSE, b"id\0", 2))
        assert head(await esme.read()) == (SUBMIT | RESPONSE, 0, 2)
        asked = head(await esme.read())
        assert asked[0] == UNBIND
        esme.send(pdu(UNBIND | RESPONSE, b"", asked[2]))
        assert await esme.read() == b""
        await draining
        assert world.smsc.submitted() == [2]
        assert head(world.smsc.received[-1])[0] == UNBIND
        with pytest.raises(ConnectionRefusedError):
            await world.connect()

    play(scenario)


def test_the_metrics_hold_no_text() -> None:
    labels = {value for metric in MESSAGES.collect() for sample in metric.samples for value in sample.labels.values()}
    assert all(label.isascii() for label in labels)
