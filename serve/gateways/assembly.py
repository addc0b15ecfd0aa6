"""What a phone may show of the parts of a long message: the box of parts with one reference, and its assemblies.

If a part's number arrives more than once, nobody but the phone knows which one it keeps (Android and Kannel the first),
or which ones never reached it. So a part is judged in full with the newest of each number, and with each part that may
stand next to it: of the same sender and total all of them, or the part is refused. Combinations without it were judged
when their last part came.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice, product, takewhile
from math import prod

from jingyin.serve.gateways.client import SESSION_QUESTIONS, Ruling
from jingyin.serve.gateways.codec import Message
from jingyin.serve.sms import MAX_PAYLOAD, PUSH_PORT, Segment

STRANGERS = 16
"""Ways to put a part between its neighbours of any source and total; further ones are not tried."""
_NEIGHBOURS = 64
"""The same for neighbours of the same source and total; beyond that the part is refused."""
_SAME = 16
"""Most parts of one number, source and total in _SAME_SECONDS; of older ones, only this many count."""
_SAME_SECONDS = 86_400.0
_CONTEXT = 100
"""Bytes of a neighbour that are context enough; a shorter one has its own neighbour joined too."""
_OVERHEAD, _PER_RECEIVER, _PER_TEXT = 1_200, 1_000, 200  # bytes besides texts and addresses, by tracemalloc

PartKey = tuple[str, str, int | str]
Payer = tuple[str, str, bool]  # account, direction, and whether the parts have a time of delivery
Pieces = tuple[tuple["HeldPart", Segment], ...]


@dataclass(eq=False)
class Owner:
    """A session, or a user: `places` bound the questions, and `reading` the messages being read.

    Its parts keep it for as long as they are kept themselves, so it holds nothing else of the session.
    """

    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SESSION_QUESTIONS))
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(eq=False, slots=True)
class HeldPart:
    """A received part of the messages `keys`, for each of its destinations; it waits, or was forwarded.

    `number` is its number in the message, from 1, `payer` is charged for its memory. `kin` is source and total, by
    which many phones tell messages with one reference apart.
    """

    message: Message
    number: int
    keys: list[PartKey]
    kin: tuple[str, int]
    owner: Owner
    payer: Payer
    answer: asyncio.Future[Ruling]
    since: float
    timer: asyncio.TimerHandle | None = None
    asking: bool = False  # for parts of other filters
    due: bool = False  # to be judged as soon as they are known
    elsewhere: bool = False  # received by another filter

    @property
    def size(self) -> int:
        """Return the bytes that it uses."""
        message = self.message
        return (
            _OVERHEAD + _PER_RECEIVER * len(self.keys) + _PER_TEXT * (len(message.texts) - 1)
            + sum(map(len, (*chain(*message.texts), *message.destinations, message.source, self.payer[0])))
        )  # fmt: skip

    def of_other(self, message: Message, key: PartKey, now: float) -> "HeldPart":
        """Return a part that another filter received, perhaps of one message with this one; it is not judged here."""
        assert message.part is not None
        kin, payer = (message.source, message.part.total), ("", *self.payer[1:])
        return HeldPart(
            message, message.part.number, [key], kin, self.owner, payer, self.answer, now, elsewhere=True
        )  # fmt: skip

    def same_as(self, other: "HeldPart") -> bool:
        """Return whether a phone would read the same."""
        return (self.number, self.kin, self.message.texts, self.message.coding) == (
            other.number, other.kin, other.message.texts, other.message.coding
        )  # fmt: skip


@dataclass(eq=False, slots=True)
class Box:
    """The parts with one reference that one destination has received or is about to receive.

    Boxes of equal `mark` hold the same parts: those of a message to many are looked at once.

    A part must not cost time for each of the others: thousands fit, of one source or of as many.
    """

    mark: int = 0
    parts: dict[int, list[HeldPart]] = field(default_factory=dict)  # by number, the oldest first
    kin: dict[tuple[tuple[str, int], int], list[HeldPart]] = field(default_factory=dict)  # by kin and number
    waiting: list[HeldPart] = field(default_factory=list)
    run: int = 0  # there is a part of each number up to this one
    _ran: dict[int, float] = field(default_factory=dict)  # when this was last so

    def since(self, time: float) -> Iterator[HeldPart]:
        """Return the parts that came at this time or later."""
        return (part for same in self.parts.values() for part in takewhile(lambda each: each.since >= time, same[::-1]))

    def was_complete(self, part: HeldPart) -> bool:
        """Return whether there has been a part of each number up to this one's total, since it came."""
        total = part.kin[1]
        return self.run >= total or any(run >= total and last >= part.since for run, last in self._ran.items())

    def put(self, part: HeldPart) -> None:
        """Add a part, which waits if it is this filter's own."""
        self.mark = hash((self.mark, id(part), True))
        self.parts.setdefault(part.number, []).append(part)
        self.kin.setdefault((part.kin, part.number), []).append(part)
        if not part.elsewhere:
            self.waiting.append(part)
        while self.run + 1 in self.parts:
            self.run += 1
        if self.run > 1:
            self._ran[self.run] = part.since

    def remove(self, part: HeldPart) -> None:
        """Take a part out."""
        self.mark = hash((self.mark, id(part), False))
        self.parts[part.number].remove(part)
        self.kin[part.kin, part.number].remove(part)
        if not self.kin[part.kin, part.number]:
            del self.kin[part.kin, part.number]
        if not self.parts[part.number]:
            del self.parts[part.number]
            self.run = min(self.run, part.number - 1)
        self.release(part)

    def release(self, part: HeldPart) -> None:
        """Note that a part no longer waits."""
        if part in self.waiting:
            self.waiting.remove(part)


def header(udh: bytes, total: int, number: int) -> bytes:
    """Return a header of a part, with the port of a WAP push if `udh` has it."""
    element = bytes((0, 3, 0, total, number))
    return b"\x0b" + PUSH_PORT + b"\0\0" + element if PUSH_PORT in udh else b"\5" + element


def is_crowded(box: Box, part: HeldPart, now: float) -> bool:
    """Return whether not all parts with this one's number, or not all of its neighbours, could be tried."""
    kin = [each for each in box.kin.get((part.kin, part.number), ()) if each.since > now - _SAME_SECONDS]
    sides = _sides(_kin(box, part), part)
    count = len(part.message.texts) * prod(len(each) for side in sides for each in side)
    return len(kin) >= _SAME or (count > _NEIGHBOURS and any(len(side) > 1 for side in sides))


def assemblies(box: Box, part: HeldPart) -> tuple[Pieces, ...]:
    """Return what the phone may show when this part arrives: in full, and the part between its neighbours."""
    found: dict[Pieces, None] = {}
    if part.message.lone:
        found |= {((part, text),): None for text in part.message.texts}
    strangers = {number: same[-STRANGERS:] for number, same in box.parts.items()}
    for numbered, most in ((_kin(box, part), _NEIGHBOURS), (strangers, STRANGERS)):
        newest = [same[-1] for _, same in sorted({**numbered, part.number: [part]}.items())]
        for i in range(max(len(each.message.texts) for each in newest)):  # a peer takes the same of all
            found[
                _fitting([(each, each.message.texts[min(i, len(each.message.texts) - 1)]) for each in newest], part)
            ] = None
        left, right = _sides(numbered, part)
        own = [(part, text) for text in part.message.texts]
        count = len(own) * prod(map(len, (*left, *right)))
        if count == 1:
            continue  # the message in full holds them
        if count <= most:
            around = [product(*left[::-1], own, *right)]
        else:  # full-size ones, of which two in a row are context enough
            around = [product(*left[:1], own), product(own, *right[:1])]
        found |= dict.fromkeys(pieces for each in around for pieces in islice(each, most) if len(pieces) > 1)
    return tuple(found)


def _kin(box: Box, part: HeldPart) -> dict[int, list[HeldPart]]:
    """Return a box's parts of this one's source and total, the last _SAME of each number."""
    numbers = range(1, part.kin[1] + 1)
    return {number: same[-_SAME:] for number in numbers if (same := box.kin.get((part.kin, number)))}


def _sides(
    numbered: dict[int, list[HeldPart]], part: HeldPart
) -> tuple[list[list[tuple[HeldPart, Segment]]], list[list[tuple[HeldPart, Segment]]]]:
    """Return the texts that may stand before a part, the nearest number first, and behind it, as far as it needs."""

    def side(step: int) -> list[list[tuple[HeldPart, Segment]]]:
        found, number, enough = [], part.number + step, False
        while not enough and (same := numbered.get(number)):
            different = {
                (text, each.message.coding): (each, text) for each in same[::-1] for text in each.message.texts
            }
            found.append(list(different.values()))
            enough = min(len(text.payload) for _, text in different.values()) >= _CONTEXT
            number += step
        return found

    return side(-1), side(1)


def size_of(pieces: Pieces) -> int:
    """Return the bytes of the texts."""
    return sum(len(text.payload) for _, text in pieces)


def _fitting(pieces: list[tuple[HeldPart, Segment]], arrived: HeldPart) -> Pieces:
    """Leave out the longest parts besides `arrived` until MAX_PAYLOAD bytes are left; no phone gets parts that long."""
    size = sum(len(text.payload) for _, text in pieces)
    for pair in sorted(pieces, key=lambda pair: len(pair[1].payload), reverse=True) if size > MAX_PAYLOAD else ():
        if size > MAX_PAYLOAD and pair[0] is not arrived:
            pieces.remove(pair)
            size -= len(pair[1].payload)
    return tuple(pieces)
