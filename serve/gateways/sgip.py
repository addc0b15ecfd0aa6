"""SGIP 1.2, China Unicom: python -m jingyin.serve.gateways.sgip --port 8801 --gateway HOST:PORT --jingyin URL.

The gateway also connects to the client, for messages from phones and for reports. So that both see one address, the
proxy accepts these connections at --back-port and forwards them to the client at --sp HOST:PORT.
"""

import struct
from typing import ClassVar

from jingyin.serve.gateways.codec import (
    CHINESE_CODINGS,
    Codec,
    Fields,
    Frame,
    FrameKind,
    Message,
    Parsed,
    UnreadableError,
    contents,
    message,
)
from jingyin.serve.gateways.proxy import main

BIND, UNBIND, SUBMIT, DELIVER = 1, 2, 3, 4


class Sgip(Codec):
    """A sequence number has three parts, node, time and counter; all responses have one layout."""

    header = struct.Struct(">5I")
    sequence = slice(8, 20)
    account = slice(21, 37)
    own_sequence = b"\xff" * 12
    codings = CHINESE_CODINGS
    kinds: ClassVar = {
        BIND: FrameKind.LOGIN, UNBIND: FrameKind.CLOSE, SUBMIT: FrameKind.SUBMIT, DELIVER: FrameKind.DELIVER
    }  # fmt: skip
    statuses: ClassVar = {"block": 108, "unreadable": 5, "unbound": 1, "down": 11, "busy": 11}

    def read(self, frame: Frame) -> Message | None:
        """Read the message; reports are a command of their own."""
        fields = Fields(frame.data, self.header.size)
        first = fields.text(21)  # SPNumber of a Submit, UserNumber of a Deliver
        if frame.command == SUBMIT:
            fields.take(21)  # ChargeNumber
            source, destinations = first, [fields.text(21) for _ in range(fields.number())]
            if not destinations:
                raise UnreadableError
            fields.take(47)  # CorpId, ServiceType, fees, flags, ExpireTime
            scheduled = bool(fields.text(16))  # ScheduleTime
            fields.take(1)  # ReportFlag
        else:
            source, destinations, scheduled = first, [fields.text(21)], False
        fields.take(1)  # TP_pid
        flag, coding = fields.number(), fields.number()
        fields.take(frame.command == SUBMIT)  # MessageType
        texts = contents(fields, fields.number(4), 8, flag)
        return message(Parsed(texts, coding, source, destinations, scheduled=scheduled))

    def refuse(self, frame: Frame, status: int) -> bytes:
        """Return the response."""
        return self.respond(frame, bytes((status,)) + bytes(8))

    def succeeded(self, answer: Frame) -> bool:
        """Return whether Result is 0."""
        return answer.data[20:21] == b"\0"


if __name__ == "__main__":
    main(Sgip, "sgip", 8801, back=True)
