"""Frames of every protocol, laid out by hand from the protocols' documents and not by the codecs."""

import struct
from collections.abc import Sequence
from hashlib import md5
from typing import Any, ClassVar

from jingyin.serve.gateways.cmpp import Cmpp
from jingyin.serve.gateways.codec import Codec
from jingyin.serve.gateways.sgip import Sgip
from jingyin.serve.gateways.smgp import Smgp
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
        self, content: str | bytes, sequence: int, *,
        to: Sequence[str] = (PHONE,), source: str = SOURCE, coding: int = 8,
        udhi: int = 0, tlvs: bytes = b"", size: int | None = None, command: int = 4, esm: int = 0, at: bytes = b"",
    ) -> bytes:  # fmt: skip
        data = ucs2(content)
        if len(to) > 1 or command == 0x21:
            command = 0x21
            addresses = bytes([len(to)]) + b"".join(b"\1\1\1" + each.encode() + b"\0" for each in to)
        else:
            addresses = b"\1\1" + to[0].encode() + b"\0"
        fields = bytes([udhi << 6 | esm, 0, 0]) + at + bytes([0, 0, 0, 0, coding, 0])
        fields += bytes([len(data) if size is None else size])
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


class CmppDialect(Dialect):
    codec = Cmpp
    command: ClassVar = {"login": 1, "submit": 4, "deliver": 5, "close": 2, "alive": 8}
    blocked, unreadable, unbound, busy, down = 100, 1, 2, 8, 5

    def __init__(self, version: int) -> None:
        self.name, self.version = f"cmpp{version >> 4}", version
        self.wide = version >= 0x30
        self.number = 32 if self.wide else 21
        self.reserve = bytes(20 if self.wide else 8)

    def _typed(self, numbers: Sequence[str]) -> bytes:
        return b"".join(pad(each, self.number) for each in numbers) + (b"\0" if self.wide else b"")

    def login(self, sequence: int = 1, user: str = "901234") -> bytes:
        stamp = 105090807
        digest = md5(user.encode() + bytes(9) + b"secret7" + b"%010d" % stamp).digest()
        return self.frame(1, pad(user, 6) + digest + struct.pack(">BI", self.version, stamp), sequence)

    def submit(
        self, content: str | bytes, sequence: int, *,
        to: Sequence[str] = (PHONE,), source: str = SOURCE, coding: int = 8,
        udhi: int = 0, pk: tuple[int, int] = (1, 1), size: int | None = None, tail: bytes = b"", at: bytes = b"",
    ) -> bytes:  # fmt: skip
        data = ucs2(content)
        body = bytes(8) + bytes([*pk, 1, 0]) + pad("TEST", 10) + b"\2" + self._typed([""]) + bytes([0, udhi, coding])
        body += b"90123401" + pad("0", 6) + bytes(17) + pad(at, 17)
        body += pad(source, 21) + bytes([len(to)]) + self._typed(to)
        body += bytes([len(data) if size is None else size]) + data + self.reserve + tail
        return self.frame(4, body, sequence)

    def deliver(
        self, content: str | bytes, sequence: int, *,
        coding: int = 8, udhi: int = 0, report: int = 0, source: str = PHONE,
    ) -> bytes:  # fmt: skip
        data = ucs2(content)
        body = bytes(8) + pad(SOURCE, 21) + pad("TEST", 10) + bytes([0, udhi, coding]) + self._typed([source])
        return self.frame(5, body + bytes([report, len(data)]) + data + self.reserve, sequence)

    def report(self, sequence: int) -> bytes:
        body = bytes(8) + b"DELIVRD26010509082601050909" + pad(PHONE, self.number) + "死".encode("utf-16-be") * 2
        return self.deliver(body, sequence, coding=0, report=1)

    def answer(self, request: bytes, status: int = 0) -> bytes:
        _, command, sequence = struct.unpack(">3I", request[:12])
        result = status.to_bytes(4 if self.wide else 1)
        if command == 1:
            body = result + (bytes(16) if status else b"d" * 16) + bytes([self.version])
        else:
            body = {4: b"\1" * 8 + result, 5: request[12:20] + result, 8: b"\0"}.get(command, b"")
        return self.frame(command | RESPONSE, body, sequence)

    def read(self, data: bytes) -> tuple[int, int, int]:
        _, command, sequence = struct.unpack(">3I", data[:12])
        width = 4 if self.wide else 1
        at = {1: 12, 4: 20, 5: 20}.get(command & ~RESPONSE) if command & RESPONSE else None
        return command, int.from_bytes(data[at : at + width]) if at else 0, sequence


class SmgpDialect(Dialect):
    name, codec = "smgp", Smgp
    command: ClassVar = {"login": 1, "submit": 2, "deliver": 3, "close": 6, "alive": 4}
    blocked, unreadable, unbound, busy, down = 128, 10, 21, 1, 1
    version = 0x30

    def login(self, sequence: int = 1, user: str = "901234") -> bytes:
        digest = md5(user.encode() + bytes(7) + b"secret7" + b"0301000000").digest()
        return self.frame(1, pad(user, 8) + digest + b"\2" + struct.pack(">IB", 301000000, self.version), sequence)

    def submit(
        self, content: str | bytes, sequence: int, *,
        to: Sequence[str] = (PHONE,), source: str = SOURCE, coding: int = 8,
        udhi: int = 0, tlvs: bytes = b"", size: int | None = None, fixed_fee: bytes = b"0\0\0\0\0\0", at: bytes = b"",
    ) -> bytes:  # fmt: skip
        data = ucs2(content)
        body = b"\6\1\1" + pad("TEST", 10) + b"00" + pad("0", 6) + fixed_fee + bytes([coding, *bytes(17)]) + pad(at, 17)
        body += pad(source, 21) + bytes(21) + bytes([len(to)]) + b"".join(pad(each, 21) for each in to)
        body += bytes([len(data) if size is None else size]) + data + bytes(8)
        return self.frame(2, body + (tlv(2, bytes([udhi])) if udhi else b"") + tlvs, sequence)

    def deliver(
        self, content: str | bytes, sequence: int, *,
        coding: int = 8, udhi: int = 0, report: int = 0, source: str = PHONE,
    ) -> bytes:  # fmt: skip
        data = ucs2(content)
        body = bytes(10) + bytes([report, coding]) + b"20260105090807" + pad(source, 21) + pad(SOURCE, 21)
        body += bytes([len(data)]) + data + bytes(8)
        return self.frame(3, body + (tlv(2, bytes([udhi])) if udhi else b""), sequence)

    def report(self, sequence: int) -> bytes:
        return self.deliver(b"id:" + "死".encode("utf-16-be") * 59 + b"x", sequence, coding=0, report=1)

    def answer(self, request: bytes, status: int = 0) -> bytes:
        _, command, sequence = struct.unpack(">3I", request[:12])
        result = status.to_bytes(4)
        body = {1: result + b"d" * 16 + b"0", 2: b"\1" * 10 + result, 3: request[12:22] + result}.get(command, b"")
        return self.frame(command | RESPONSE, body, sequence)

    def read(self, data: bytes) -> tuple[int, int, int]:
        _, command, sequence = struct.unpack(">3I", data[:12])
        at = {1: 12, 2: 22, 3: 22}.get(command & ~RESPONSE) if command & RESPONSE else None
        return command, int.from_bytes(data[at : at + 4]) if at else 0, sequence


class SgipDialect(Dialect):
    name, codec = "sgip", Sgip
    command: ClassVar = {"login": 1, "submit": 3, "deliver": 4, "close": 2, "alive": 0x1000}
    blocked, unreadable, unbound, busy, down = 108, 5, 1, 11, 11

    def frame(self, command: int, body: bytes = b"", sequence: int = 1) -> bytes:
        return struct.pack(">5I", 20 + len(body), command, 3010012345, 105090807, sequence) + body

    def login(self, sequence: int = 1, user: str = "901234") -> bytes:
        return self.frame(1, b"\1" + pad(user, 16) + pad("secret7", 16) + bytes(8), sequence)

    def submit(
        self, content: str | bytes, sequence: int, *,
        to: Sequence[str] = (PHONE,), source: str = SOURCE, coding: int = 8,
        udhi: int = 0, size: int | None = None, tail: bytes = b"", at: bytes = b"",
    ) -> bytes:  # fmt: skip
        data = ucs2(content)
        body = pad(source, 21) + b"0" * 21 + bytes([len(to)]) + b"".join(pad(each, 21) for each in to) + b"12345"
        body += pad("TEST", 10) + b"\1" + pad("0", 6) * 2 + b"\0\2\0" + bytes(16) + pad(at, 16)
        body += bytes([1, 0, udhi, coding, 0])
        body += (len(data) if size is None else size).to_bytes(4) + data + bytes(8) + tail
        return self.frame(3, body, sequence)

    def deliver(
        self, content: str | bytes, sequence: int, *, coding: int = 8, udhi: int = 0, source: str = PHONE
    ) -> bytes:
        data = ucs2(content)
        body = pad(source, 21) + pad(SOURCE, 21) + bytes([0, udhi, coding]) + len(data).to_bytes(4) + data + bytes(8)
        return self.frame(4, body, sequence)

    def report(self, sequence: int) -> bytes:
        return self.frame(5, bytes(12) + b"\0" + pad(PHONE, 21) + b"\0\0" + "死".encode("utf-16-be") * 4, sequence)

    def answer(self, request: bytes, status: int = 0) -> bytes:
        _, command = struct.unpack(">2I", request[:8])
        body = b"" if command == 2 else bytes([status]) + bytes(8)
        return struct.pack(">2I", 20 + len(body), command | RESPONSE) + request[8:20] + body

    def read(self, data: bytes) -> tuple[int, int, int]:
        _, command, _, _, sequence = struct.unpack(">5I", data[:20])
        return command, data[20] if command & RESPONSE and len(data) > 20 else 0, sequence


SMPP, CMPP2, CMPP3, SMGP, SGIP = SmppDialect(), CmppDialect(0x20), CmppDialect(0x30), SmgpDialect(), SgipDialect()
ALL: list[Dialect] = [SMPP, CMPP2, CMPP3, SMGP, SGIP]
