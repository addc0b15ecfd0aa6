"""Frames of every protocol, laid out by hand from the protocols' documents and not by the codecs."""

import struct
from collections.abc import Sequence
from typing import Any, ClassVar

from jingyin.serve.gateways.codec import Codec
from jingyin.serve.gateways.smpp import Smpp

RESPONSE = 0x80000000
SOURCE, PHONE = "10690001", "13800000000"


def pad(text: str | bytes, width: int) -> bytes:
    data = text if isinstance(text, bytes) else text.encode("latin-1")
    assert len(data) <= width
    return data.ljust(width, b"\0")


def ucs2(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode("utf-16-be")


def udh(reference: int, total: int, number: int) -> bytes:
    return bytes([5, 0, 3, reference, total, number])


def tlv(tag: int, value: bytes, length: int | None = None) -> bytes:
    return struct.pack(">HH", tag, len(value) if length is None else length) + value


class Dialect:
    """Builds and reads frames; a part is (reference, total, number), sent with a user data header."""

    name: str
    codec: type[Codec]
    command: dict[str, int]
    blocked: int
    unreadable: int
    unbound: int
    busy: int
    down: int

    def frame(self, command: int, body: bytes = b"", sequence: int = 1) -> bytes:
        return struct.pack(">3I", 12 + len(body), command, sequence) + body

    def login(self, sequence: int = 1, user: str = "901234") -> bytes:
        raise NotImplementedError

    def submit(self, content: str | bytes, sequence: int, **fields: Any) -> bytes:
        raise NotImplementedError

    def deliver(self, content: str | bytes, sequence: int, **fields: Any) -> bytes:
        raise NotImplementedError

    def report(self, sequence: int) -> bytes:
        raise NotImplementedError

    def part(self, content: str | bytes, sequence: int, part: tuple[int, int, int], **fields: Any) -> bytes:
        return self.submit(udh(*part) + ucs2(content), sequence, udhi=1, **fields)

    def close(self, sequence: int) -> bytes:
        return self.frame(self.command["close"], b"", sequence)

    def alive(self, sequence: int) -> bytes:
        return self.frame(self.command["alive"], b"", sequence)

    def answer(self, request: bytes, status: int = 0) -> bytes:
        """Answer any request as the other end does."""
        raise NotImplementedError

    def read(self, data: bytes) -> tuple[int, int, int]:
        """Return command, status (0 of what has none) and sequence."""
        raise NotImplementedError


class SmppDialect(Dialect):
    name, codec = "smpp", Smpp
    command: ClassVar = {"login": 9, "submit": 4, "deliver": 5, "close": 6, "alive": 0x15}
    blocked, unreadable, unbound, busy, down = 0x45, 0x01, 0x04, 0x58, 0x0D

    def frame(self, command: int, body: bytes = b"", sequence: int = 1, status: int = 0) -> bytes:
        return struct.pack(">4I", 16 + len(body), command, status, sequence) + body

    def login(self, sequence: int = 1, user: str = "901234") -> bytes:
        return self.frame(9, user.encode() + b"\0secret7\0\0\x34\0\0\0", sequence)

    def submit(
        self, content: str | bytes, sequence: int, *, to: Sequence[str] = (PHONE,), source: str = SOURCE, coding: int = 8,
        udhi: int = 0, tlvs: bytes = b"", size: int | None = None, command: int = 4, esm: int = 0,
    ) -> bytes:  # fmt: skip
        data = ucs2(content)
        if len(to) > 1 or command == 0x21:
            command = 0x21
            addresses = bytes([len(to)]) + b"".join(b"\1\1\1" + each.encode() + b"\0" for each in to)
        else:
            addresses = b"\1\1" + to[0].encode() + b"\0"
        fields = bytes([udhi << 6 | esm, 0, 0, 0, 0, 0, 0, coding, 0, len(data) if size is None else size])
        return self.frame(command, b"\0\0\0" + source.encode() + b"\0" + addresses + fields + data + tlvs, sequence)

    def deliver(
        self, content: str | bytes, sequence: int, *, to: str = SOURCE, source: str = PHONE, **fields: Any
    ) -> bytes:
        return self.submit(content, sequence, to=(to,), source=source, command=5, **fields)

    def data_sm(
        self, content: str | bytes, sequence: int, *, coding: int = 8, udhi: int = 0, tlvs: bytes = b""
    ) -> bytes:
        addresses = b"CMT\0\1\1" + SOURCE.encode() + b"\0\1\1" + PHONE.encode() + b"\0"
        return self.frame(0x103, addresses + bytes([udhi << 6, 0, coding]) + tlv(0x424, ucs2(content)) + tlvs, sequence)

    def report(self, sequence: int) -> bytes:
        return self.deliver("id:死 stat:DELIVRD", sequence, esm=4)

    def answer(self, request: bytes, status: int = 0) -> bytes:
        _, command, _, sequence = struct.unpack(">4I", request[:16])
        return self.frame(command | RESPONSE, b"" if status or command == 0x15 else b"id\0", sequence, status)

    def read(self, data: bytes) -> tuple[int, int, int]:
        _, command, status, sequence = struct.unpack(">4I", data[:16])
        return command, status, sequence


def sar(reference: int, total: int, number: int) -> bytes:
    return tlv(0x20C, struct.pack(">H", reference)) + tlv(0x20E, bytes([total])) + tlv(0x20F, bytes([number]))


SMPP = SmppDialect()
ALL: list[Dialect] = [SMPP]
