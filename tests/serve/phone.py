"""A phone, written from what Android's SmsMessage, SmsHeader and InboundSmsHandler do, and not from serve/sms.py.

Android 13 and, with `old`, before element 0x01 had a length of its own.
"""

from typing import NamedTuple

FACTS = """
050003a70201            00:a7/2/1   concatenation, 8 bits
060804beef0302          08:beef/3/2 concatenation, 16 bits
070005a702017000        00:a7/2/1   the stated length does not count, so 70 is the next element
08080600a702017000      08:a7/2/1   the same with 16 bits
050009a70201            00:a7/2/1   longer than the header, all the same
070003a702017005        00:a7/2/1   an unknown element may end beyond the header
0b05040b8423f00003cc0201 00:cc/2/1  ports, then concatenation
0a0003a702010003a80202  00:a8/2/2   the last counts
0a0003a702010003a80200  00:a7/2/1   that is valid
050003a70203            none        part 3 of 2
050003a70200            none        part 0
070003a7020170          dropped     an element without a length
"""
"""Headers, and the concatenation that Android finds: element, reference, total and number."""


class Shown(NamedTuple):
    """A text, None for binary data, and the part (reference, total, number) that it is, if it is one."""

    text: str | None
    part: tuple[int, int, int] | None
    port: int


class DroppedError(Exception):
    """The phone can't parse the message."""


def show(content: bytes, coding: int, *, udhi: bool, old: bool = False) -> Shown:
    """Read one short message as the phone gets it, coding 0 unpacked as SMPP has it."""
    part, port, body = None, -1, content
    if udhi and content:
        if content[0] >= len(content):
            raise DroppedError
        body = content[content[0] + 1 :]
        part, port = header(content[1 : content[0] + 1], old=old)
    return Shown(_text(body, coding), part, port)


def header(data: bytes, *, old: bool = False) -> tuple[tuple[int, int, int] | None, int]:
    """Return the concatenation and the destination port, -1 for none, of a header without its length."""
    part, port, rest = None, -1, list(data)

    def take() -> int:
        return rest.pop(0) if rest else -1

    while rest:
        element, length = take(), take()
        if element in (0x00, 0x08):
            reference = take() if element == 0x00 else take() << 8 | take()
            total, number = take(), take()
            if total != 0 and number != 0 and number <= total:
                part = reference, total, number
        elif element == 0x04:
            port, _ = take(), take()
        elif element == 0x05:
            port = take() << 8 | take()
            take(), take()
        elif element in (0x24, 0x25):
            take()
        elif element == 0x01 and not old:
            take(), take()
        elif length < 0:
            raise DroppedError
        else:
            del rest[:length]
    return part, port


def _text(body: bytes, coding: int) -> str | None:
    alphabet = 4  # unknown
    if coding < 0x80:
        alphabet = 4 if coding & 0x20 else (0, 4, 2, 4)[coding >> 2 & 3]
    elif coding >> 4 == 0xF:
        alphabet = 4 if coding & 4 else 0
    elif coding >> 4 in (0xC, 0xD, 0xE):
        alphabet = 2 if coding >> 4 == 0xE else 0
    elif coding == 0x84:
        return body.decode("euc_kr", "replace")
    if alphabet == 2:  # Java's UTF-16
        return body.decode("utf-16" if body[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-16-be", "replace")
    return None if alphabet else body.decode("latin-1")


def joined(messages: list[Shown]) -> list[str]:
    """Return the texts that the phone shows of messages of one sender, in their order; it keeps the first of a part."""
    texts, kept = [], dict[tuple[int, int], dict[int, str]]()
    for text, part, port in messages:
        if text is None or port != -1:
            continue
        if part is None or part[1] == 1:
            texts.append(text)
        elif part[1] > 1:
            have = kept.setdefault(part[:2], {})
            have.setdefault(part[2], text)
            if len(have) == part[1]:
                texts.append("".join(have[number] for number in sorted(have)))
                del kept[part[:2]]
    return texts
