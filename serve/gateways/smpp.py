"""SMPP 3.4: python -m jingyin.serve.gateways.smpp --port 2776 --smsc HOST:PORT --jingyin URL."""

import re
import struct
from itertools import permutations
from typing import ClassVar

from jingyin.serve.gateways.codec import (
    RESPONSE,
    Codec,
    Fields,
    Frame,
    FrameKind,
    Message,
    Parsed,
    UnreadableError,
    message,
    segments,
)
from jingyin.serve.gateways.proxy import main
from jingyin.serve.sms import Part, Segment

SUBMIT_SM, DELIVER_SM, UNBIND, REPLACE_SM, SUBMIT_MULTI, DATA_SM, BROADCAST_SM = 4, 5, 6, 7, 0x21, 0x103, 0x111
_UDHI = 0x40
_MESSAGE_TYPE, _RECEIPT, _NOTIFICATION = 0x3C, 0x04, 0x20
_PORT, _PUSH = 0x020B, 2948  # destination_port, and that of a WAP push
_CALLBACK_NAME = 0x0303  # callback_num_atag, a text behind its coding
_PAYLOAD, _REFERENCE, _TOTAL, _NUMBER = 0x0424, 0x020C, 0x020E, 0x020F
_NAME = re.compile(rb"[0-9A-Za-z._@:+-]*\0?")  # a number, an identifier
_SHORTEST, _MOST_TEXTS = 8, 3  # bytes of a text in other parameters; texts of a message that peers may join


class Smpp(Codec):
    """The commands and fields of the SMPP Protocol Specification v3.4.

    replace_sm and broadcast_sm (of 5.0) are refused: the former names no coding, the latter no receiver. So are parts
    to a distribution list: only the gateway knows which parts its members get.
    """

    header = struct.Struct(">4I")
    sequence = slice(12, 16)
    account = slice(16, 32)
    longest = 1 << 17  # a message_payload has at most 65,535 bytes
    own_sequence = b"\x7f\xff\xff\xff"
    kinds: ClassVar = {
        **dict.fromkeys((1, 2, 9), FrameKind.LOGIN),
        **dict.fromkeys((SUBMIT_SM, SUBMIT_MULTI, DATA_SM, REPLACE_SM, BROADCAST_SM), FrameKind.SUBMIT),
        DELIVER_SM: FrameKind.DELIVER,
        UNBIND: FrameKind.CLOSE,
    }
    statuses: ClassVar = {
        "block": 0x45,  # ESME_RSUBMITFAIL
        "unreadable": 0x01,  # ESME_RINVMSGLEN
        "parameters": 0xC0,  # ESME_RINVTLVSTREAM
        "command": 0x03,  # ESME_RINVCMDID
        "unbound": 0x04,  # ESME_RINVBNDSTS
        "down": 0x0D,  # ESME_RBINDFAIL
        "busy": 0x58,  # ESME_RTHROTTLED
    }

    def read(self, frame: Frame) -> Message | None:
        """Read the message; the frame must have every field, and nothing else."""
        if frame.command in (REPLACE_SM, BROADCAST_SM):
            raise UnreadableError("command")
        fields = Fields(frame.data, self.header.size)
        _c_string(fields)
        source = _address(fields)
        is_multi = frame.command == SUBMIT_MULTI
        destinations, to_list = _destinations(fields) if is_multi else ([_address(fields)], False)
        esm_class = fields.number()
        content, scheduled = b"", False
        if frame.command == DATA_SM:
            fields.number()  # registered_delivery
            coding = fields.number()
        else:
            fields.take(2)  # protocol_id, priority_flag
            scheduled = bool(_c_string(fields))  # schedule_delivery_time
            _c_string(fields)
            fields.take(2)  # registered_delivery, replace_if_present_flag
            coding = fields.number()
            fields.number()  # sm_default_msg_id
            content = fields.take(fields.number())
        try:
            parameters = fields.tlvs()
        except UnreadableError:
            raise UnreadableError("parameters") from None
        if frame.kind is FrameKind.DELIVER and esm_class & _MESSAGE_TYPE in (_RECEIPT, _NOTIFICATION):
            return None
        texts = [
            text
            for each in _contents([content, *(value for tag, value in parameters if tag == _PAYLOAD)], parameters)
            for text in segments(each, [bool(esm_class & _UDHI)])
        ]
        if any(tag == _PORT and int.from_bytes(value) == _PUSH for tag, value in parameters):
            coding = 4  # binary, whatever it says
        parsed = Parsed(texts or [Segment(b"")], coding, source, destinations, _sar(parameters), scheduled)
        read = message(parsed)
        if read.part and to_list:
            raise UnreadableError
        return read

    def refuse(self, frame: Frame, status: int) -> bytes:
        """Return a header without a body, as the standard requires."""
        return self.header.pack(self.header.size, frame.command | RESPONSE, status, int.from_bytes(frame.sequence))

    def succeeded(self, answer: Frame) -> bool:
        """Return whether the command_status is ESME_ROK."""
        return answer.data[8:12] == bytes(4)

    def close(self) -> bytes:
        """Return an unbind."""
        return self.header.pack(self.header.size, UNBIND, 0, int.from_bytes(self.own_sequence))

    def out_of_step(self) -> bytes:
        """Return a generic_nack with ESME_RINVCMDLEN."""
        return self.header.pack(self.header.size, RESPONSE, 0x02, 0)


def _c_string(fields: Fields) -> str:
    end = fields.data.find(b"\0", fields.at)
    if end < 0:
        raise UnreadableError
    return fields.take(end + 1 - fields.at)[:-1].decode("latin-1")


def _address(fields: Fields) -> str:
    fields.take(2)  # type of number, numbering plan
    return _c_string(fields)


def _destinations(fields: Fields) -> tuple[list[str], bool]:
    """Read the addresses, and whether one of them is the name of a distribution list."""
    addresses, to_list = [], False
    for _ in range(fields.number()):
        flag = fields.number()
        if flag not in (1, 2):
            raise UnreadableError
        addresses.append(_address(fields) if flag == 1 else _c_string(fields))
        to_list |= flag == 2
    if not addresses:
        raise UnreadableError
    return addresses, to_list


def _contents(contents: list[bytes], parameters: list[tuple[int, bytes]]) -> list[bytes]:
    """Return what a peer may take for the content: each by itself, and those of several fields joined.

    Texts in other parameters count, though few peers show them. Raises UnreadableError if there are too many.
    """
    contents = [each for each in contents if each]
    others = [
        value[tag == _CALLBACK_NAME :] for tag, value in parameters
        if tag != _PAYLOAD and len(value) >= _SHORTEST and not _NAME.fullmatch(value)
    ]  # fmt: skip
    if len(contents) > _MOST_TEXTS or len(others) > _MOST_TEXTS:
        raise UnreadableError("parameters")
    joined = [b"".join(each) for each in permutations(contents)]
    return list(dict.fromkeys([*contents, *joined, *others, *([b"".join((*contents, *others))] if others else [])]))


def _sar(parameters: list[tuple[int, bytes]]) -> Part | None:
    """Return the part that sar_* names. Raises UnreadableError if peers may read it differently."""
    lengths = {_REFERENCE: 2, _TOTAL: 1, _NUMBER: 1}
    values = [(tag, value) for tag, value in parameters if tag in lengths]
    named = {tag: int.from_bytes(value) for tag, value in values}
    if len(named) < len(values) or any(len(value) != lengths[tag] for tag, value in values):
        raise UnreadableError("parameters")
    return Part(named.get(_REFERENCE, -1), named.get(_TOTAL, 0), named.get(_NUMBER, 0))


if __name__ == "__main__":
    main(Smpp, "smpp", 2776, "--smsc")
