"""SMGP 3.0, China Telecom: python -m jingyin.serve.gateways.smgp --port 8890 --gateway HOST:PORT --jingyin URL."""

import struct
from contextlib import suppress
from typing import ClassVar

from jingyin.serve.gateways.codec import (
    CHINESE_CODINGS,
    RESPONSE,
    Codec,
    Fields,
    Frame,
    FrameKind,
    Message,
    Parsed,
    UnreadableError,
    headers,
    message,
    segments,
)
from jingyin.serve.gateways.proxy import main
from jingyin.serve.sms import Part, Segment

LOGIN, SUBMIT, DELIVER, FORWARD, EXIT = 1, 2, 3, 5, 6
_TP_UDHI, _PK_TOTAL, _PK_NUMBER = 0x0002, 0x0009, 0x000A
_FIXED_FEE, _NO_FIXED_FEE = 6, 0


class Smgp(Codec):
    """Version 1.3 has no FixedFee, so the fields after it come six bytes earlier.

    Forward, which gateways use among themselves, is refused.
    """

    header = struct.Struct(">3I")
    sequence = slice(8, 12)
    account = slice(12, 20)
    own_sequence = b"\xff\xff\xff\xff"
    codings = CHINESE_CODINGS
    kinds: ClassVar = {
        LOGIN: FrameKind.LOGIN, SUBMIT: FrameKind.SUBMIT, FORWARD: FrameKind.SUBMIT, DELIVER: FrameKind.DELIVER,
        EXIT: FrameKind.CLOSE
    }  # fmt: skip
    statuses: ClassVar = {"block": 128, "unreadable": 10, "command": 11, "unbound": 21, "down": 1, "busy": 1}

    def __init__(self) -> None:
        self._version = 0x30

    def frame(self, data: bytes) -> Frame:
        """Read the header of a frame, and the version from Login."""
        frame = super().frame(data)
        if frame.command == LOGIN and len(data) > 41:
            self._version = data[41]
        return frame

    def read(self, frame: Frame) -> Message | None:
        """Read the message in the layout, with or without FixedFee, that fits the frame."""
        if frame.command == FORWARD:
            raise UnreadableError("command")
        if frame.command == DELIVER:
            parsed, is_report = self._deliver(Fields(frame.data, self.header.size))
            return None if is_report and frame.kind is FrameKind.DELIVER else message(parsed)
        fits = []
        for fee in (_FIXED_FEE, _NO_FIXED_FEE):
            with suppress(UnreadableError):
                fits.append(self._submit(Fields(frame.data, self.header.size), fee))
        if len(fits) != 1:  # both fit only on purpose, and not every gateway goes by the version in Login
            raise UnreadableError
        return message(fits[0])

    def _submit(self, fields: Fields, fee: int) -> Parsed:
        fields.take(13)  # MsgType, NeedReport, Priority, ServiceID
        fields.take(8 + fee)  # FeeType, FeeCode, FixedFee
        coding = fields.number()
        fields.take(17)  # ValidTime
        scheduled = bool(fields.text(17))  # AtTime
        source = fields.text(21)
        fields.take(21)  # ChargeTermID
        destinations = [fields.text(21) for _ in range(fields.number())]
        if not destinations:
            raise UnreadableError
        content = fields.take(fields.number())
        texts, hint = self._texts(content, fields)
        return Parsed(texts, coding, source, destinations, hint, scheduled)

    def _deliver(self, fields: Fields) -> tuple[Parsed, bool]:
        fields.take(10)  # MsgID
        is_report, coding = fields.number() == 1, fields.number()
        fields.take(14)  # RecvTime
        source, destination = fields.text(21), fields.text(21)
        content = fields.take(fields.number())
        texts, hint = self._texts(content, fields)
        return Parsed(texts, coding, source, [destination], hint), is_report

    def _texts(self, content: bytes, fields: Fields) -> tuple[list[Segment], Part | None]:
        """Read Reserve and the TLVs; return the content with and without a header, if it may have one, and the part."""
        fields.take(8)
        if fields.left == 4:  # node-smgp writes TP_pid, TP_udhi, PkTotal and PkNumber without tag and length
            _, flag, total, number = fields.take(4)
            announced = headers(flag, flag if total or number else 0)  # or one parameter without a value
        else:
            values = fields.tlvs()
            announced = headers(*(b"".join(value for tag, value in values if tag == _TP_UDHI) or b"\0"))
            numbers = [
                {value for tag, value in values if tag == wanted} or {b"\0"} for wanted in (_PK_TOTAL, _PK_NUMBER)
            ]
            if any(len(each) > 1 or len(min(each)) != 1 for each in numbers):
                raise UnreadableError
            total, number = (min(each)[0] for each in numbers)
        return segments(content, announced), None if all(announced) else Part(-1, total, number)

    def refuse(self, frame: Frame, status: int) -> bytes:
        """Return the response."""
        if frame.command == LOGIN:
            return self.respond(frame, status.to_bytes(4) + bytes(16) + bytes((self._version,)))
        identifier = frame.data[12:22] if frame.command == DELIVER else b""
        return self.respond(frame, identifier.ljust(10, b"\0") + status.to_bytes(4))

    def succeeded(self, answer: Frame) -> bool:
        """Return whether Status is 0."""
        at = 12 if answer.command == LOGIN | RESPONSE else 22
        return not any(answer.data[at : at + 4])


if __name__ == "__main__":
    main(Smgp, "smgp", 8890)
