"""What the codec reads of SMPP, and what it refuses."""

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.gateways.dialects import PHONE, SMPP, SOURCE, sar, tlv, udh
from tests.serve.gateways.fakes import GREETING, THREAT, Peer, World, counts, played
from tests.serve.gateways.golden import GOLDEN

from jingyin.serve.gateways.client import RISKY
from jingyin.serve.gateways.codec import Frame, FrameError, FrameKind, Message, UnreadableError, digits
from jingyin.serve.gateways.smpp import Smpp
from jingyin.serve.sms import Part, Segment

UCS2 = "你好".encode("utf-16-be")


def read(data: bytes) -> Message | None:
    codec = Smpp()
    assert codec.cut(data) == len(data)
    return codec.read(codec.frame(data))


def status(data: bytes) -> str:
    with pytest.raises(UnreadableError, match="hold together") as error:
        read(data)
    return error.value.status


@pytest.mark.parametrize(
    "data",
    [
        SMPP.submit("你好", 1),
        SMPP.submit(b"", 1, tlvs=tlv(0x1400, b"x") + tlv(0x424, UCS2)),
        SMPP.submit("你好", 1, tlvs=tlv(0x1E, b"id\0")),
        SMPP.data_sm("你好", 1),
        SMPP.data_sm("你好", 1, tlvs=tlv(0x1403, b"vendor")),
        SMPP.submit("你好", 1, command=0x21),
    ],
)
def test_a_message(data: bytes) -> None:
    assert read(data) == Message([Segment(UCS2)], 8, None, SOURCE, [PHONE])


@pytest.mark.parametrize("fields", [{"source": "1" * 257}, {"to": ("1" * 257,)}, {"to": (PHONE, "1" * 257)}])
def test_an_address_that_no_protocol_has_is_refused(fields: dict[str, Any]) -> None:
    """Parts are kept with their addresses, and one may have 100 KB of them."""
    assert status(SMPP.submit("你好", 1, **fields)) == "unreadable"
    assert read(SMPP.submit("你好", 1, source="1" * 256, to=("1" * 256,)))


def test_parts_to_a_distribution_list_are_refused() -> None:
    whole, part = (
        data.replace(b"\1\1\1" + PHONE.encode() + b"\0", b"\2friends123456\0")
        for data in (SMPP.submit("你好", 1, command=0x21), SMPP.part("你好", 1, (7, 2, 1), command=0x21))
    )
    assert read(whole) == Message([Segment(UCS2)], 8, None, SOURCE, ["friends123456"])
    assert status(part) == "unreadable"


def test_golden_frames() -> None:
    you = "您".encode("utf-16-be")
    part = Message([Segment(you, bytes.fromhex("0500032a0201"))], 8, Part(0x2A, 2, 1), "10690001", ["8613800000000"])
    assert read(GOLDEN["smpp.submit_part"]) == part
    assert read(GOLDEN["smpp.submit_sar"]) == part._replace(texts=[Segment(you)], part=Part(0x1234, 2, 1), lone=True)
    assert read(GOLDEN["smpp.submit_payload"]) == part._replace(texts=[Segment("您好".encode("utf-16-be"))], part=None)
    assert read(GOLDEN["smpp.deliver_receipt"]) is None
    codec = Smpp()
    assert codec.refuse(codec.frame(GOLDEN["smpp.submit_part"]), 0x45) == GOLDEN["smpp.submit_refused"]
    assert not codec.succeeded(codec.frame(GOLDEN["smpp.submit_refused"]))
    assert codec.close() == struct.pack(">4I", 16, 6, 0, 0x7FFFFFFF)


def test_a_message_in_both_fields_is_read_in_both() -> None:
    made = read(SMPP.submit("你", 1, tlvs=tlv(0x424, UCS2) + tlv(0x424, b"\0a")))
    assert made
    you, other = "你".encode("utf-16-be"), b"\0a"
    assert made.texts[:3] == [Segment(you), Segment(UCS2), Segment(other)]
    assert {Segment(you + UCS2 + other), Segment(other + UCS2 + you)} <= {*made.texts}  # a peer may join them


def test_a_text_in_another_parameter_is_read_by_itself_and_behind_the_content() -> None:
    text = "今晚还钱".encode("utf-16-be")
    made = read(SMPP.submit(UCS2, 1, tlvs=tlv(0x1400, text) + tlv(0x1E, b"3fa85f64-5717\0") + tlv(0x1401, b"12345678")))
    assert made.texts == [Segment(UCS2), Segment(text), Segment(UCS2 + text)]


def test_several_destinations() -> None:
    body = b"\0\x01\x01100\0\3\x01\x01\x01200\0\2friends\0\x01\0\0+300\0" + bytes(9) + b"\0"
    assert read(SMPP.frame(0x21, body)).destinations == ["200", "friends", "+300"]


@pytest.mark.parametrize(
    ("data", "part", "segment"),
    [
        (SMPP.part(UCS2, 1, (7, 3, 2)), Part(7, 3, 2), Segment(UCS2, udh(7, 3, 2))),
        (SMPP.submit(b"", 1, udhi=1, tlvs=tlv(0x424, udh(7, 3, 2) + UCS2)), Part(7, 3, 2), Segment(UCS2, udh(7, 3, 2))),
        (SMPP.submit(UCS2, 1, tlvs=sar(0x102, 3, 2)), Part(0x102, 3, 2), Segment(UCS2)),
        (SMPP.part(UCS2, 1, (7, 3, 2), tlvs=sar(7, 3, 2)), Part(7, 3, 2), Segment(UCS2, udh(7, 3, 2))),
        (SMPP.part(UCS2, 1, (7, 3, 2), tlvs=sar(1, 1, 1)), Part(7, 3, 2), Segment(UCS2, udh(7, 3, 2))),
        (SMPP.submit(UCS2, 1, tlvs=sar(1, 3, 4)), None, Segment(UCS2)),
        (SMPP.submit(UCS2, 1, tlvs=sar(1, 1, 1)), None, Segment(UCS2)),
        (SMPP.submit(UCS2, 1, tlvs=tlv(0x20E, b"\3") + tlv(0x20F, b"\1")), Part(-1, 3, 1), Segment(UCS2)),
        (SMPP.submit(UCS2, 1, tlvs=tlv(0x20C, b"\1\2") + tlv(0x20E, b"\3")), None, Segment(UCS2)),
        (SMPP.submit(b"\xf0" + UCS2, 1, udhi=1), None, Segment(b"\xf0" + UCS2)),
        *(  # elements of another length
            (SMPP.submit(header + UCS2, 1, udhi=1), Part(0x2A, 2, 1), Segment(UCS2, header))
            for header in (b"\7\0\5\x2a\2\1\x70\0", b"\x08\x08\6\0\x2a\2\1\x70\0")
        ),
    ],
)
def test_a_part(data: bytes, part: Part | None, segment: Segment) -> None:
    made = read(data)
    assert (made.part, made.texts) == (part, [segment])


@pytest.mark.parametrize(
    ("header", "part"),
    [(udh(7, 3, 2), Part(7, 3, 2)), (udh(7, 3, 4), None), (b"\6\x08\4\1\7\3\2", Part(0x107, 3, 2)),
     (b"\6\x08\4\1\7\1\1", None)],
)  # fmt: skip
def test_a_header_that_was_not_announced_is_text_too(header: bytes, part: Part | None) -> None:
    made = read(SMPP.submit(header + UCS2, 1))
    assert (made.part, made.lone) == (part, part is not None)
    assert made.texts == [Segment(header + UCS2), Segment(UCS2, header)]


def test_the_name_of_a_callback_number_is_a_text() -> None:
    made = read(SMPP.submit("早", 1, tlvs=tlv(0x303, b"\x08" + UCS2 * 2)))
    assert Segment(UCS2 * 2) in made.texts


def test_a_push_by_port_is_read_as_binary_data() -> None:
    assert read(SMPP.submit(UCS2, 1, tlvs=tlv(0x20B, b"\x0b\x84"))).coding == 4


@pytest.mark.parametrize("filler", ["F", "f", "w", "FFF", "p", "#"])
def test_a_number_with_filler_behind_it_is_the_same(filler: str) -> None:
    assert digits(PHONE + filler) == digits("+86" + PHONE + filler) == PHONE
    assert digits("BANK-F") == "BANK-F"
    assert digits("1st bank") == "1st bank"


def test_a_damaged_header_is_read_as_text_too() -> None:
    made = read(SMPP.submit(b"\3\0\3\7" + UCS2, 1, udhi=1))
    assert made.part is None
    assert made.texts == [Segment(UCS2, b"\3\0\3\7"), Segment(b"\3\0\3\7" + UCS2)]


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (SMPP.submit("你好", 1, size=200), "unreadable"),
        (SMPP.submit("你好", 1, size=2), "parameters"),
        (SMPP.submit("你好", 1, tlvs=b"\0"), "parameters"),
        (SMPP.submit("你好", 1, tlvs=tlv(0x424, UCS2, 500)), "parameters"),
        (SMPP.submit("你好", 1, tlvs=b"\4\x24\0"), "parameters"),
        (SMPP.submit("你好", 1, tlvs=sar(1, 2, 1) + sar(1, 2, 2)), "parameters"),
        (SMPP.submit("你好", 1, tlvs=tlv(0x20C, b"\1") + tlv(0x20E, b"\3") + tlv(0x20F, b"\1")), "parameters"),
        (SMPP.submit("你好", 1, tlvs=sar(1, 2, 1)[:-5] + tlv(0x20F, b"\0\1")), "parameters"),
        (SMPP.part("你好", 1, (7, 3, 2), tlvs=sar(1, 4, 3)), "unreadable"),
        (SMPP.part("你好", 1, (7, 2, 1), tlvs=tlv(0x424, udh(7, 2, 2) + UCS2)), "unreadable"),
        (SMPP.submit(b"\x4e\x00" * 127, 2, tlvs=tlv(0x424, b"\x4e\x00" * 32_767)), "unreadable"),  # joined, too long
        (SMPP.frame(4), "unreadable"),
        (SMPP.frame(4, b"\0\x01\x01100"), "unreadable"),
        (SMPP.frame(0x103), "unreadable"),
        (SMPP.frame(0x103, b"\0\x01\x01100\0\x01\x01200\0\0"), "unreadable"),
        (SMPP.frame(0x21, b"\0\x01\x01100\0\7"), "unreadable"),
        (SMPP.frame(0x21, b"\0\x01\x01100\0\x01\x03200\0"), "unreadable"),
        (SMPP.frame(0x21, b"\0\x01\x01100\0\0" + bytes(10)), "unreadable"),
        (SMPP.frame(7, b"id\0\x01\x01100\0" + bytes(5)), "command"),
        (SMPP.frame(0x111), "command"),
    ],
)
def test_what_does_not_hold_together(data: bytes, wanted: str) -> None:
    assert status(data) == wanted


@pytest.mark.parametrize("length", [0, 15, (1 << 17) + 1, 0xFFFFFFFF])
def test_a_length_that_can_not_be(length: int) -> None:
    with pytest.raises(FrameError, match=f"{length} bytes; 16 to 131072"):
        Smpp().cut(struct.pack(">I", length))


@settings(deadline=None, max_examples=200)
@given(command=st.sampled_from([4, 5, 0x21, 0x103, 7]), body=st.binary(max_size=300))
def test_no_other_error_whatever_comes(command: int, body: bytes) -> None:
    try:
        made = read(SMPP.frame(command, body))
    except UnreadableError:
        return
    assert made is None or made.texts


# ---- what a server that is less strict would deliver


@played(SMPP, given="on_failure")
@pytest.mark.parametrize(
    ("bad", "wanted"),
    [
        (SMPP.submit(THREAT, 2) + b"\0", 0xC0),
        (SMPP.submit(THREAT, 2, tlvs=tlv(0x1400, b"abc", 50)), 0xC0),
        (SMPP.submit(THREAT, 2, size=200), 0x01),
        (SMPP.frame(7, b"id\0\x01\x01100\0\0\0\0\0" + bytes([14]) + THREAT.encode("utf-16-be"), 2), 0x03),
        (SMPP.frame(0x111, b"\0\x01\x01100\0", 2), 0x03),
    ],
)
@pytest.mark.parametrize("on_failure", ["pass", "block"])
async def test_what_can_not_be_read_is_refused_whatever_is_set(
    world: World, peer: Peer, bad: bytes, wanted: int, on_failure: str
) -> None:
    assert await peer.ask(len(bad).to_bytes(4) + bad[4:]) == {2: wanted}
    assert world.gateway.submitted() == []


@played(SMPP, coding=[(0, "gbk")])
async def test_the_coding_that_the_smsc_means_by_0(world: World, peer: Peer) -> None:
    peer.send(SMPP.submit(b"[{@}]", 2, coding=0), SMPP.submit(THREAT.encode("gbk"), 3, coding=0))
    assert await peer.answers(2) == {2: 0, 3: 0x45}
    assert world.scoring.asked[0]["text"] == "[{@}]"


@played(SMPP)
@pytest.mark.parametrize(
    ("coding", "codec"),
    [(0, "gbk"), (8, "utf-16-le"), (8, "gbk"), (0x18, "utf-16-be"), (0xE0, "utf-16-be"), (15, "utf-16-be")],
)
async def test_a_wrong_or_rare_coding_hides_nothing(peer: Peer, coding: int, codec: str) -> None:
    assert await peer.ask(SMPP.submit(THREAT.encode(codec), 2, coding=coding)) == {2: 0x45}


@played(SMPP)
async def test_data_sm_and_submit_multi_are_judged(world: World, peer: Peer) -> None:
    multi = SMPP.submit(GREETING, 3, to=("200", "300"))
    peer.send(SMPP.data_sm(THREAT, 2), multi, SMPP.submit(THREAT, 4, to=("200", "300")))
    assert await peer.answers(3) == {2: 0x45, 3: 0, 4: 0x45}
    assert world.gateway.received[1:] == [multi]
    world.gateway.writers[0].write(SMPP.data_sm(THREAT, 5))
    assert await peer.read() == SMPP.data_sm(THREAT, 5)


@played(SMPP)
async def test_64_kilobytes(world: World, peer: Peer) -> None:
    filler = "早" * 32_700
    large = SMPP.submit(b"", 2, tlvs=tlv(0x424, filler.encode("utf-16-be")))
    peer.send(large, SMPP.submit(b"", 3, tlvs=tlv(0x424, (filler + "死").encode("utf-16-be"))))
    assert await peer.answers(2) == {2: 0, 3: 0x45}
    assert world.gateway.received[1:] == [large]


@played(SMPP, given="unread")
@pytest.mark.parametrize(("unread", "action", "status"), [("refuse", "refuse", SMPP.busy), ("forward", "review", 0)])
async def test_what_was_not_read_in_full_never_passes_in_silence(
    world: World, peer: Peer, unread: str, action: str, status: int
) -> None:
    verdict = {"action": "pass", "reason": "scored", "risk": 0.01, "edits": {"cut": 22}}
    with counts({(action, "unread"): 1, (action, "long"): 1}):
        world.scoring.answer = {**verdict, "edits": {"cut": 28_000, "unread": 10_000}}
        assert await peer.ask(SMPP.submit(GREETING, 2)) == {2: status}
        world.scoring.answer = {**verdict, "risk": RISKY}
        assert await peer.ask(SMPP.submit(GREETING, 3)) == {3: status}
        world.scoring.answer = verdict
        assert await peer.ask(SMPP.submit(GREETING, 4)) == {4: 0}


def test_a_frame_is_read_with_its_kind() -> None:
    assert Smpp().frame(SMPP.login(3)) == Frame(FrameKind.LOGIN, 9, b"\0\0\0\3", SMPP.login(3))
    assert Smpp().frame(SMPP.answer(SMPP.login(3))).kind is FrameKind.ANSWER
    assert Smpp().frame(SMPP.close(3)).kind is FrameKind.CLOSE
    assert Smpp().frame(SMPP.alive(3)).kind is FrameKind.OTHER
