"""What the proxy reads of SMPP 3.4: frames, headers, and the message in a submit_sm, submit_multi or data_sm.

smpp34 decodes submit_sm with all optional parameters in the order of the wire. The other two differ in their mandatory
fields only, so they are laid out as a submit_sm first.
"""

import asyncio
import struct
from typing import NamedTuple

import smpp34

from jingyin.model.errors import InputError
from jingyin.serve.sms import Part, Segment, read_part

HEADER = struct.Struct(">4I")
MAX_PDU = 1 << 17
"""Longest PDU in bytes: a message_payload has at most 65,535."""
READ_SECONDS = 10.0
"""Longest time from the first byte of a PDU to its last."""

SUBMIT_SM, UNBIND, SUBMIT_MULTI, DATA_SM = 0x04, 0x06, 0x21, 0x103
RESPONSE = 0x80000000
"""Added to a request's command it names its response; alone it is generic_nack."""
BINDS = frozenset({0x01, 0x02, 0x09})
JUDGED = frozenset({SUBMIT_SM, SUBMIT_MULTI, DATA_SM})

INVALID_LENGTH, SYSTEM_ERROR, BIND_FAILED, SUBMIT_FAILED, THROTTLED = 0x02, 0x08, 0x0D, 0x45, 0x58
"""Statuses that the proxy itself answers with."""

_UDHI = 0x40
_PAYLOAD, _REFERENCE, _TOTAL, _NUMBER = 0x0424, 0x020C, 0x020E, 0x020F
_CODINGS = {0: "gsm7", 1: "ascii", 8: "ucs2", 15: "gbk"}


class FrameError(InputError):
    """A PDU whose length can't be true: what follows it can't be found."""


class Pdu(NamedTuple):
    """One PDU: of its header what the proxy goes by, and all of its bytes."""

    command: int
    sequence: int
    data: bytes


class Submitted(NamedTuple):
    """A message, or with `part` one part of a longer one, between two addresses."""

    segments: list[Segment]
    coding: str
    part: Part | None
    source: str
    destination: str


async def read_pdu(reader: asyncio.StreamReader) -> Pdu | None:
    """Read one PDU, or None at the end of the stream, be it within a PDU.

    Raises FrameError for a length outside 16 to MAX_PDU, TimeoutError if the PDU is not whole after READ_SECONDS.
    """
    try:
        if not (head := await reader.read(HEADER.size)):
            return None
        async with asyncio.timeout(READ_SECONDS):
            head += await reader.readexactly(HEADER.size - len(head))
            length, command, _, sequence = HEADER.unpack(head)
            if not HEADER.size <= length <= MAX_PDU:
                raise FrameError(f"a PDU says that it has {length} bytes; {HEADER.size} to {MAX_PDU} were wanted")
            return Pdu(command, sequence, head + await reader.readexactly(length - HEADER.size))
    except (ConnectionError, asyncio.IncompleteReadError):
        return None


def response(request: Pdu, status: int) -> bytes:
    """Return the refusal of a request: a header without a body, as the standard wants."""
    return HEADER.pack(HEADER.size, request.command | RESPONSE, status, request.sequence)


def generic_nack(status: int) -> bytes:
    """Return the answer to what can't be framed, whose sequence number can't be trusted either."""
    return HEADER.pack(HEADER.size, RESPONSE, status, 0)


def unbind(sequence: int) -> bytes:
    """Return an unbind."""
    return HEADER.pack(HEADER.size, UNBIND, 0, sequence)


def read_submitted(pdu: Pdu) -> Submitted:
    """Read the message in a PDU of JUDGED. Raises InputError if the PDU does not hold together."""
    try:
        data = _as_submit_sm(pdu)
        read = smpp34.decode(data)
    except (smpp34.SmppError, ValueError, IndexError):
        raise InputError("the PDU's fields can't be read; send them as SMPP 3.4 lays them out") from None
    if not isinstance(read, smpp34.SubmitSm) or not data.endswith(_tail(read)):
        raise InputError("the PDU's lengths don't add up; send them as SMPP 3.4 lays them out")
    segments = [_segment(text, read.esm_class) for text in _texts(read)] or [Segment(b"")]
    header = segments[0].udh if read_part(segments[0].udh) else _header_of_sar(read)
    part = read_part(header)
    if part is not None and part.total > 1:
        segments[0] = Segment(segments[0].payload, header)
    else:
        part = None
    return Submitted(segments, coding(read.data_coding), part, read.source_addr, read.destination_addr)


def coding(data_coding: int) -> str:
    """Return the coding, as jingyin.serve.sms names it, of an SMPP data_coding.

    16 and more are coding groups of GSM 03.38, by which flash messages (0x18) come; what is no text is latin1.
    """
    if data_coding < 0x10:
        return _CODINGS.get(data_coding, "latin1")
    group = data_coding >> 4
    if group < 0x8:
        return ("gsm7", "latin1", "ucs2", "gsm7")[data_coding >> 2 & 3]
    if group == 0xE:
        return "ucs2"
    return "latin1" if group == 0xF and data_coding & 4 else "gsm7"


def _as_submit_sm(pdu: Pdu) -> bytes:
    """Return the PDU laid out as a submit_sm; its list of destinations, if it has one, is left out."""
    if pdu.command == SUBMIT_SM:
        return pdu.data
    body = pdu.data[HEADER.size :]
    at = _after_text(body, _after_text(body, 0) + 2)
    if pdu.command == SUBMIT_MULTI:
        body = body[:at] + b"\0\0\0" + body[_after_destinations(body, at) :]
    else:
        at = _after_text(body, at + 2)
        esm_class, registered, data_coding = body[at : at + 3]
        body = body[:at] + bytes((esm_class, 0, 0, 0, 0, registered, 0, data_coding, 0, 0)) + body[at + 3 :]
    return HEADER.pack(HEADER.size + len(body), SUBMIT_SM, 0, pdu.sequence) + body


def _after_destinations(body: bytes, at: int) -> int:
    count, at = body[at], at + 1
    for _ in range(count):
        at = _after_text(body, at + {1: 3, 2: 1}.get(body[at], len(body)))  # an address, or the name of a list
    return at


def _after_text(body: bytes, at: int) -> int:
    return body.index(0, at) + 1


def _tail(read: smpp34.SubmitSm) -> bytes:
    """Return the end of a sound submit_sm: smpp34 passes over optional parameters with wrong lengths in silence."""
    optional = (struct.pack(">HH", each.tag, len(each.value)) + each.value for each in read.tlvs)
    return bytes((len(read.short_message),)) + read.short_message + b"".join(optional)


def _texts(read: smpp34.SubmitSm) -> list[bytes]:
    """Return short_message and each message_payload. There should be one; of several the SMSC chooses."""
    return [text for text in (read.short_message, *(t.value for t in read.tlvs if t.tag == _PAYLOAD)) if text]


def _segment(text: bytes, esm_class: int) -> Segment:
    length = text[0] + 1 if esm_class & _UDHI else 0
    return Segment(text[length:], text[:length]) if length <= len(text) else Segment(text)


def _header_of_sar(read: smpp34.SubmitSm) -> bytes:
    """Return the sar_* parameters as a header with a 16-bit reference, b"" where missing or of wrong lengths."""
    sar = {each.tag: each.value for each in read.tlvs}
    values = sar.get(_REFERENCE, b""), sar.get(_TOTAL, b""), sar.get(_NUMBER, b"")
    return b"\x06\x08\x04" + b"".join(values) if [len(value) for value in values] == [2, 1, 1] else b""
