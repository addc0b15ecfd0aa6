"""The proxy's view of a protocol: a codec cuts frames, classifies them, reads messages, and writes refusals.

A protocol is one file with a subclass of Codec and a call of proxy.main: smpp.py, cmpp.py, smgp.py, sgip.py.
"""

import re
import struct
from collections.abc import Sequence
from enum import Enum
from typing import ClassVar, NamedTuple

from jingyin.model.errors import InputError
from jingyin.serve.sms import MAX_PAYLOAD, SEVERAL, Part, Segment, coding_of, read_header

RESPONSE = 0x80000000
"""Added to a request's command, gives that of its response."""

CHINESE_CODINGS: dict[int | str, str] = {
    **dict.fromkeys((each for each in range(256) if coding_of(each) != "ucs2" and each not in SEVERAL), "gbk"),
    11: "ucs2",
}
"""Codings that mean something else in CMPP, SMGP and SGIP than in SMPP: single bytes are ASCII, or GBK.

So are those of binary data: some gateways read all that is not UCS-2 as GBK.
"""

MAX_PART = 512
"""Bytes of a part; a phone gets at most 140, and a few large ones must not push others out of memory."""

MAX_ADDRESS = 256
"""Characters of an address, as in the service; a part is kept with its addresses, which the protocols bound at 65."""


class FrameError(InputError):
    """A frame with an impossible length, after which no other frame can be found."""


class UnreadableError(InputError):
    """A message with missing or inconsistent fields; `status` names the refusal, see Codec.statuses."""

    def __init__(self, status: str = "unreadable") -> None:
        super().__init__("the frame's fields don't hold together; send them as the protocol lays them out")
        self.status = status


class FrameKind(Enum):
    """How the proxy treats a frame: only SUBMIT (to a phone) and DELIVER (from one) contain a message."""

    LOGIN = "login"
    SUBMIT = "submit"
    DELIVER = "deliver"
    CLOSE = "close"
    ANSWER = "answer"
    OTHER = "other"


class Frame(NamedTuple):
    """One frame: the fields that the proxy uses, and all of its bytes."""

    kind: FrameKind
    command: int
    sequence: bytes
    data: bytes


class Parsed(NamedTuple):
    """The fields of a frame with a message; see `message`.

    `texts` are the contents that a peer might take as the text, `hint` is the part that fields other than a header
    name, which may have no reference. `scheduled`: with a time of delivery.
    """

    texts: Sequence[Segment]
    coding: int | str
    source: str
    destinations: Sequence[str]
    hint: Part | None = None
    scheduled: bool = False


class Message(NamedTuple):
    """A message, or with `part` one part of a longer one, with its addresses.

    `texts` and `scheduled` are as in Parsed; `aliases` are references besides the part's own, under which a peer might
    look for the other parts. `lone`: some peer may take the part for a whole message.
    """

    texts: list[Segment]
    coding: int | str
    part: Part | None
    source: str
    destinations: list[str]
    aliases: tuple[int, ...] = ()
    scheduled: bool = False
    lone: bool = False


class Fields:
    """Reads the fields of a frame one after the other; each method raises UnreadableError if the frame is too short."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    @property
    def left(self) -> int:
        """Number of bytes not read yet."""
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        """Read `count` bytes."""
        if count > self.left:
            raise UnreadableError
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count: int = 1) -> int:
        """Read an unsigned number of `count` bytes."""
        return int.from_bytes(self.take(count))

    def text(self, width: int) -> str:
        """Read a text of fixed width: the characters before the first NUL, stripped of blanks."""
        return self.take(width).partition(b"\0")[0].decode("latin-1").strip()

    def tlvs(self) -> list[tuple[int, bytes]]:
        """Read parameters, each a tag, a length and a value, to the end of the frame."""
        parameters = []
        while self.left:
            tag, length = self.number(2), self.number(2)
            parameters.append((tag, self.take(length)))
        return parameters


class Codec:
    """One protocol; each session has an instance of its own, for the settings that its login fixes.

    `header` begins with length and command; `sequence` is the place of the sequence number in it, `account` that of the
    client's name in a login. `kinds` are the requests of interest by command. `statuses` names the codes with which the
    proxy refuses: block, unreadable, command (one that is always refused), unbound (a message before the login), down
    (the gateway can't be reached), busy (the proxy is stopping). `codings` gives this protocol's meaning of a
    data_coding if it differs from SMPP.
    """

    header: ClassVar[struct.Struct]
    sequence: ClassVar[slice]
    account: ClassVar[slice]
    longest: ClassVar[int] = 1 << 14
    kinds: ClassVar[dict[int, FrameKind]]
    statuses: ClassVar[dict[str, int]]
    codings: ClassVar[dict[int | str, str]] = {}
    own_sequence: ClassVar[bytes]

    def cut(self, data: bytes | bytearray) -> int | None:
        """Return the length of the first frame, None if more data is needed to read it. Raises FrameError."""
        if len(data) < 4:
            return None
        length = int.from_bytes(data[:4])
        if not self.header.size <= length <= self.longest:
            raise FrameError(
                f"a frame says that it has {length} bytes; {self.header.size} to {self.longest} were wanted"
            )
        return length

    def frame(self, data: bytes) -> Frame:
        """Read the header of a whole frame."""
        command = int.from_bytes(data[4:8])
        kind = FrameKind.ANSWER if command & RESPONSE else self.kinds.get(command, FrameKind.OTHER)
        return Frame(kind, command, data[self.sequence], data)

    def read(self, frame: Frame) -> Message | None:
        """Read the message of a SUBMIT or DELIVER, None for a status report. Raises UnreadableError."""
        raise NotImplementedError

    def refuse(self, frame: Frame, status: int) -> bytes:
        """Return the answer that refuses a request."""
        raise NotImplementedError

    def succeeded(self, answer: Frame) -> bool:
        """Return whether the answer to a login, submit or deliver accepts it."""
        raise NotImplementedError

    def close(self) -> bytes:
        """Return the request that ends a session, with `own_sequence`."""
        command = next(command for command, kind in self.kinds.items() if kind is FrameKind.CLOSE)
        return struct.pack(">2I", self.header.size, command) + self.own_sequence

    def respond(self, frame: Frame, body: bytes) -> bytes:
        """Return a response with a body, for headers that end with the sequence number."""
        return struct.pack(">2I", self.header.size + len(body), frame.command | RESPONSE) + frame.sequence + body

    def out_of_step(self) -> bytes:
        """Return the answer to data without a valid frame, b"" if the protocol has none."""
        return b""


def digits(address: str) -> str:
    """Return a phone number without +, 00 and 86, and what follows its digits; other addresses unchanged.

    So all spellings of a number are equal. Letters behind it fill a field in BCD (F), or are pauses (P, W).
    """
    match = re.fullmatch(r"\+?([0-9]+)[a-fA-FpPwWtTnN*#,;]*", re.sub(r"[\s().-]", "", address))
    if not match:
        return address
    number = match[1].lstrip("0")
    return number[2:].lstrip("0") if number.startswith("86") and len(number) >= 12 else number


def segments(content: bytes, announced: Sequence[bool]) -> list[Segment]:
    """Split content into user data header and text, in every way that a peer may.

    `announced` are the answers of peers to whether there is a header. One that begins with a concatenation element
    counts even if it was not announced, because some receivers remove it, but not all. A header longer than the content
    counts as text, so that it hides nothing.
    """
    length = content[0] + 1 if content else 0
    whole, split = Segment(content), Segment(content[length:], content[:length])
    if not 0 < length <= len(content):
        return [whole]
    is_guessed = content.startswith((b"\x05\x00\x03", b"\x06\x08\x04"))
    return [each for each, counts in ((whole, not all(announced)), (split, is_guessed or any(announced))) if counts]


def headers(*flags: int) -> list[bool]:
    """Return whether values of TP_udhi announce a header, both answers if peers may differ.

    Bit 0 does by the specifications, bit 6 as in SMPP, and any other to peers that only compare with 0.
    """
    return sorted({bool(flag & bits) for flag in flags for bits in (0x41, 0xFF)})


def contents(fields: Fields, length: int, reserved: int, flag: int) -> list[Segment]:
    """Read a content of `length` bytes followed by `reserved` others; if more bytes follow, read these as text too.

    Some gateways count characters instead of bytes. Raises UnreadableError if the frame is too short.
    """
    content = fields.take(length)
    rest = fields.data[fields.at : fields.at + max(length, 255)]
    fields.take(reserved)
    texts = [content, content + rest] if fields.left else [content]
    return [each for text in texts for each in segments(text, headers(flag))]


def message(parsed: Parsed) -> Message:
    """Return a message; it is a part if a header of it says so to anybody, or other fields.

    A damaged header may be text to a peer, so it is read as such too. Raises UnreadableError if peers may take it for
    different parts, or if a part is longer than any that fits into a short message, a text than MAX_PAYLOAD, or an
    address than MAX_ADDRESS.
    """
    if max(map(len, (parsed.source, *parsed.destinations))) > MAX_ADDRESS:
        raise UnreadableError
    texts, named = list(parsed.texts), []
    for payload, udh in parsed.texts:
        parts, damaged = read_header(udh)
        named.append(parts)
        if damaged:
            texts.append(Segment(udh + payload))
            named.append([])
    parts = [part for each in named for part in reversed(each)]
    if parsed.hint is not None and 1 <= parsed.hint.number <= parsed.hint.total > 1:
        parts.append(parsed.hint)
    if len({(part.total, part.number) for part in parts}) > 1:
        raise UnreadableError
    part = parts[0] if parts and parts[0].total > 1 else None
    if any(len(each.payload) > (MAX_PART if part else MAX_PAYLOAD) for each in texts):
        raise UnreadableError
    aliases = tuple({each.reference for each in parts if part} - {part and part.reference})
    lone = part is not None and not all(named)
    _, coding, source, destinations, _, scheduled = parsed
    return Message(list(dict.fromkeys(texts)), coding, part, source, list(destinations), aliases, scheduled, lone)
