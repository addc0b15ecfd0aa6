"""Decodes a gateway's messages, payload bytes with a data coding and a user data header, into text.

    gsm7          GSM 03.38 default alphabet with its extension table, one septet per octet (SMPP data_coding 0)
    gsm7-packed   the same, packed seven bits to a septet as in a TPDU (3GPP TS 23.038, 6.1.2.1)
    ascii         SMPP data_coding 1, CMPP msg_fmt 0
    latin1        SMPP data_coding 3
    ucs2          big-endian UCS-2 or UTF-16, or little-endian after its byte order mark (data_coding 8, msg_fmt 8)
    gbk           CMPP msg_fmt 15
    jis, euc-jp   SMPP data_coding 5 and 10, 13: JIS X 0208 with or without escape sequences, EUC-JP
    ksc5601       SMPP data_coding 14, and 0x84 on Android
    ucs2-le, utf8, big5, shift-jis  under any data_coding that a gateway uses for them

Elements of a user data header, and who reads them how, in hexadecimal; `nn` is number, `tt` total, `rr` reference:

    element           3GPP TS 23.040       Kannel (bearerbox)    Android (SmsHeader)
    00 03 rr tt nn    a part; the last     a part; the first     a part; the last that is valid
    08 04 rr rr tt nn element counts       element counts        element counts
    00 05 rr tt nn xx ignored              a part, xx skipped    a part, xx begins the next element
    00 09 rr tt nn    damaged              a part                a part
    nn 0, or above tt ignored              no part at all        ignored
    01, 04, 05, 24,   as long as the       as long as the        2, 2, 4, 1, 1 bytes, whatever the stated length
    25                stated length        stated length
    others            as stated            as stated             as stated; may end beyond the header

Android decodes each part by itself, removes a byte order mark from each, shows nothing of binary data (codings 4 to 7,
0xF4) but what is sent to a port (2948: WAP push), and ignores a header that was not announced; some gateways remove it.
It joins parts of equal sender, reference and total, keeps the first of equal number, and waits 7 days, earlier 30.
Kannel joins bytes, and waits half an hour. tests/serve/phone.py holds these facts as code and bytes.

Payload and header come from the sender of the message, so nothing in them is an error: undecodable bytes are counted
and the rest is scored. If they were refused, senders could evade the filter. Codings come from the gateway; an unknown
one raises.
"""

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice, zip_longest
from typing import NamedTuple

from jingyin.model.errors import InputError
from jingyin.model.fold import FOLD
from jingyin.model.text import MAX_CHARACTERS
from jingyin.serve.encodings import KEEP, replaced

MAX_PAYLOAD = 65_535
"""Longest payload of a message in bytes, all parts together: that of SMPP's message_payload."""

GAP = "…"
"""Marks a missing part; cleaning would remove white space between two Han characters."""


class Segment(NamedTuple):
    """One short message on the wire: `payload` without its header, and `udh`, the header with its length octet."""

    payload: bytes
    udh: bytes = b""


class Decoded(NamedTuple):
    """A decoded message: its `text`, and its faults.

    `undecodable` counts bytes (septets of gsm7-packed) that became U+FFFD, `damaged` headers that could not be read;
    `partial`: parts of a concatenated message are missing.
    """

    text: str
    undecodable: int
    damaged: int
    partial: bool


class Part(NamedTuple):
    """Part `number` of `total`, from 1, of the concatenated message `reference`."""

    reference: int
    total: int
    number: int


def decode(payload: bytes, coding: str, udh: bytes | None = None) -> Decoded:
    """Decode one short message; it is `partial` if its header `udh` makes it a part of several.

    Raises InputError if the coding is unknown or the payload longer than MAX_PAYLOAD.
    """
    return reassemble([Segment(payload, udh or b"")], coding)


def reassemble(segments: Sequence[Segment], coding: str, *, apart: bool = False) -> Decoded:
    """Decode the parts of one message, given in any order, repeats allowed.

    Neighbours are joined before decoding, because phones split characters, or with `apart` after it. Parts with an
    unreadable header follow in the order given. Raises InputError as `decode` does, and if the parts belong to
    different messages.
    """
    if coding not in CODINGS:
        raise InputError(f"the coding is unknown; known are {', '.join(CODINGS)}")
    if (size := sum(len(segment.payload) for segment in segments)) > MAX_PAYLOAD:
        raise InputError(f"the payload has {size} bytes, at most {MAX_PAYLOAD} were wanted; send one message at a time")
    headers = [(parts[-1] if parts else None, fault) for parts, fault in (read_header(each.udh) for each in segments)]
    numbered = {(part.number, s.payload): (part, s) for (part, _), s in zip(headers, segments, strict=True) if part}
    parts = [part for part, _ in numbered.values()]
    if len({(part.reference, part.total) for part in parts}) > 1:
        raise InputError("the parts are of several messages; send the parts of one reference and total together")
    runs: list[list[Segment]] = []
    last = -1
    for part, segment in sorted(numbered.values()):
        if part.number != last + 1:
            runs.append([])
        runs[-1].append(segment)
        last = part.number
    runs += [[segment] for (part, _), segment in zip(headers, segments, strict=True) if part is None]
    read = [_decode_run(run, coding, apart=apart) for run in runs]
    partial = bool(parts) and {part.number for part in parts} != set(range(1, parts[0].total + 1))
    damaged = sum(fault for _, fault in headers)
    return Decoded(GAP.join(text for text, _ in read), sum(bad for _, bad in read), damaged, partial)


def readings(segments: Sequence[Segment], coding: str | int) -> list[Decoded]:
    """Decode the parts of one message in every way that a phone may: as declared, then in other plausible codings.

    `coding` is a name of CODINGS or a data_coding, which may have several names. Some phones decode each part by
    itself, so that a spare byte at its end does not garble the next one, and some know no byte order mark. Gateways
    declare GBK as 0 and UTF-16 as 15, so if the declared coding gives implausible text, each other coding that gives
    Chinese or ASCII text adds a reading; so does one that gives some Chinese, as in the binary data of a WAP push,
    where UTF-16 may begin at any byte; but no UTF-16 if that was declared, because shifted Chinese looks like Chinese.
    Numeric entities (&#26377;) and quoted bytes (=E6=9C=89) are resolved in further readings. Raises as `reassemble`
    does.
    """
    declared, *more = [coding] if isinstance(coding, str) else SEVERAL.get(coding) or [coding_of(coding)]
    joins = (False, True) if len(segments) > 1 else (False,)
    always = [reassemble(segments, name, apart=apart) for name in (declared, *more) for apart in joins]
    first, found = always[0], {each.text: each for each in always}
    unmarked = [Segment(_MARKS.sub(b"", each.payload), each.udh) for each in segments]
    if declared == "ucs2" and unmarked != list(segments):
        found |= {each.text: each for each in (reassemble(unmarked, declared, apart=apart) for apart in joins)}
    if declared != "latin1" and any(PUSH_PORT in each.udh for each in segments):  # binary whatever the coding
        found |= {each.text: each for each in readings(segments, "latin1")[1:]}
    if odd := _oddness(first.text):
        is_utf16 = declared.startswith("ucs2")
        others = [(name, reassemble(segments, name)) for name in _OTHER_READINGS]
        others += [(name, reassemble(segments, name, apart=True)) for name in ("gbk", "ucs2") if len(segments) > 1]
        data = reassemble(segments, "latin1").text.encode("latin-1", "replace")
        codecs_of = [] if is_utf16 else [(each, data[1:]) for each in ("utf-16-be", "utf-16-le")]
        if len(strings := _BETWEEN.sub(b"", data)) < len(data):
            codecs_of += [("utf-16-be", strings), ("utf-16-be", strings[1:])]
        if _TOKENS.search(data):
            codecs_of += [(each, _strings(data, each)) for each in ("utf-8", "gb18030", "big5")]
        codecs_of += _named(data)
        for codec, shifted in codecs_of:
            text, undecodable = replaced(shifted.decode(codec, KEEP))
            others.append((codec, first._replace(text=text, undecodable=undecodable)))
        for name, other in others:
            is_plausible = other.text and _oddness(other.text) < min(_PLAUSIBLE, odd)
            some = _SOME_CHINESE.search(other.text) if name == "utf8" else not is_utf16 and _has_chinese(other.text)
            if is_plausible or some:
                found.setdefault(other.text, other)
    for each in list(found.values()):
        found |= {text: each._replace(text=text) for text in _unescaped(each.text) if text not in found}
    return list(found.values())


def coding_of(data_coding: int) -> str:
    """Return the name of a data_coding (SMPP), Msg_Fmt (CMPP), MsgFormat (SMGP) or MessageCoding (SGIP).

    0x10 and more are coding groups of GSM 03.38, used by flash messages (0x18); binary data is read as latin1.
    """
    if data_coding in SEVERAL:
        return SEVERAL[data_coding][0]
    if data_coding < 0x10:
        return {0: "gsm7", 1: "ascii", 8: "ucs2", 9: "ucs2", 15: "gbk"}.get(data_coding, "latin1")
    group = data_coding >> 4
    if group < 0x8:
        return ("gsm7", "latin1", "ucs2", "gbk")[data_coding >> 2 & 3]
    if group == 0xE:
        return "ucs2"
    return "latin1" if group == 0xF and data_coding & 4 else "gsm7"


SEVERAL: dict[int, tuple[str, ...]] = {
    5: ("jis", "shift-jis", "euc-jp", "gbk"),
    10: ("jis", "shift-jis", "euc-jp", "gbk", "ucs2"),
    13: ("euc-jp", "jis", "shift-jis", "gbk"),
    **dict.fromkeys((14, 0x84), ("ksc5601", "gbk")),
}
"""Rare data_codings that gateways and phones take for different codings; each is read in all of them."""

PUSH_PORT = b"\x05\x04\x0b\x84"
"""The beginning of a header's element that sends a message to port 2948, as a WAP push."""

_MARKS = re.compile(rb"\A(?:\xff\xfe)+")
_OTHER_READINGS = ("gbk", "ucs2", "ucs2-le", "utf8", "big5")
_PLAUSIBLE = 0.34  # an extra byte must not hide a short message
_SOME_CHINESE = re.compile("(?:[\u4e00-\u9fff].*?){3}", re.DOTALL)  # hardly an accident in UTF-8
_LEVEL_1 = bytes(each for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF) for each in (row, cell))
_COMMON = set(_LEVEL_1.decode("gb2312", "ignore"))
_COMMON |= {chr(each) for each in range(0x4E00, 0xA000) if chr(each).translate(FOLD) in _COMMON}
_RUN = re.compile(f"(?:[{''.join(_COMMON)}][ -~\u3000-\u303f\uff00-\uff5e]{{0,3}}){{3,}}")
_NO_LETTERS = re.compile(rb"[^\0 -~]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ENTITY = re.compile("&#(?:[xX]0*([0-9a-fA-F]{1,6})|0*([0-9]{1,7}));")
_QUOTED = re.compile("(?:=[0-9a-fA-F]{2}(?:=\r?\n)?){6,}")  # as in a vCard
# WBXML, the form of a WAP push: 03 begins a string that a NUL ends, 02 a character as a multi-byte integer.
_TOKENS = re.compile(  # Chinese, or two strings in a row: from a piece's first 03, so that many take linear time
    rb"\x02\x80*[\x81\x82][\x80-\xff][\x00-\x7f]|(?:\A|\x00)[^\x00\x03]*\x03[^\x00]+\x00\x03"
)
_BETWEEN = re.compile(rb"\0\0[^\0]{0,4}?\x03")  # strings of UTF-16, which each may begin at an odd byte
_CHARACTER_TOKEN = re.compile(rb"\x02\x80*([\x80-\xff]{1,3}[\x00-\x7f])")
# The subject (96) and the sender (80) of an MMS notification: a length, a charset by IANA's number, and a text.
_NAMED = re.compile(
    rb"(?=[\x80\x96](?:[\x03-\x1e]|\x1f[\x80-\xff]?[\x00-\x7f])(?:([\x81-\xff])|\x02(..))([^\0]{1,300}))", re.DOTALL
)
_MOST_NAMED = 64
_CHARSETS = {
    17: "cp932", 38: "cp949", **dict.fromkeys((113, 114, 2025), "gb18030"), **dict.fromkeys((2026, 2101), "big5hkscs"),
    1012: "utf-7", 2085: "hz",
}  # fmt: skip
"""Those that the other readings don't have, or would read out of step because of the bytes before the text."""
_CONTROL_BYTES = bytes(set(range(0x20)) - set(b"\n\r"))


def _oddness(text: str) -> float:
    """Return the share of characters other than ASCII, emoji, and simplified or traditional Chinese.

    Of a long text only the two ends count, as in cleaning.
    """
    if len(text) > MAX_CHARACTERS:
        text = text[: MAX_CHARACTERS // 2] + text[-MAX_CHARACTERS // 2 :]
    usual = text.encode("gb2312", "ignore").decode("gb2312")
    if len(usual) == len(text) and not _CONTROL.search(text):
        return 0.0
    return sum(map(_is_odd, text)) / max(1, len(text))


def _has_chinese(text: str) -> bool:
    """Return whether three common Chinese characters are in a row, other than pairs of letters read as UTF-16."""
    return any(_NO_LETTERS.search(run.encode("utf-16-be")) for run in _RUN.findall(text))


@lru_cache(1 << 16)  # a sender could fill one without an end
def _is_odd(character: str) -> bool:
    if character > "\uffff":
        return False
    if "\u2e80" <= character < "\ufffd":
        character = character.translate(FOLD)  # traditional to simplified
    return not character.encode("gb2312", "ignore") or bool(_CONTROL.match(character))


def _strings(data: bytes, codec: str) -> bytes:
    """Return WBXML without its control bytes, and with its character tokens written in `codec`."""

    def character(token: re.Match[bytes]) -> bytes:
        value = 0
        for byte in token[1]:
            value = value << 7 | byte & 0x7F
        return _character(value).encode(codec, "ignore") or token[0]

    return _CHARACTER_TOKEN.sub(character, data).translate(None, _CONTROL_BYTES)


def _named(data: bytes) -> list[tuple[str, bytes]]:
    """Return the texts of an MMS notification with their codecs."""
    numbered = (
        (m[1][0] & 0x7F if m[1] else int.from_bytes(m[2]), m[3]) for m in islice(_NAMED.finditer(data), _MOST_NAMED)
    )
    return [(_CHARSETS[number], text) for number, text in numbered if number in _CHARSETS]


def _unescaped(text: str) -> Iterator[str]:
    """Yield a text with its entities resolved, and with its quoted bytes."""
    if "&#" in text:
        yield _ENTITY.sub(lambda m: _character(int(m[1], 16) if m[1] else int(m[2])) or m[0], text)
    if _QUOTED.search(text):
        for codec in ("utf-8", "gb18030"):
            pieces = _QUOTED.split(text)
            quoted = (bytes.fromhex(re.sub("=\r?\n|=", "", each)) for each in _QUOTED.findall(text))
            decoded = (replaced(each.decode(codec, KEEP))[0] for each in quoted)
            yield "".join(chain.from_iterable(zip_longest(pieces, decoded, fillvalue="")))


def _character(value: int) -> str:
    return chr(value) if 0x20 <= value <= 0x10FFFF and not 0xD800 <= value < 0xE000 else ""


# ---- user data header (3GPP TS 23.040, 9.2.3.24)


def read_header(udh: bytes) -> tuple[list[Part], bool]:
    """Return the parts of concatenated messages that anybody may find in a header, and whether it is damaged.

    By the standard the last part counts. Stated lengths and Android's may lead to different elements.
    """
    if not udh:
        return [], False
    if udh[0] != len(udh) - 1:
        return [], True
    found = dict[Part, None]()
    for lengths in (_ANDROID, {**_ANDROID, 0x01: 2}, {}):
        at = 1
        while at + 1 < len(udh):
            size = {0x00: 3, 0x08: 4}.get(udh[at], 0)
            data = udh[at + 2 : at + 2 + size]
            if size and len(data) == size and 1 <= data[-1] <= data[-2]:
                found[Part(int.from_bytes(data[:-2]), data[-2], data[-1])] = None
            at += 2 + lengths.get(udh[at], udh[at + 1])
    return list(found), at != len(udh)


_ANDROID = {0x00: 3, 0x08: 4, 0x04: 2, 0x05: 4, 0x24: 1, 0x25: 1}
"""Elements that Android reads in a length of its own; newer versions also 0x01."""


# ---- codings


def _decode_run(run: Sequence[Segment], coding: str, *, apart: bool) -> tuple[str, int]:
    if apart and len(run) > 1:
        texts = [_decode_run([each], coding, apart=False) for each in run]
        return "".join(text for text, _ in texts), sum(bad for _, bad in texts)
    if coding == "gsm7-packed":  # each part is padded to whole octets by itself
        return _decode_gsm7(b"".join(unpack(payload, len(udh)) for payload, udh in run))
    return CODINGS[coding](b"".join(payload for payload, _ in run))


def unpack(payload: bytes, header: int = 0) -> bytes:
    """Unpack septets after a header of that many octets, whose padding to a whole septet is skipped.

    If eight septets fill seven octets, the last may be padding (0 or a carriage return) and is then dropped.
    """
    skipped = -8 * header % 7
    count, spare = divmod(max(0, 8 * len(payload) - skipped), 7)
    pairs = [low | high << 8 for low, high in zip(payload, [*payload[1:], 0], strict=False)]
    septets = bytes(pairs[bit >> 3] >> (bit & 7) & 0x7F for bit in range(skipped, skipped + 7 * count, 7))
    return septets[:-1] if count and not spare and septets[-1] in b"\x00\r" else septets


_BASIC = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_OCTETS = _BASIC + "".join(chr(0xDC00 + octet) for octet in range(128, 256))
_EXTENSION = dict(zip("\nΛ()/<=>¡e", "\f^{}\\[~]|€", strict=True))
_ESCAPE = re.compile("\x1b(.?)", re.DOTALL)


def _decode_gsm7(septets: bytes) -> tuple[str, int]:
    """Read septets; an escape before a character without an extension is skipped, as the standard says."""
    text, _ = codecs.charmap_decode(septets, "strict", _OCTETS)
    return replaced(_ESCAPE.sub(lambda m: _EXTENSION.get(m[1], m[1].replace("\x1b", " ") or " "), text))


def _decode_ucs2(payload: bytes) -> tuple[str, int]:
    codec = "utf-16-le" if payload.startswith(codecs.BOM_UTF16_LE) else "utf-16-be"
    return replaced(payload.decode(codec, KEEP).removeprefix("\ufeff"))


def _decode_jis(payload: bytes) -> tuple[str, int]:
    if b"\x1b" in payload:
        return replaced(payload.decode("iso2022_jp_2", KEEP))
    return replaced(bytes(byte | 0x80 for byte in payload).decode("euc_jp", KEEP))


def _decoder(codec: str) -> Callable[[bytes], tuple[str, int]]:
    return lambda payload: replaced(payload.decode(codec, KEEP))


CODINGS: dict[str, Callable[[bytes], tuple[str, int]]] = {
    "gsm7": _decode_gsm7,
    "gsm7-packed": _decode_gsm7,
    "ascii": _decoder("ascii"),
    "latin1": _decoder("latin-1"),
    "ucs2": _decode_ucs2,
    "gbk": _decoder("gb18030"),  # GBK and its successor's four-byte characters, which phones send as GBK
    "ksc5601": _decoder("cp949"),  # KS C 5601 and Windows' additions to it
    "jis": _decode_jis,
    "euc-jp": _decoder("euc_jp"),
    "shift-jis": _decoder("cp932"),
    "big5": _decoder("big5hkscs"),
    "ucs2-le": _decoder("utf-16-le"),
    "utf8": _decoder("utf-8"),
}
"""Coding -> decoder of its bytes into text and a count of undecodable bytes."""
