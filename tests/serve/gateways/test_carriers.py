"""What the codecs of CMPP, SMGP and SGIP read: golden frames, layouts that differ by version, and what deviates."""

import asyncio
import re
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.gateways.dialects import (
    ALL,
    CMPP2,
    CMPP3,
    PHONE,
    SGIP,
    SMGP,
    SOURCE,
    Dialect,
    pad,
    tlv,
    udh,
)
from tests.serve.gateways.fakes import GREETING, HALVES, THREAT, Gateway, Peer, World, played
from tests.serve.gateways.golden import GOLDEN

from jingyin.serve.gateways.cmpp import Cmpp
from jingyin.serve.gateways.codec import Codec, FrameError, FrameKind, Message, UnreadableError
from jingyin.serve.gateways.sgip import Sgip
from jingyin.serve.gateways.smgp import Smgp
from jingyin.serve.sms import Part, Segment

YOU, GOOD = "您".encode("utf-16-be"), "好".encode("utf-16-be")
UDH = bytes.fromhex("0500032a0201")


def codec_of(name: str) -> Codec:
    """Return a codec that has seen a login."""
    codec: Codec = {"cmpp2": Cmpp, "cmpp3": Cmpp, "smgp": Smgp, "sgip": Sgip}[name]()
    if name.startswith("cmpp"):
        codec.frame(GOLDEN[f"{name}.connect"])
        codec.frame(GOLDEN[f"{name}.connect_resp"])
    return codec


def read(codec: Codec, data: bytes) -> Message | None:
    assert codec.cut(data) == len(data)
    return codec.read(codec.frame(data))


@pytest.mark.parametrize("name", ["cmpp2", "cmpp3", "smgp", "sgip"])
def test_golden_messages(name: str) -> None:
    codec, start = codec_of(name), {"smgp": "1890", "sgip": "861860"}.get(name, "1380")
    phones = [f"{start}0000000", f"{start}0000001"]
    hint = None
    one = Message([Segment(YOU + GOOD)], 8, None, "10690001", phones[:1])
    assert read(codec, GOLDEN[f"{name}.submit_one"]) == one
    two = read(codec, GOLDEN[f"{name}.submit_two"])
    assert two == Message([Segment("您好".encode("gbk"))], 15, hint, "10690001", phones)
    part = read(codec, GOLDEN[f"{name}.submit_part"])
    assert part == Message([Segment(YOU, UDH)], 8, Part(0x2A, 2, 1), "10690001", phones[:1])
    mo = read(codec, GOLDEN[f"{name}.deliver_mo"])
    assert mo == Message([Segment("退订".encode("gbk"))], 15, None, phones[0], ["10690001"])
    if name != "sgip":
        assert read(codec, GOLDEN[f"{name}.deliver_report"]) is None
    else:
        assert codec.frame(GOLDEN["sgip.report"]).kind is FrameKind.OTHER


@pytest.mark.parametrize(("name", "status"), [("cmpp2", 9), ("cmpp3", 9), ("smgp", 0x4B)])
def test_golden_refusals(name: str, status: int) -> None:
    codec = codec_of(name)
    assert codec.refuse(codec.frame(GOLDEN[f"{name}.submit_two"]), status) == GOLDEN[f"{name}.submit_refused"]
    assert not codec.succeeded(codec.frame(GOLDEN[f"{name}.submit_refused"]))


@pytest.mark.parametrize("name", ["cmpp2", "cmpp3", "smgp", "sgip"])
def test_golden_answers(name: str) -> None:
    codec = codec_of(name)
    login = {"smgp": "smgp.login", "sgip": "sgip.bind"}.get(name, f"{name}.connect")
    assert codec.frame(GOLDEN[login]).kind is FrameKind.LOGIN
    assert codec.succeeded(codec.frame(GOLDEN[f"{login}_resp"]))
    assert codec.succeeded(codec.frame(GOLDEN[f"{name}.submit_resp"]))
    if name != "sgip":
        assert codec.succeeded(codec.frame(GOLDEN[f"{name}.deliver_resp"]))
        down = codec.refuse(codec.frame(GOLDEN[login]), 5)
        assert len(down) == len(GOLDEN[f"{login}_resp"])
        assert down[-17:-1] == bytes(16)
        assert down[-1:] == GOLDEN[f"{login}_resp"][-1:]
    else:
        assert codec.refuse(codec.frame(GOLDEN[login]), 0) == GOLDEN["sgip.bind_resp"]


@pytest.mark.parametrize(
    ("name", "close", "kept"),
    [
        ("cmpp2", "cmpp.terminate", "cmpp.active_test"),
        ("smgp", "smgp.exit", "smgp.active_test"),
        ("sgip", "sgip.unbind", "sgip.report"),
    ],
)
def test_golden_ends(name: str, close: str, kept: str) -> None:
    codec = codec_of(name)
    assert codec.frame(GOLDEN[close]).kind is FrameKind.CLOSE
    assert codec.frame(GOLDEN[kept]).kind is FrameKind.OTHER
    made = codec.close()
    assert made[:8] + GOLDEN[close][8:] == GOLDEN[close]
    assert made[8:] == codec.own_sequence


@pytest.mark.parametrize("name", sorted(name for name in GOLDEN if ".submit_" in name and "smpp" not in name))
def test_golden_messages_cut_anywhere_are_refused(name: str) -> None:
    data = GOLDEN[name]
    codec = codec_of(name.partition(".")[0])
    frame = codec.frame(data)
    if name.endswith(("resp", "refused")):
        return
    whole = codec.read(frame)
    assert whole
    for end in range(codec.header.size, len(data)):
        try:
            made = codec.read(codec.frame(end.to_bytes(4) + data[4:end]))
        except UnreadableError:
            continue
        assert name.startswith("smgp")  # its optional parameters may end anywhere
        assert set(made.texts) >= set(whole.texts)  # one that announced a header may be lost


@pytest.mark.parametrize("dialect", [CMPP2, CMPP3, SMGP, SGIP], ids=lambda dialect: dialect.name)
@settings(max_examples=60, deadline=None)
@given(
    text=st.text(max_size=60),
    phones=st.lists(st.sampled_from(["13800000000", "8613900000001", "+1234"]), min_size=1, max_size=4),
    source=st.sampled_from(["1", "10690001", "106900011234567890123"]),
    coding=st.integers(0, 255),
    part=st.none() | st.tuples(st.integers(0, 255), st.just(3), st.integers(1, 3)),
)
def test_round_trips(
    dialect: Dialect, text: str, phones: list[str], source: str, coding: int, part: tuple[int, int, int] | None
) -> None:
    content = text.encode("utf-16-be", "surrogatepass")[:134]
    codec = dialect.codec()
    codec.frame(dialect.login())
    header = udh(*part) if part else b""
    data = dialect.submit(header + content, 7, to=phones, source=source, coding=coding, udhi=1 if part else 0)
    if not part and re.match(rb"\x05\x00\x03...|\x06\x08\x04....", content, re.DOTALL):
        return
    wanted = Message([Segment(content, header)], coding, Part(*part) if part else None, source, phones)
    assert read(codec, data) == wanted


# ---- versions of CMPP and SMGP


def test_the_version_is_that_of_the_session() -> None:
    for dialect, other in ((CMPP2, CMPP3), (CMPP3, CMPP2)):
        codec = Cmpp()
        codec.frame(dialect.login())
        codec.frame(other.answer(other.login()))  # the server's version counts
        frame = codec.frame(other.submit(GREETING, 1))
        assert len(codec.refuse(frame, 9)) == (24 if other is CMPP3 else 21)
    for byte, wide in ((0x21, False), (0x00, False), (0x7F, True)):
        codec = Cmpp()
        codec.frame(type(CMPP2)(byte).login())
        assert len(codec.refuse(codec.frame(CMPP2.submit("", 1)), 9)) == (24 if wide else 21)


@pytest.mark.parametrize(("session", "sent"), [(CMPP2, CMPP3), (CMPP3, CMPP2)])
def test_a_message_in_the_other_layout_is_read_in_it(session: Dialect, sent: Dialect) -> None:
    codec = Cmpp()
    codec.frame(session.login())
    submitted, delivered = read(codec, sent.submit(THREAT, 1)), read(codec, sent.deliver(THREAT, 1))
    assert submitted == Message([Segment(THREAT.encode("utf-16-be"))], 8, None, SOURCE, [PHONE])
    assert (delivered.texts[0], delivered.source) == (Segment(THREAT.encode("utf-16-be")), PHONE)
    assert read(codec, sent.report(1)) is None


def test_smgp_1_3_has_no_fixed_fee() -> None:
    codec = Smgp()
    old = SMGP.submit(THREAT, 1, fixed_fee=b"")
    wanted = Message([Segment(THREAT.encode("utf-16-be"))], 8, None, SOURCE, [PHONE])
    assert read(codec, old) == wanted
    login = SMGP.login()[:-1] + b"\x13"
    codec.frame(login)
    assert read(codec, old) == wanted
    assert codec.refuse(codec.frame(login), 1)[-1:] == b"\x13"


# ---- what deviates


@pytest.mark.parametrize("dialect", [CMPP2, CMPP3, SGIP], ids=lambda dialect: dialect.name)
def test_bytes_behind_the_fields_are_judged_too(dialect: Dialect) -> None:
    codec = dialect.codec()
    codec.frame(dialect.login())
    content = THREAT.encode("utf-16-be")
    counted = read(codec, dialect.submit(content, 1, size=len(content) // 2))  # in characters
    assert counted.texts[1].payload.startswith(content)
    assert read(codec, dialect.submit(GREETING, 1, tail=b"\0\0")).texts[0] == Segment(GREETING.encode("utf-16-be"))


def test_smgp_parameters() -> None:
    codec = Smgp()
    assert read(codec, SMGP.submit(GREETING, 1, tlvs=tlv(9, b"\2") + tlv(10, b"\1"))).part == Part(-1, 2, 1)
    node = read(codec, SMGP.submit(udh(7, 2, 1) + GOOD, 1, tlvs=b"\0\1\2\1"))  # bare, as node-smgp writes them
    assert (node.part, node.texts) == (Part(7, 2, 1), [Segment(GOOD, udh(7, 2, 1))])
    odd = read(codec, SMGP.submit(GREETING, 1, tlvs=tlv(0x10, b"901234\0\0\0") + tlv(0x7777, b"")))
    assert odd
    twice = tlv(9, b"\2") + tlv(10, b"\1") + tlv(10, b"\2")
    for bad in (b"\0", tlv(3, b"abc", 50), tlv(2, b"\1", 9), twice, tlv(9, b"\2") + tlv(10, b"\2\1")):
        with pytest.raises(UnreadableError, match="hold together"):
            read(codec, SMGP.submit(THREAT, 1, tlvs=bad))


@pytest.mark.parametrize("tlvs", [b"\0\1\0\0", tlv(2, b"\0") + tlv(2, b"\1"), tlv(2, b"\1\0")])
def test_smgp_parameters_that_may_or_may_not_announce_a_header_hide_nothing(tlvs: bytes) -> None:
    text = (THREAT + "，今晚之前" * 8).encode("utf-16-be")  # as a header, its first 79 bytes
    assert read(Smgp(), SMGP.submit(text, 1, tlvs=tlvs)).texts == [Segment(text), Segment(text[79:], text[:79])]


def test_smgp_parts_that_not_every_peer_takes_for_parts_are_read_both_ways() -> None:
    header = bytes.fromhex("0b0504000000000003070201")  # ports, then concatenation
    for tlvs in (tlv(2, b"\0") + tlv(2, b"\1"), tlv(2, b"\0\1")):
        made = read(Smgp(), SMGP.submit(header + HALVES[0], 1, tlvs=tlvs))
        assert (made.part, made.lone) == (Part(7, 2, 1), True)
        assert made.texts == [Segment(header + HALVES[0]), Segment(HALVES[0], header)]


def crafted_cmpp(number: int, phone: str = "111") -> bytes:
    """Return a part in the layout of 3.0 with a byte behind it, whole in that of 2.0: a single message to `phone`."""
    data = bytearray(CMPP3.part(HALVES[number - 1] + GOOD * 40, 5, (7, 2, number), tail=b"\0"))
    data[128:140] = bytes([2]) + pad(phone, 11)
    data[171] = len(data) - 180
    return bytes(data)


def test_a_part_that_the_other_layout_makes_a_message_to_somebody_else_is_refused() -> None:
    codec = codec_of("cmpp3")
    with pytest.raises(UnreadableError):
        read(codec, crafted_cmpp(1))


def test_a_client_can_not_change_the_layout_with_an_answer() -> None:
    codec = codec_of("cmpp3")
    codec.frame(GOLDEN["cmpp2.connect_resp"])
    assert len(codec.refuse(codec.frame(GOLDEN["cmpp3.submit_one"]), 9)) == 24
    codec = Cmpp()
    codec.frame(GOLDEN["cmpp2.connect_resp"])  # before CONNECT
    codec.frame(GOLDEN["cmpp3.connect"])
    codec.frame(GOLDEN["cmpp3.connect_resp"])
    assert len(codec.refuse(codec.frame(GOLDEN["cmpp3.submit_one"]), 9)) == 24


@pytest.mark.parametrize("bit", [1, 0x40, 0x41])
@pytest.mark.parametrize("dialect", [CMPP2, CMPP3, SMGP, SGIP], ids=lambda dialect: dialect.name)
def test_either_bit_says_that_there_is_a_header(dialect: Dialect, bit: int) -> None:
    codec = dialect.codec()
    codec.frame(dialect.login())
    header = b"\x06\x05\x04\x0b\x84\x23\xf0"  # ports
    assert read(codec, dialect.submit(header + GOOD, 1, udhi=bit)).texts == [Segment(GOOD, header)]


@pytest.mark.parametrize("dialect", [CMPP2, CMPP3, SMGP, SGIP], ids=lambda dialect: dialect.name)
def test_another_bit_may_say_so_to_some(dialect: Dialect) -> None:
    codec, text = dialect.codec(), (THREAT + "，今晚之前" * 8).encode("utf-16-be")  # as a header, its first 79 bytes
    codec.frame(dialect.login())
    assert read(codec, dialect.submit(text, 1, udhi=2)).texts == [Segment(text), Segment(text[79:], text[:79])]
    part = read(codec, dialect.submit(bytes.fromhex("0b0504000000000003070201") + HALVES[0], 1, udhi=2))
    assert (part.part, part.lone, len(part.texts)) == (Part(7, 2, 1), True, 2)


@pytest.mark.parametrize("dialect", [CMPP2, CMPP3], ids=lambda dialect: dialect.name)
def test_a_header_that_was_not_announced_leaves_pk_total_its_say(dialect: Dialect) -> None:
    codec = dialect.codec()
    codec.frame(dialect.login())
    made = read(codec, dialect.submit(udh(7, 2, 1) + GOOD, 1, pk=(2, 1)))
    announced = read(codec, dialect.submit(udh(7, 2, 1) + GOOD, 1, pk=(2, 2), udhi=1))
    assert (made.part, made.aliases) == (Part(7, 2, 1), (-1,))
    assert (announced.part, announced.aliases) == (Part(7, 2, 1), ())
    with pytest.raises(UnreadableError):
        read(codec, dialect.submit(udh(7, 2, 1) + GOOD, 1, pk=(2, 2)))


@played()
@pytest.mark.parametrize("dialect", [CMPP2, CMPP3, SMGP], ids=lambda dialect: dialect.name)
async def test_a_message_between_gateways_is_refused(world: World, peer: Peer, dialect: Dialect) -> None:
    forward = 5 if dialect is SMGP else 9
    peer.send(dialect.frame(forward, THREAT.encode("utf-16-be") * 20, 2))
    answer = await peer.read()
    assert int.from_bytes(answer[4:8]) == 0x80000000 | forward
    assert answer[-1] == (11 if dialect is SMGP else 2)
    assert len(world.gateway.received) == 1


@played(hold=20)
@pytest.mark.parametrize("dialect", [CMPP2, CMPP3], ids=lambda dialect: dialect.name)
async def test_parts_that_only_pk_total_and_pk_number_tell(peer: Peer, dialect: Dialect) -> None:
    peer.send(dialect.submit(HALVES[0], 2, pk=(2, 1)), dialect.submit(HALVES[1], 3, pk=(2, 2)))
    assert await peer.answers(2) == {2: dialect.blocked, 3: dialect.blocked}


@played(CMPP2)
@pytest.mark.parametrize("coding", [4, 5, 20, 32, 0xC0, 0xF4])
async def test_chinese_among_much_ascii_is_read_under_any_coding_but_ucs2(peer: Peer, coding: int) -> None:
    assert await peer.ask(CMPP2.submit(b". " * 60 + "弄死你".encode("gbk"), 2, coding=coding)) == {2: CMPP2.blocked}


@played()
@pytest.mark.parametrize("dialect", [CMPP2, CMPP3, SMGP, SGIP], ids=lambda dialect: dialect.name)
@pytest.mark.parametrize(
    ("coding", "codec"),
    [(0, "gbk"), (15, "gbk"), (8, "utf-16-be"), (8, "utf-16-le"), (8, "utf-16"), (0, "utf-16-be"), (15, "utf-8"),
     (25, "utf-16-be"), (4, "utf-16-be"), (11, "utf-8"), (1, "gbk")],
)  # fmt: skip
async def test_codings_and_what_deviates_from_them(peer: Peer, dialect: Dialect, coding: int, codec: str) -> None:
    assert await peer.ask(dialect.submit("还钱不然弄死你全家".encode(codec), 2, coding=coding)) == {2: dialect.blocked}


# ---- SGIP's gateway connects to the client too


async def calling_back(world: World) -> tuple[Peer, Gateway]:
    """Return a gateway that has connected to the back port, and the client that it is connected to."""
    sp = Gateway(SGIP)
    back = replace(world.settings, gateway=("127.0.0.1", await sp.start()), back=True)
    port = await world.proxy.listen("127.0.0.1", 0, back)
    gateway = Peer(SGIP, *await asyncio.open_connection("127.0.0.1", port))
    world.peers.append(gateway)
    return gateway, sp


@played(SGIP, given="judge")
@pytest.mark.parametrize(("judge", "judged"), [("submit", False), ("deliver", True)])
async def test_the_gateways_own_connections_are_passed_on(world: World, judge: str, judged: bool) -> None:
    gateway, sp = await calling_back(world)
    sent = [SGIP.login(1), SGIP.report(2), SGIP.deliver(THREAT, 3), SGIP.deliver(GREETING, 4), SGIP.close(5)]
    assert await gateway.ask(*sent) == {1: 0, 2: 0, 3: 108 if judged else 0, 4: 0, 5: 0}
    assert sp.received == [each for each in sent if not (judged and each is sent[2])]
    sp.stop()


@played(SGIP, judge="both", rate=0.001)
async def test_a_rate_bounds_no_messages_from_phones(world: World, peer: Peer) -> None:
    gateway, sp = await calling_back(world)
    assert await gateway.ask(SGIP.login(1), *(SGIP.deliver(GREETING, i) for i in (2, 3))) == {1: 0, 2: 0, 3: 0}
    assert await peer.ask(*(SGIP.submit(GREETING, i) for i in (2, 3))) == {2: 0, 3: SGIP.busy}
    sp.stop()


# ---- what no peer should send


FRAMES = {
    dialect.name: [
        dialect.login(), dialect.submit(THREAT, 2), dialect.submit(GREETING, 3, to=(PHONE, "13800000001")),
        dialect.part(THREAT, 4, (7, 2, 1)), dialect.deliver(THREAT, 5), dialect.report(6), dialect.close(7),
        dialect.alive(8), dialect.answer(dialect.submit("", 9)),
    ]
    for dialect in ALL
}  # fmt: skip


def fuzz(dialect: Dialect, count: int) -> None:
    """Read frames with bytes changed: each is a message, or refused by what refuses it; nothing else is raised."""
    random, read_, refused = Random(count), 0, 0
    for _ in range(count):
        codec = dialect.codec()
        codec.frame(dialect.login())
        data = bytearray(random.choice(FRAMES[dialect.name]))
        for _ in range(random.choice((0, 1, 1, 2, 5, 40))):
            data[random.randrange(len(data))] = random.choice((0, 1, 2, 0x7F, 0x80, 0xFF, random.randrange(256)))
        data[:4] = random.choice((data[:4], len(data).to_bytes(4), len(data).to_bytes(4)))
        data += random.randbytes(random.choice((0, 0, 1, 8, 20)))
        try:
            length = codec.cut(data)
        except FrameError:
            continue
        assert length
        frame = codec.frame(bytes(data[:length]).ljust(length, b"\0"))
        refusal = codec.refuse(frame, 1)
        assert codec.cut(refusal) == len(refusal)
        assert refusal[codec.sequence] == frame.sequence
        codec.succeeded(frame)
        if frame.kind not in (FrameKind.SUBMIT, FrameKind.DELIVER):
            continue
        try:
            message = codec.read(frame)
            assert message is None or (message.texts and message.destinations)
            read_ += 1
        except UnreadableError:
            refused += 1
    assert read_ > count / 20
    assert refused > count / 100


@pytest.mark.parametrize("dialect", ALL, ids=lambda dialect: dialect.name)
def test_2_000_changed_frames(dialect: Dialect) -> None:
    fuzz(dialect, 2_000)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dialect", ALL, ids=lambda dialect: dialect.name)
def test_100_000_changed_frames(dialect: Dialect) -> None:
    fuzz(dialect, 100_000)
