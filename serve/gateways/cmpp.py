"""CMPP 2.0 and 3.0, China Mobile.

python -m jingyin.serve.gateways.cmpp --port 7890 --gateway HOST:PORT --jingyin URL
"""

import struct
from contextlib import suppress
from functools import partial
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
    contents,
    headers,
    message,
)
from jingyin.serve.gateways.proxy import main
from jingyin.serve.sms import Part

CONNECT, TERMINATE, SUBMIT, DELIVER, FORWARD = 1, 2, 4, 5, 9
_TWO, _THREE = (21, 0, 8), (32, 1, 20)
"""Layouts of the versions: width of a phone number, bytes of its type, bytes of Reserve or LinkID at the end."""


class Cmpp(Codec):
    """The version is that of CONNECT, confirmed by the length of its response: some peers answer in the other layout.

    CMPP_FWD, which gateways use among themselves, is refused.
    """

    header = struct.Struct(">3I")
    sequence = slice(8, 12)
    account = slice(12, 18)
    own_sequence = b"\xff\xff\xff\xff"
    codings = CHINESE_CODINGS
    kinds: ClassVar = {
        CONNECT: FrameKind.LOGIN, TERMINATE: FrameKind.CLOSE, SUBMIT: FrameKind.SUBMIT,
        FORWARD: FrameKind.SUBMIT, DELIVER: FrameKind.DELIVER
    }  # fmt: skip
    statuses: ClassVar = {"block": 100, "unreadable": 1, "command": 2, "unbound": 2, "down": 5, "busy": 8}

    def __init__(self) -> None:
        self._layout, self._version = _TWO, 0x20
        self._connecting = False

    def frame(self, data: bytes) -> Frame:
        """Read the header of a frame, and the version from CONNECT and its response."""
        frame = super().frame(data)
        if frame.command == CONNECT and len(data) > 34:
            self._version = data[34]
            self._layout = _THREE if self._version >= 0x30 else _TWO
            self._connecting = True  # nothing more is read from the client until the gateway has answered
        elif frame.command == CONNECT | RESPONSE and self._connecting:  # else it is the client's, to change the layout
            self._layout = _THREE if len(data) >= 33 else _TWO
            self._connecting = False
        return frame

    def read(self, frame: Frame) -> Message | None:
        """Read the message in the layout of the session; if that does not fit the frame, in the other too."""
        if frame.command == FORWARD:
            raise UnreadableError("command")
        may_report = frame.kind is FrameKind.DELIVER  # unless a client sends a message under this command
        read = partial(self._deliver, may_report=may_report) if frame.command == DELIVER else self._submit
        fitting: list[Parsed | None] = []
        for layout in (self._layout, _TWO if self._layout is _THREE else _THREE):
            fields = Fields(frame.data, self.header.size)
            with suppress(UnreadableError):
                parsed = read(fields, layout)
                if layout is self._layout or not fields.left:  # the gateway may take its own with bytes behind it
                    fitting.append(parsed)
                if not fields.left:
                    break
        if not fitting:
            raise UnreadableError
        own, other = (each and message(each) for each in (fitting[0], fitting[-1]))
        if own is None or other is None or len(fitting) == 1:
            return other
        if own.part != other.part:
            raise UnreadableError
        return own._replace(
            texts=list(dict.fromkeys((*other.texts, *own.texts))),
            scheduled=own.scheduled or other.scheduled,
            destinations=list(dict.fromkeys((*other.destinations, *own.destinations))),
        )

    def _submit(self, fields: Fields, layout: tuple[int, int, int]) -> Parsed:
        width, kind, reserved = layout
        fields.take(8)  # Msg_Id
        total, number = fields.number(), fields.number()
        fields.take(13 + width + kind)  # Registered_Delivery, Msg_level, Service_Id, Fee_UserType, Fee_terminal_Id
        fields.take(1)  # TP_pId
        flag, coding = fields.number(), fields.number()
        fields.take(31)  # Msg_src, FeeType, FeeCode, ValId_Time
        scheduled = bool(fields.text(17))  # At_Time
        source = fields.text(21)
        destinations = [fields.text(width) for _ in range(fields.number())]
        if not destinations:
            raise UnreadableError
        fields.take(kind)
        texts = contents(fields, fields.number(), reserved, flag)
        hint = None if all(headers(flag)) else Part(-1, total, number)
        return Parsed(texts, coding, source, destinations, hint, scheduled)

    def _deliver(self, fields: Fields, layout: tuple[int, int, int], *, may_report: bool) -> Parsed | None:
        width, kind, reserved = layout
        fields.take(8)  # Msg_Id
        destination = fields.text(21)
        fields.take(11)  # Service_Id, TP_pid
        flag, coding = fields.number(), fields.number()
        source = fields.text(width)
        fields.take(kind)
        is_report = fields.number() == 1 and may_report
        texts = contents(fields, fields.number(), reserved, flag)
        return None if is_report else Parsed(texts, coding, source, [destination])

    def refuse(self, frame: Frame, status: int) -> bytes:
        """Return the response; the width of its status depends on the version."""
        result = status.to_bytes(4 if self._layout is _THREE else 1)
        if frame.command == CONNECT:
            return self.respond(frame, result + bytes(16) + bytes((self._version,)))
        identifier = frame.data[12:20] if frame.command == DELIVER else bytes(8)
        return self.respond(frame, identifier + (b"\1\1" if frame.command == FORWARD else b"") + result)

    def succeeded(self, answer: Frame) -> bool:
        """Return whether Status or Result is 0."""
        if answer.command == CONNECT | RESPONSE:
            return not any(answer.data[12 : 16 if self._layout is _THREE else 13])
        return not any(answer.data[20:])


if __name__ == "__main__":
    main(Cmpp, "cmpp", 7890)
