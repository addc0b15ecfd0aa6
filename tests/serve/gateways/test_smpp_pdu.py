import asyncio
import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.gateways.smpp_fakes import DATA, MULTI, SUBMIT, data_sm, head, multi, pdu, sar, submit, tlv, udh

from jingyin.model.errors import InputError
from jingyin.serve.gateways.smpp.pdu import JUDGED, MAX_PDU, FrameError, Pdu, coding, read_pdu, read_submitted
from jingyin.serve.sms import Part, Segment

UCS2 = "你好".encode("utf-16-be")


def parsed(data: bytes) -> Pdu:
    command, _, sequence = head(data)
    return Pdu(command, sequence, data)


@pytest.mark.parametrize(
    "data",
    [
        submit("你好", 1),
        submit(b"", 1, tlvs=tlv(0x1400, b"x") + tlv(0x424, UCS2)),
        submit("你好", 1, tlvs=tlv(0x1E, b"id\0")),
        submit("你好", 1, to="张".encode()),
        submit("你好", 1, to=b"\xff\xfe"),
        submit("你好", 1, to=b"1" * 60),
        data_sm("你好", 1),
        data_sm("你好", 1, tlvs=tlv(0x1403, b"vendor")),
        multi("你好", 1),
    ],
)
def test_a_message(data: bytes) -> None:
    read = read_submitted(parsed(data))
    assert (read.segments, read.coding, read.part, read.source) == ([Segment(UCS2)], "ucs2", None, "100")


def test_a_message_in_both_fields_is_read_in_both() -> None:
    read = read_submitted(parsed(submit("你", 1, tlvs=tlv(0x424, UCS2) + tlv(0x424, b"\0a"))))
    assert read.segments == [Segment("你".encode("utf-16-be")), Segment(UCS2), Segment(b"\0a")]


@pytest.mark.parametrize(
    ("data", "part", "segment"),
    [
        (submit(udh(7, 3, 2) + UCS2, 1, esm=0x40), Part(7, 3, 2), Segment(UCS2, udh(7, 3, 2))),
        (submit(b"", 1, esm=0x40, tlvs=tlv(0x424, udh(7, 3, 2) + UCS2)), Part(7, 3, 2), Segment(UCS2, udh(7, 3, 2))),
        (submit(UCS2, 1, tlvs=sar(0x102, 3, 2)), Part(0x102, 3, 2), Segment(UCS2, b"\6\x08\4\1\2\3\2")),
        (data_sm("你好", 1, tlvs=sar(0x102, 3, 2)), Part(0x102, 3, 2), Segment(UCS2, b"\6\x08\4\1\2\3\2")),
        (submit(UCS2, 1, tlvs=sar(1, 3, 4)), None, Segment(UCS2)),
        (submit(UCS2, 1, tlvs=sar(1, 1, 1)), None, Segment(UCS2)),
        (submit(UCS2, 1, tlvs=tlv(0x20C, b"\1") + tlv(0x20E, b"\3") + tlv(0x20F, b"\1")), None, Segment(UCS2)),
        (submit(UCS2, 1, tlvs=tlv(0x20E, b"\3") + tlv(0x20F, b"\1")), None, Segment(UCS2)),
        (submit(b"\x03\x00\x03\x07" + UCS2, 1, esm=0x40), None, Segment(UCS2, b"\x03\x00\x03\x07")),
        (submit(b"\xf0" + UCS2, 1, esm=0x40), None, Segment(b"\xf0" + UCS2)),
    ],
)
def test_a_part(data: bytes, part: Part | None, segment: Segment) -> None:
    read = read_submitted(parsed(data))
    assert (read.part, read.segments) == (part, [segment])


@pytest.mark.parametrize(
    "data",
    [
        submit("你好", 1, size=200),
        submit("你好", 1, size=2),
        submit("你好", 1, tlvs=tlv(0x424, UCS2, 500)),
        submit("你好", 1, tlvs=b"\4\x24\0"),
        pdu(SUBMIT),
        pdu(SUBMIT, b"\0\x01\x01100"),
        pdu(DATA),
        pdu(DATA, b"\0\x01\x01100\0\x01\x01200\0\0"),
        pdu(MULTI, b"\0\x01\x01100\0\7"),
        pdu(MULTI, b"\0\x01\x01100\0\x01\x03200\0"),
    ],
)
def test_what_does_not_hold_together(data: bytes) -> None:
    with pytest.raises(InputError, match="send them as SMPP"):
        read_submitted(parsed(data))


@settings(deadline=None)
@given(command=st.sampled_from(sorted(JUDGED)), body=st.binary(max_size=300))
def test_no_other_error_whatever_comes(command: int, body: bytes) -> None:
    with suppress(InputError):
        assert read_submitted(parsed(pdu(command, body))).segments


@pytest.mark.parametrize(
    ("data_coding", "name"),
    [
        (0, "gsm7"), (1, "ascii"), (2, "latin1"), (3, "latin1"), (4, "latin1"), (8, "ucs2"), (15, "gbk"),
        (0x10, "gsm7"), (0x14, "latin1"), (0x18, "ucs2"), (0x48, "ucs2"), (0xC0, "gsm7"), (0xE0, "ucs2"),
        (0xF0, "gsm7"), (0xF4, "latin1"),
    ],
)  # fmt: skip
def test_codings(data_coding: int, name: str) -> None:
    assert coding(data_coding) == name


def framed(data: bytes) -> list[Pdu | None]:
    async def run() -> list[Pdu | None]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        read = [await read_pdu(reader)]
        while read[-1]:
            read.append(await read_pdu(reader))
        return read

    return asyncio.run(run())


def test_frames() -> None:
    one, two = submit("你好", 1), pdu(0x15, b"", 2)
    assert framed(one + two) == [parsed(one), parsed(two), None]
    assert framed(one + two[:-1]) == [parsed(one), None]
    assert framed(b"") == [None]
    longest = pdu(SUBMIT, bytes(MAX_PDU - 16))
    assert framed(longest) == [parsed(longest), None]


@pytest.mark.parametrize("length", [0, 15, MAX_PDU + 1, 0xFFFFFFFF])
def test_a_length_that_can_not_be(length: int) -> None:
    with pytest.raises(FrameError, match=f"{length} bytes; 16 to 131072"):
        framed(struct.pack(">4I", length, SUBMIT, 0, 1) + bytes(16))
