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
    UnreadableError,
    contents,
    headers,
    message,
)
from jingyin.serve.gateways.proxy import main
from jingyin.serve.sms import Part, Segment

CONNECT, TERMINATE, SUBMIT, DELIVER, FORWARD = 1, 2, 4, 5, 9
_TWO, _THREE = (21, 0, 8), (32, 1, 20)
"""Layouts of the versions: width of a phone number, bytes of its type, bytes of Reserve or LinkID at the end."""
_Made = tuple[list[Segment], int, str, list[str], Part | None, bool]  # what codec.message takes


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
        """Read the message in the layout of the session, or in the other if only that fits the length of the frame."""
        if frame.command == FORWARD:
            raise UnreadableError("command")
        may_report = frame.kind is FrameKind.DELIVER  # unless a client sends a message under this command
        read = partial(self._deliver, may_report=may_report) if frame.command == DELIVER else self._submit
        fits: dict[tuple[int, int, int], tuple[_Made | None, int]] = {}
        for layout in (self._layout, _TWO, _THREE):
            fields = Fields(frame.data, self.header.size)
            with suppress(UnreadableError):
                fits[layout] = read(fields, layout), fields.left
        whole = [made for made, left in fits.values() if not left]
        if not whole and self._layout not in fits:
            raise UnreadableError
        made, as_negotiated = (whole or [None])[0], fits.get(self._layout, (None, 0))[0]
        read_, negotiated = made and message(*made), as_negotiated and message(*as_negotiated)
        if read_ is None or negotiated is None:
            return read_ if whole else negotiated
        if read_.part != negotiated.part:
            raise UnreadableError
        return read_._replace(
            texts=list(dict.fromkeys((*read_.texts, *negotiated.texts))),
            scheduled=read_.scheduled or negotiated.scheduled,
            destinations=[*read_.destinations, *(to for to in negotiated.destinations if to not in read_.destinations)],
        )

    def _submit(self, fields: Fields, layout: tuple[int, int, int]) -> _Made:
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
        return texts, coding, source, destinations, hint, scheduled

    def _deliver(self, fields: Fields, layout: tuple[int, int, int], *, may_report: bool) -> _Made | None:
        width, kind, reserved = layout
        fields.take(8)  # Msg_Id
        destination = fields.text(21)
        fields.take(11)  # Service_Id, TP_pid
        flag, coding = fields.number(), fields.number()
        source = fields.text(width)
        fields.take(kind)
        is_report = fields.number() == 1 and may_report
        texts = contents(fields, fields.number(), reserved, flag)
        return None if is_report else (texts, coding, source, [destination], None, False)

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
