"""What a phone shows must have been judged, whatever the bytes; and what is ordinary goes through unchanged."""

import asyncio
from contextlib import suppress
from random import Random

import pytest
from tests.serve.gateways.dialects import ALL, SMPP, Dialect
from tests.serve.gateways.fakes import Judge, Peer, World, played
from tests.serve.phone import FACTS, DroppedError, Shown, header, joined, show

from jingyin.serve.gateways.assembly import Owner
from jingyin.serve.gateways.codec import UnreadableError
from jingyin.serve.gateways.parts import Joiner
from jingyin.serve.gateways.smpp import Smpp
from jingyin.serve.sms import Part, read_header

THREAT = "今夜不還錢弄死你"


@pytest.mark.parametrize("line", FACTS.strip().splitlines())
def test_the_filter_finds_every_part_that_the_phone_finds(line: str) -> None:
    udh, wanted = line.split()[:2]
    try:
        part, _ = header(bytes.fromhex(udh)[1:])
    except DroppedError:
        assert wanted == "dropped"
        return
    if part is None:
        assert (wanted, read_header(bytes.fromhex(udh))[0]) == ("none", [])
    else:
        assert wanted[3:] == f"{part[0]:x}/{part[1]}/{part[2]}"
        assert Part(*part) in read_header(bytes.fromhex(udh))[0]


def elements(random: Random, part: tuple[int, int, int] | None) -> bytes:
    """Return a header with odd elements around a concatenation of odd length."""

    def odd() -> bytes:
        kind = random.choice((0x01, 0x04, 0x05, 0x24, 0x70, 0x0A))
        usual = {0x01: 2, 0x04: 2, 0x05: 4, 0x24: 1}.get(kind, random.randrange(4))
        length = usual if random.random() < 0.7 else random.randrange(6)
        return bytes((kind, length)) + bytes(random.choice((0, 1, 2, 3, 8)) for _ in range(usual))

    made = b"".join(odd() for _ in range(random.choice((0, 0, 0, 1, 2))))
    if part:
        wide = random.random() < 0.4
        reference = bytes((0, part[0])) if wide else bytes((part[0],))
        spare = random.choice((0, 0, 0, 1, 2, 4))
        length = len(reference) + 2 + spare
        made += bytes((8 if wide else 0, length)) + reference + bytes(part[1:]) + b"\x70\0\x70\0"[:spare]
    made += b"".join(odd() for _ in range(random.choice((0, 0, 0, 1))))
    return bytes((len(made),)) + made


def messages(random: Random) -> list[tuple[bytes, int, bool]]:
    """Return short messages (content, coding, UDHI) that may carry the threat: with headers, decoys, and odd bytes."""
    count, reference = random.choice((1, 1, 2, 3)), random.randrange(256)
    cuts = sorted(random.sample(range(1, len(THREAT)), count - 1))
    pieces = [THREAT[a:b] for a, b in zip([0, *cuts], [*cuts, len(THREAT)], strict=True)]
    numbered = [(number, piece) for number, piece in enumerate(pieces, 1)]
    for _ in range(random.choice((0, 0, 1, 3))):
        numbered.insert(
            random.randrange(len(numbered) + 1), (random.randint(1, count), "早安" * random.choice((1, 30)))
        )
    made = []
    for number, piece in numbered:
        coding, codec = random.choice(((8, "utf-16-be"), (8, "utf-16-be"), (0x18, "utf-16-be"), (0xE0, "utf-16-be"),
                                       (0x84, "euc_kr"), (9, "utf-16-be"), (8, "utf-16-le")))  # fmt: skip
        mark = b"\xff\xfe" if codec == "utf-16-le" else random.choice((b"", b"", b"\xfe\xff"))
        body = (mark if codec.startswith("utf-16") else b"") + piece.encode(codec, "ignore")
        body += random.choice((b"", b"", b"\x81", b"\0"))
        guessed = random.choice((b"", b"", b"", b"\6\x08\4\x11\x12\1\1\x20", b"\5\0\3\x2a\xff\xb9"))
        udhi = count > 1 or random.random() < 0.3
        head = elements(random, (reference, count, number) if count > 1 else None) if udhi else guessed
        made.append(((head + body)[:254], coding, udhi))
    return made


def run(count: int) -> tuple[int, int]:
    """Return how many cases showed the threat and were judged, and how many were refused."""
    random, shown, refused = Random(count), 0, 0

    async def scenario() -> None:
        nonlocal shown, refused
        for i in range(count):
            case = messages(random)
            phones: dict[bool, list[Shown]] = {False: [], True: []}
            judge, owner = Judge(), Owner()
            joiner = Joiner(judge, {}, hold=0, remember=60)  # type: ignore[arg-type]
            was_refused = False
            for content, coding, udhi in case:
                for old, seen in phones.items():
                    with suppress(DroppedError):
                        seen.append(show(content, coding, udhi=udhi, old=old))
                codec = Smpp()
                try:
                    message = codec.read(codec.frame(SMPP.submit(content, 1, coding=coding, udhi=udhi)))
                except UnreadableError:
                    was_refused = True
                    continue
                assert message
                if message.part:
                    ruling = await joiner.add(message, "submit", owner, "a", hold=False).answer
                else:
                    ruling = await joiner.judge(message, owner)
                was_refused = was_refused or ruling.action == "block"
            reads = any(THREAT in text for seen in phones.values() for text in joined(seen))
            refused += was_refused
            if reads and not was_refused:
                shown += 1
                assert any(THREAT in text for text in judge.asked), (i, [each[0].hex(" ") for each in case])

    asyncio.run(scenario())
    return shown, refused


@pytest.mark.parametrize(
    ("count", "least_shown", "most_refused"),
    [(500, 100, 200), pytest.param(20_000, 4_000, 20_000, marks=pytest.mark.exhaustive)],
)
def test_what_the_phone_shows_of_odd_messages_was_judged(count: int, least_shown: int, most_refused: int) -> None:
    shown, refused = run(count)
    assert shown > least_shown
    assert refused < most_refused


@played(hold=20)
@pytest.mark.parametrize("dialect", ALL, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.exhaustive)])
async def test_ordinary_messages_arrive_unchanged(world: World, peer: Peer, dialect: Dialect, count: int) -> None:
    """Some in parts; each byte for byte."""
    random = Random(count)
    words = "您好今晚回家吃饭验证码请查收快递明天开会谢谢您的订单已发货，。！0123456789abc 親愛的客戶😀"
    codings = [(8, "utf-16-be"), (0x18, "utf-16-be"), (15, "gb18030"), (0, "ascii")]
    sent, sequence = [], 1
    while len(sent) < count:
        coding, codec = random.choice(codings)
        text = "".join(random.choices(words, k=random.choice((5, 30, 60, 200)))).encode(codec, "ignore")
        parts = [text[i : i + 134] for i in range(0, max(1, len(text)), 134)] if len(text) > 140 else [text]
        to, reference, frames = f"138{random.randrange(10**8):08}", random.randrange(256), []
        for number, each in enumerate(parts, 1):
            sequence += 1
            if len(parts) > 1:
                part = (reference, len(parts), number)
                frames.append(dialect.part(each, sequence, part, coding=coding, to=(to,)))
            else:
                frames.append(dialect.submit(each, sequence, coding=coding, to=(to,)))
        assert set((await peer.ask(*frames)).values()) == {0}
        sent += frames
    assert sorted(world.gateway.received[1:]) == sorted(sent)
