"""What jingyin blocks must not arrive, as Kannel itself and two SMPP libraries read what the filters pass on."""

from collections.abc import Awaitable, Callable
from itertools import product
from random import Random

import pytest
from tests.serve.gateways.dialects import PHONE, SMPP, sar, tlv, udh
from tests.serve.gateways.fakes import GREETING, THREAT, Scoring, World, play
from tests.serve.gateways.test_kannel import Kannel, boxes, ports, through_kannel

smpp34 = pytest.importorskip("smpp34")
smpplib = pytest.importorskip("smpplib.smpp")

__all__ = ["boxes", "ports"]  # fixtures

CODECS = ("utf-16-be", "utf-16-le", "utf-8", "gbk", "utf-32-be")


def is_shown(content: bytes) -> bool:
    """Return whether a phone that takes any coding would show the threat."""
    return any(THREAT in content.decode(codec, "ignore") for codec in CODECS[:4])


# ---- Kannel


def query(random: Random) -> bytes:
    """Return a sendsms query that may hide the threat from whoever reads it otherwise than Kannel."""

    def rarely(*odd: bytes) -> bytes:
        return random.choice(odd) if random.random() < 0.25 else b""

    def text() -> bytes:
        said = random.choice((THREAT, THREAT, GREETING, "hi " + THREAT, ""))
        return rarely(b"\0", b"a") + said.encode(random.choice(CODECS)) + rarely(b"\0", b"x")

    def escaped(data: bytes) -> bytes:
        written = bytearray()
        for byte in data:
            raw = byte not in b"\0\t\n\r %&+ " and random.random() < 0.1
            written += bytes([byte]) if raw else b"%%%02X" % byte
        return bytes(written) + rarely(b"%", b"%4", b"%zz", b"%%41")

    def named(name: bytes) -> bytes:
        return random.choice(
            (name, name, name, name, b"%%%02x" % name[0] + name[1:], name + rarely(b"%00"), name.upper())
        )

    codings = [*b"2 2 2 2 %202 +2 2abc 2.0 0 0 1 1 4294967298 -1 0x2 3 2%00".split(), b""]
    charsets = [
        *b"UTF-8 UTF-8 UTF-16BE UTF-16LE UTF-16 UCS-2 UCS-4BE GBK CN-GB UTF-8//IGNORE WCHAR_T GB18030".split(),
        b"",
    ]
    pieces = [named(b"text") + b"=" + escaped(text()) for _ in range(random.choice((1, 1, 1, 2)))]
    pieces += [named(b"coding") + b"=" + random.choice(codings) for _ in range(random.choice((0, 1, 1, 1, 2)))]
    pieces += [named(b"charset") + b"=" + random.choice(charsets) for _ in range(random.choice((0, 0, 1, 2)))]
    pieces += [b"mclass=" + random.choice((b"0", b"1"))] * random.choice((0, 0, 1)) + [b""] * random.choice((0, 1))
    random.shuffle(pieces)
    return b"&".join(pieces)


def through(boxes: Kannel, ports: dict[str, int], count: int) -> None:
    random, answers = Random(count), {202: 0, 400: 0, 403: 0}

    async def scenario(send: Callable[[bytes], Awaitable[int]], _: Scoring) -> None:
        for _ in range(count):
            answers[await send(query(random))] += 1

    through_kannel(ports, scenario)
    arrived = boxes.delivered(0.7)
    assert not [content for _, content in arrived if is_shown(content)]
    assert min(answers.values()) > count / 20  # KeyError for any other answer
    assert len(arrived) >= answers[202]


@pytest.mark.external
def test_what_is_blocked_does_not_arrive_through_kannel(boxes: Kannel, ports: dict[str, int]) -> None:
    through(boxes, ports, 80)


@pytest.mark.external
@pytest.mark.exhaustive
def test_nor_in_2_000_queries(boxes: Kannel, ports: dict[str, int]) -> None:
    through(boxes, ports, 2_000)


# ---- SMPP


def sequence_of_pdus(random: Random, start: int) -> list[bytes]:
    """Return PDUs that carry the threat, whole or in parts, beside decoys and damage."""
    reference, pdus = random.randrange(4), []
    pieces = (
        [THREAT]
        if random.random() < 0.4
        else [THREAT[:4], THREAT[4:]]
        if random.random() < 0.7
        else [THREAT[:2], THREAT[2:5], THREAT[5:]]
    )
    numbered = [(number, piece) for number, piece in enumerate(pieces, 1)]
    for _ in range(random.choice((0, 0, 1, 2))):  # decoys
        numbered.insert(random.randrange(len(numbered) + 1), (random.randint(1, len(pieces)), "早"))
    if random.random() < 0.3:
        random.shuffle(numbered)
    for number, piece in numbered:
        codings = ((8, "utf-16-be"), (8, "utf-16-be"), (15, "gbk"), (0x18, "utf-16-be"), (0, "gbk"))
        sequence, coding, codec = start + len(pdus), *random.choice(codings)
        content = piece.encode(codec)
        to = random.choice(((PHONE,), ("86" + PHONE,), ("+86" + PHONE,), ("0086" + PHONE,), ("13900000000", PHONE)))
        total = random.choice((len(pieces), len(pieces), len(pieces) + 1)) if len(pieces) > 1 else 1
        header = udh(reference, total, number) if len(pieces) > 1 else b""
        parameters = sar(reference, total, number) if len(pieces) > 1 else b""
        kind = random.randrange(6)
        if kind == 0:
            pdu = SMPP.submit(content, sequence, to=to, coding=coding, tlvs=parameters)
        elif kind == 1:
            pdu = SMPP.submit(b"", sequence, to=to, coding=coding, udhi=bool(header), tlvs=tlv(0x424, header + content))
        elif kind == 2:
            pdu = SMPP.data_sm(content, sequence, coding=coding, tlvs=parameters)
        elif kind == 3:
            pdu = SMPP.submit("早", sequence, to=to, coding=coding, tlvs=tlv(0x424, content) + parameters)
        else:
            pdu = SMPP.submit(header + content, sequence, to=to, coding=coding, udhi=bool(header))
        if random.random() < 0.15:
            damaged = bytearray(pdu + random.choice((b"", b"\0", b"\x14\0\0\x50abc", b"\x04\x24\0")))
            if random.random() < 0.5:
                damaged[random.randrange(16, len(damaged))] = random.choice((0, 1, 2, 0xFF))
            damaged[:4] = len(damaged).to_bytes(4)
            pdu = bytes(damaged)
        pdus.append(pdu)
    return pdus


class Phone:
    """Shows what two libraries find in the PDUs that an SMSC took, with parts put together in any way."""

    def __init__(self) -> None:
        self.shown: list[bytes] = []
        self.parts: dict[tuple[str, int], dict[int, list[bytes]]] = {}

    def take(self, data: bytes) -> None:
        for to, udhi, contents, parameters in filter(None, (self._smpp34(data), self._smpplib(data))):
            for content in contents:
                header, text = (
                    (content[: content[0] + 1], content[content[0] + 1 :]) if udhi and content else (b"", content)
                )
                part = tuple(header[3:6]) if header[:2] == b"\5\0" else parameters
                if not part or part[1] < 2:
                    self.shown.append(text)
                    continue
                box = self.parts.setdefault((to.lstrip("+0").removeprefix("86"), part[0]), {})
                box.setdefault(part[2], []).append(text)
                rest = [box[number] for number in sorted(box)]
                self.shown += [b"".join(joined) for joined in product(*rest)]

    def _smpp34(self, data: bytes):
        """Read as smpp34 does, which passes over parameters that lie."""
        try:
            read = smpp34.decode(data)
        except (smpp34.SmppError, ValueError):
            return None
        if not isinstance(read, smpp34.SubmitSm):
            return None
        values = {each.tag: each.value for each in read.tlvs}
        contents = [read.short_message, *(each.value for each in read.tlvs if each.tag == 0x424)]
        return read.destination_addr, bool(read.esm_class & 0x40), contents, _sar(values)

    def _smpplib(self, data: bytes):
        try:
            read = smpplib.parse_pdu(data, allow_unknown_opt_params=True)
        except Exception:
            return None
        if read is None or read.command not in ("submit_sm", "data_sm"):
            return None
        contents = [getattr(read, "short_message", None), getattr(read, "message_payload", None)]
        to = (getattr(read, "destination_addr", None) or b"").decode("latin-1")
        return to, bool((read.esm_class or 0) & 0x40), [each for each in contents if each], ()


def _sar(values: dict[int, bytes]) -> tuple[int, ...]:
    found = [values.get(tag) for tag in (0x20C, 0x20E, 0x20F)]
    return tuple(int.from_bytes(each) & 0xFF for each in found if each) if all(found) else ()


def deliver(count: int) -> None:
    random, passed = Random(count), 0

    async def scenario(world: World) -> None:
        nonlocal passed
        sequence = 2
        for _ in range(count):
            for each in [part for kept in world.joiner._kept.values() for part in kept]:  # each sequence by itself
                world.joiner.forget(each)
            peers = [world.peers[0], world.peers[1]]
            phone, refused = Phone(), set()
            world.gateway.received.clear()
            pdus = sequence_of_pdus(random, sequence)
            sequence += len(pdus)
            refusing = {pdu for pdu in pdus if random.random() < 0.1}
            world.gateway.answer = lambda data, refusing=refusing: SMPP.answer(data, 0x0A if data in refusing else 0)
            for pdu in pdus:
                peer = random.choice(peers)
                peer.send(pdu)
                await peer.read()
            refused = refusing
            for data in world.gateway.received:
                if data not in refused:
                    phone.take(data)
            passed += len(phone.shown)
            assert not [content for content in phone.shown if is_shown(content)], pdus

    async def bound(world: World) -> None:
        await world.bound()
        await world.bound("other1")
        await scenario(world)

    play(bound, SMPP, hold=0.0)
    assert passed > count / 10


@pytest.mark.external
@pytest.mark.exhaustive
def test_what_is_blocked_is_not_found_by_two_smpp_libraries() -> None:
    deliver(150)


@pytest.mark.external
@pytest.mark.exhaustive
def test_nor_in_5_000_sequences() -> None:
    deliver(5_000)
