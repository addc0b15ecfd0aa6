import time
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.model.errors import InputError
from jingyin.serve import sms
from jingyin.serve.sms import (
    CODINGS,
    GAP,
    MAX_PAYLOAD,
    Part,
    Segment,
    coding_of,
    decode,
    read_header,
    readings,
    reassemble,
    unpack,
)

BASIC = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
EXTENDED = dict(zip("\f^{}\\[~]|€", "\nΛ()/<=>¡e", strict=True))
GSM = st.text(st.sampled_from(BASIC + "".join(EXTENDED)), max_size=200)
# Everything UTF-16 can carry; a leading byte order mark is taken off.
UNICODE = st.text(st.characters(exclude_categories=("Cs",)), max_size=100).filter(lambda t: t[:1] not in "\ufeff\ufffe")


def to_septets(text: str) -> bytes:
    table = {c: i + (i >= 0x1B) for i, c in enumerate(BASIC)}
    return b"".join(bytes((0x1B, table[EXTENDED[c]])) if c in EXTENDED else bytes((table[c],)) for c in text)


def pack(septets: bytes, header: int = 0) -> bytes:
    fill = -8 * header % 7
    bits = sum(septet << 7 * i for i, septet in enumerate(septets)) << fill
    return bits.to_bytes((7 * len(septets) + fill + 7) // 8, "little")


def header(number: int, total: int, reference: int = 0xA7, *, wide: bool = False) -> bytes:
    if wide:
        return bytes((6, 8, 4)) + reference.to_bytes(2) + bytes((total, number))
    return bytes((5, 0, 3, reference, total, number))


# ---- golden PDUs


@pytest.mark.parametrize(
    ("payload", "coding", "text"),
    [
        # The packing example that every description of GSM 03.38 uses.
        ("E8329BFD4697D9EC37", "gsm7-packed", "hellohello"),
        # Seven spare bits at the end are padding: eight octets hold nine septets, seven hold seven, not eight with @.
        ("31D98C56B3DD00", "gsm7-packed", "1234567"),
        ("31D98C56B3DD1A", "gsm7-packed", "1234567"),
        ("31D98C56B3DD70", "gsm7-packed", "12345678"),
        ("1B65313030", "gsm7", "€100"),
        ("547A03414243", "gsm7", "Tz¥ABC"),
        ("4F60597DFF0C00310032", "ucs2", "你好，12"),
        ("FEFF4F60597D", "ucs2", "你好"),
        ("FFFE604F7D59", "ucs2", "你好"),
        ("D83DDE00547C6B7B4F60", "ucs2", "😀呼死你"),
        ("C4E3BAC3A3AC313233", "gbk", "你好，123"),
        ("4F4B", "ascii", "OK"),
        ("E9A3", "latin1", "é£"),
        ("", "ucs2", ""),
        ("", "gsm7-packed", ""),
    ],
)
def test_golden(payload: str, coding: str, text: str) -> None:
    assert decode(bytes.fromhex(payload), coding) == (text, 0, 0, False)


@pytest.mark.parametrize(
    ("payload", "coding", "text", "unread"),
    [
        ("4F60597D4F", "ucs2", "你好\ufffd", 1),  # a cut character
        ("D83D4F60", "ucs2", "\ufffd\ufffd你", 2),  # a high surrogate alone
        ("DE00", "ucs2", "\ufffd\ufffd", 2),
        ("FFFD4F60", "ucs2", "\ufffd你", 0),  # a real replacement character is no fault
        ("4F60FEFF597D", "ucs2", "你\ufeff好", 0),  # a byte order mark inside is left to the normaliser
        ("C4E3FFBAC3C4", "gbk", "你\ufffd好\ufffd", 2),
        ("41FF42", "ascii", "A\ufffdB", 1),
        ("41C842", "gsm7", "A\ufffdB", 1),
        ("411B", "gsm7", "A ", 0),  # an escape with nothing after it
        ("1B1B41", "gsm7", " A", 0),
        ("1B41", "gsm7", "A", 0),  # no extension at A: the character itself
    ],
)
def test_unreadable_bytes_are_counted_and_the_rest_read(payload: str, coding: str, text: str, unread: int) -> None:
    assert decode(bytes.fromhex(payload), coding) == (text, unread, 0, False)


def test_golden_concatenated_packed_part_skips_the_fill_bit() -> None:
    # 05 00 03 CC 02 01, then one fill bit and the septets of "ab".
    assert decode(bytes.fromhex("C262"), "gsm7-packed", bytes.fromhex("050003CC0201"))[0] == "ab"


@pytest.mark.parametrize("udh", [None, b""])
def test_no_header_is_none_or_empty(udh: bytes | None) -> None:
    assert decode(b"OK", "ascii", udh) == ("OK", 0, 0, False)


# ---- properties


@given(GSM)
def test_gsm7_reads_what_was_written(text: str) -> None:
    assert decode(to_septets(text), "gsm7") == (text, 0, 0, False)


@given(st.text(st.sampled_from(BASIC.replace("@", "").replace("\r", "")), max_size=160), st.sampled_from([0, 6, 7]))
def test_packing_and_unpacking(text: str, length: int) -> None:
    assert unpack(pack(to_septets(text), length), length) == to_septets(text)


@given(UNICODE)
def test_ucs2_reads_what_was_written(text: str) -> None:
    assert decode(text.encode("utf-16-be"), "ucs2") == (text, 0, 0, False)
    assert decode(b"\xff\xfe" + text.encode("utf-16-le"), "ucs2") == (text, 0, 0, False)


@given(st.text(st.characters(codec="gbk"), max_size=100))
def test_gbk_reads_what_was_written(text: str) -> None:
    assert decode(text.encode("gbk"), "gbk") == (text, 0, 0, False)


@given(st.binary(max_size=300), st.sampled_from(sorted(CODINGS)), st.binary(max_size=12))
def test_any_bytes_are_read_and_never_raise(payload: bytes, coding: str, udh: bytes) -> None:
    message = decode(payload, coding, udh)
    assert 0 <= message.undecodable <= len(payload)
    assert message.undecodable <= message.text.count("\ufffd")
    message.text.encode("utf-8")  # no lone surrogate gets out


@given(UNICODE.filter(bool), st.randoms(), st.booleans(), st.integers(1, 20))
def test_parts_reassemble_in_any_order(text: str, random: Random, wide: bool, size: int) -> None:
    payload = text.encode("utf-16-be")
    pieces = [payload[i : i + size] for i in range(0, len(payload), size)][:255]
    whole = b"".join(pieces).decode("utf-16-be", "ignore") if len(pieces) == 255 else text
    segments = [Segment(p, header(i, len(pieces), wide=wide)) for i, p in enumerate(pieces, 1)]
    segments += segments[:1]  # a repeat
    random.shuffle(segments)
    message = reassemble(segments, "ucs2")
    assert message.text.rstrip("\ufffd") == whole.rstrip("\ufffd")
    assert (message.damaged, message.partial) == (0, False)


# ---- parts


def test_a_missing_part_leaves_a_gap_and_is_marked() -> None:
    first, third = "呼死你".encode("utf-16-be"), "给钱".encode("utf-16-be")
    segments = [Segment(third, header(3, 3)), Segment(first, header(1, 3))]
    assert reassemble(segments, "ucs2") == (f"呼死你{GAP}给钱", 0, 0, True)
    assert decode(first, "ucs2", header(1, 3)) == ("呼死你", 0, 0, True)


def test_an_escape_and_its_character_in_two_parts() -> None:
    segments = [Segment(b"a\x1b", header(1, 2)), Segment(b"e", header(2, 2))]
    assert reassemble(segments, "gsm7").text == "a€"
    packed = [Segment(pack(p, 6), udh) for p, udh in segments]
    assert reassemble(packed, "gsm7-packed").text == "a€"


def test_two_different_parts_of_one_number_are_both_read() -> None:
    segments = [Segment(b"hi", header(1, 1)), Segment(b"pay", header(1, 1)), Segment(b"hi", header(1, 1))]
    assert reassemble(segments, "ascii") == (f"hi{GAP}pay", 0, 0, False)


@pytest.mark.parametrize(
    ("udh", "part", "damaged"),
    [
        ("050003A70201", Part(0xA7, 2, 1), 0),
        ("060804BEEF0302", Part(0xBEEF, 3, 2), 0),
        ("0A0003A702010503000000", Part(0xA7, 2, 1), 0),  # an unknown element after the concatenation
        ("0B05040B8423F00003CC0201", Part(0xCC, 2, 1), 0),  # ports, then concatenation
        ("06050415820000", None, 0),  # ports only
        ("0A0003A702010003A80202", [Part(0xA7, 2, 1), Part(0xA8, 2, 2)], 0),
        ("050003A70200", None, 0),  # part 0: ignored, as the standard says
        ("050003A70203", None, 0),  # part 3 of 2
        ("0400", None, 1),  # shorter than it says
        ("040003A70201", None, 1),  # longer than it says
        ("050003A702", None, 1),  # truncated
        ("050009A70201", Part(0xA7, 2, 1), 1),  # an element longer than the header: a part to Kannel and Android
        ("070005A702017000", Part(0xA7, 2, 1), 0),  # an element longer than it should be
        ("08080600A702017000", Part(0xA7, 2, 1), 0),
        ("080101000003A70201", Part(0xA7, 2, 1), 0),  # as long as it says, and 2 bytes to newer Androids
        ("070003A702017005", Part(0xA7, 2, 1), 1),  # damaged after it: a part to Android all the same
        ("0100", None, 1),  # an element without a length
        ("FF", None, 1),
        ("", None, 0),
    ],
)
def test_headers(udh: str, part: Part | list[Part] | None, damaged: int) -> None:
    assert read_header(bytes.fromhex(udh))[0] == (part if isinstance(part, list) else [part] if part else [])
    assert decode(b"text", "ascii", bytes.fromhex(udh)).damaged == damaged


def test_a_damaged_header_among_parts_still_gets_its_text_read() -> None:
    segments = [Segment(b"tail", b"\x05\x00"), Segment(b"head", header(1, 2))]
    assert reassemble(segments, "ascii") == (f"head{GAP}tail", 0, 1, True)


# ---- what the gateway got wrong


def test_an_unknown_coding_lists_the_known() -> None:
    with pytest.raises(
        InputError,
        match=r"^the coding is unknown; known are gsm7, gsm7-packed, ascii, latin1, ucs2, gbk, ksc5601, jis, euc-jp, "
        r"shift-jis, big5, ucs2-le, utf8$",
    ):
        decode(b"secret", "utf7")


def test_parts_of_two_messages() -> None:
    with pytest.raises(InputError, match="the parts are of several messages"):
        reassemble([Segment(b"", header(1, 2, 1)), Segment(b"", header(2, 2, 2))], "ascii")


@pytest.mark.parametrize("coding", sorted(CODINGS))
def test_longest_payload_is_read_in_linear_time(coding: str) -> None:
    start = time.process_time()
    decode(b"\xdb\xff" * (MAX_PAYLOAD // 2), coding)
    assert time.process_time() - start < 2
    with pytest.raises(InputError, match=f"the payload has {MAX_PAYLOAD + 1} bytes"):
        decode(b"a" * (MAX_PAYLOAD + 1), coding)


# ---- what a data_coding says, and what it should have said


@pytest.mark.parametrize(
    ("numbers", "coding"),
    [
        ((0, 0x10, 0x11, 0xC0, 0xF0), "gsm7"),
        ((1,), "ascii"),
        ((2, 3, 4, 0x14, 0xF4), "latin1"),
        ((8, 9, 0x18, 0x19, 0xE0, 0xE8), "ucs2"),
        ((15, 0x1C), "gbk"),
    ],
)
def test_a_data_coding_has_a_name(numbers: tuple[int, ...], coding: str) -> None:
    assert {coding_of(number) for number in numbers} == {coding}


def test_every_data_coding_has_one() -> None:
    assert {coding_of(number) for number in range(256)} <= CODINGS.keys()


@pytest.mark.parametrize("text", ["您好", "还钱不然弄死你", "妈，今晚回家吃饭😀", "我們已經聯繫了你的親戚，請立刻還款"])
@pytest.mark.parametrize(
    ("data_coding", "codec"),
    [(0, "gb18030"), (0, "utf-8"), (8, "gb18030"), (8, "utf-8"), (8, "utf-16-le"), (15, "utf-16-be"), (3, "gb18030")],
)
def test_a_wrong_data_coding_hides_nothing(text: str, data_coding: int, codec: str) -> None:
    read = [message.text for message in readings([Segment(text.encode(codec))], data_coding)]
    assert read[0] != text
    assert text in read[1:]


@pytest.mark.parametrize(("data_coding", "codec"), [(8, "utf-16-be"), (15, "gb18030"), (0, "gb18030")])
def test_a_spare_byte_at_the_end_of_a_part_hides_nothing(data_coding: int, codec: str) -> None:
    parts = [Segment("您好".encode(codec) + b"\x81", header(1, 2)), Segment("弄死你".encode(codec), header(2, 2))]
    assert any(each.text.endswith("弄死你") for each in readings(parts, data_coding))


@pytest.mark.parametrize("count", [1, 2])
def test_a_byte_order_mark_that_lies_hides_nothing(count: int) -> None:
    marked = b"\xff\xfe" * count + "弄死你".encode("utf-16-be")
    assert "弄死你" in [each.text for each in readings([Segment(marked)], 8)]
    parts = [Segment("您好".encode("utf-16-be"), header(1, 2)), Segment(marked, header(2, 2))]
    assert "您好弄死你" in [each.text for each in readings(parts, 8)]


@given(UNICODE)
def test_the_first_reading_is_the_declared_one(text: str) -> None:
    segments = [Segment(text.encode("utf-16-be"))]
    assert readings(segments, 8)[0] == reassemble(segments, "ucs2")


@given(st.text("您好今晚回家吃饭，。abc 123还錢親戚😀", max_size=70))
def test_what_is_declared_rightly_has_one_reading(text: str) -> None:
    assert [message.text for message in readings([Segment(text.encode("utf-16-be"))], 8)] == [text]
    assert [message.text for message in readings([Segment(text.encode("gb18030"))], 15)] == [text]


@pytest.mark.parametrize("coding", [0, 4, 0xF5, "gbk"])
@pytest.mark.parametrize("codec", ["utf-8", "utf-16-be", "utf-16-le", "gbk"])
@pytest.mark.parametrize("before", [b"", b"a"])
@pytest.mark.parametrize("text", ["弄死你", "弄、死 你", "不還錢"])
def test_chinese_in_a_wap_push_is_read(text: str, before: bytes, codec: str, coding: int | str) -> None:
    push = bytes.fromhex("01060403ae81ea02056a0045c60c03612e636e0001 03".replace(" ", "")) + before
    parts = Segment(push, header(1, 2)), Segment(text.encode(codec) + b"\0\1\1", header(2, 2))
    assert any(text in each.text for each in readings(parts, coding))


@pytest.mark.parametrize("traditional", [False, True])
@pytest.mark.parametrize(
    ("data_coding", "codec"),
    [(0x84, "euc_kr"), (14, "euc_kr"), (5, "iso2022_jp"), (5, "cp932"), (10, "iso2022_jp"), (13, "euc_jp"),
     (14, "gbk"), (13, "gbk"), (10, "utf-16-be")],
)  # fmt: skip
def test_rare_data_codings_are_read_in_each_of_their_meanings(data_coding: int, codec: str, traditional: bool) -> None:
    text = "今夜不還錢弄死" if traditional else "今夜不弄死"  # characters that Japan and Korea have too
    parts = [Segment(text[:3].encode(codec), header(1, 2)), Segment(text[3:].encode(codec), header(2, 2))]
    assert text in [each.text for each in readings([Segment(text.encode(codec))], data_coding)]
    assert text in [each.text for each in readings(parts, data_coding)]


def test_jis_without_escape_sequences_is_read() -> None:
    raw = bytes(byte & 0x7F for byte in "今夜不還錢弄死".encode("euc_jp"))
    assert readings([Segment(raw)], 5)[0].text == "今夜不還錢弄死"


def tokens(text: str) -> bytes:
    """Write characters as WBXML does: 02 and a multi-byte integer."""
    points = [ord(each) for each in text]
    return b"".join(bytes((2, 0x80 | each >> 14, 0x80 | each >> 7 & 0x7F, each & 0x7F)) for each in points)


PUSH = bytes.fromhex("01060403ae81ea02056a0045c60c03612e636e0001")
BODIES = {
    "big5": b"\3" + "不還錢弄死你全家".encode("big5") + b"\0\1\1",
    "entities with zeros": "".join(f"&#x{ord(c):010x};&#{0x200B:012};" for c in "不還錢弄死你全家").encode(),
    "tokens with zeros": tokens("不還錢弄死你全家").replace(b"\2", b"\2\x80\x80") + b"\1\1",
    "strings of UTF-16": b"".join(b"\3" + each.encode("utf-16-be") + b"\0\0" for each in "不還錢弄死你全家"),
    "entities": b"<indication>" + "".join(f"&#{ord(c)};" for c in "不還錢弄死你全家").encode() + b"</indication>",
    "hexadecimal entities": "".join(f"&#x{ord(c):X};" for c in "不還錢弄死你全家").encode(),
    "tokens": tokens("不還錢弄死你全家") + b"\1\1",
    "tokens and strings": b"\3" + "不還錢".encode() + b"\0" + tokens("弄死") + b"\3" + "你全家".encode() + b"\0\1\1",
    "tokens and big5": b"".join(
        [b"\3", "不還錢".encode("big5"), b"\0", tokens("弄死"), b"\3", "你全家".encode("big5"), b"\0"]
    ),
    "many strings": b"".join(b"\3" + each.encode("gbk") + b"\0" for each in "不還錢弄死你全家"),
}


@pytest.mark.parametrize("coding", [4, 0, 0xF5, 8])
@pytest.mark.parametrize("form", BODIES)
def test_a_wap_push_is_read_in_every_form(form: str, coding: int) -> None:
    ports = bytes.fromhex("0605040b8423f0") if coding == 8 else b""  # under UCS-2 only the port tells
    text = [each.text for each in readings([Segment(PUSH + BODIES[form], ports)], coding)]
    assert any("不還錢弄死你全家" in each.replace("\u200b", "") for each in text), text


@pytest.mark.parametrize("coding", [4, 0, 8])
@pytest.mark.parametrize(
    ("charset", "codec"),
    [(b"\xea", "utf-8"), (b"\xf1", "gbk"), (b"\xf2", "gb18030"), (b"\2\7\xe9", "gb2312"), (b"\2\7\xea", "big5"),
     (b"\2\3\xf4", "utf-7"), (b"\2\3\xf7", "utf-16"), (b"\2\x08\x25", "hz"), (b"\x91", "cp932")],
)  # fmt: skip
@pytest.mark.parametrize("field", [b"\x96", b"\x89\x80"])
def test_an_mms_notification_is_read(field: bytes, charset: bytes, codec: str, coding: int) -> None:
    text = "今夜不弄死" if codec != "big5" else "不還錢弄死你全家"
    value = charset + text.encode(codec) + b"\0"
    length = bytes([len(value)]) if len(value) < 31 else bytes([31, len(value)])
    named = (
        field + length + value if field == b"\x96" else field[:1] + bytes([len(value) + 2]) + b"\x80" + length + value
    )
    push = b"\1\6\x22application/vnd.wap.mms-message\0\xaf\x84\x8c\x82\x98T1\0\x8d\x90\x96\x80" + named
    ports = bytes.fromhex("0605040b8423f0")
    assert any(text in each.text for each in readings([Segment(push + b"\x8a\x80\x8e\2\x10\0", ports)], coding))


def test_quoted_bytes_of_a_vcard_are_read() -> None:
    for codec in ("utf-8", "gbk"):
        quoted = "".join(f"={each:02X}" for each in "弄死你".encode(codec))
        card = f"BEGIN:VCARD\r\nN;CHARSET=X;ENCODING=QUOTED-PRINTABLE:{quoted[:6]}=\r\n{quoted[6:]}\r\nEND:VCARD"
        assert any("弄死你" in each.text for each in readings([Segment(card.encode())], 4))
    assert len(readings([Segment(b"a=10 b=20 c=30 d=40 e=50 f=60 g=70")], 4)) == 1


def test_what_is_no_entity_stays() -> None:
    assert [each.text for each in readings([Segment(b"&#ab; &#1f;")], 1)] == ["&#ab; &#1f;"]
    assert readings([Segment(b"a&#0;b&#xD800;c&#9999999;&#38;")], 1)[-1].text.endswith(";&")


def test_an_odd_character_in_declared_utf16_adds_no_reading() -> None:
    text = "您好，您尾号1234的卡于今晚支出三百元，余额五百，谢谢您的支持\u0e01"
    assert [each.text for each in readings([Segment(text.encode("utf-16-be"))], 8)] == [text]


def test_ascii_and_random_bytes_seldom_get_a_chinese_reading() -> None:
    random, letters = Random(1), b"abcdefghijklmnopqrstuvwxyz     /.:?="
    plain = [bytes(random.choices(letters, k=139)) + b"\0" for _ in range(300)]
    assert {len(readings([Segment(each)], 4)) for each in plain} == {1}
    assert sum(len(readings([Segment(random.randbytes(140))], 4)) > 1 for _ in range(300)) < 90


@pytest.mark.parametrize("coding", [0, 1, 3, 15])
@pytest.mark.parametrize("codec", ["gbk", "utf-8"])
def test_a_little_chinese_among_much_ascii_is_read(coding: int, codec: str) -> None:
    text = ". " * 60 + "弄死你"
    assert text in [each.text for each in readings([Segment(text.encode(codec))], coding)]


def test_a_payload_of_string_tokens_takes_linear_time() -> None:
    begun = time.process_time()
    readings([Segment(b"\x03" * 60_000)], 8)
    assert time.process_time() - begun < 2


def test_no_sender_fills_memory_with_characters() -> None:
    for start in range(0x10000, 0x30000, 2_000):
        readings([Segment("".join(map(chr, range(start, start + 2_000))).encode("utf-16-be"))], 8)
    assert sms._is_odd.cache_info().currsize <= 1 << 16
