"""Judges messages, and joins the parts of long ones, so that each is judged together with the others that have arrived.

Parts are held until their message is complete, at most `hold` seconds, and judged together: a threat is refused in all
its parts. Forwarded parts are remembered as long as phones keep theirs, so that a later part, even one after the
message was complete, is judged with them. Phones join parts of equal sender, reference and total; Kannel of one
connection; an SMSC may send on the low byte of the reference alone. So this joins by that byte, regardless of account,
spelling of the number, coding or stated total.

If a part's number arrives more than once, nobody but the phone knows which one it keeps (Android and Kannel the first),
or which ones never reached it. So a part is judged in full with the newest of each number, and with each part that may
stand next to it: of the same sender and total all of them, or the part is refused. Combinations without it were judged
when their last part came.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice, product
from math import prod
from typing import Any, Protocol, TypeVar

from jingyin.serve.gateways.client import FORGOTTEN, HELD, PART_BYTES, Ruling, VerdictClient
from jingyin.serve.gateways.codec import Message, digits
from jingyin.serve.sms import MAX_PAYLOAD, PUSH_PORT, Segment, readings

MAX_BYTES = 128 << 20
"""Bytes of all parts together; beyond that the oldest of the account with the most are forgotten."""
SCHEDULED_SECONDS = 31 * 86_400.0
"""Least time to keep parts with a time of delivery, which may come together long after they were sent."""
PHONE_SECONDS = 7 * 86_400.0
"""Time for which Android keeps the parts of an incomplete message."""
_SAME = 16
"""Most parts of one number, source and total in _SAME_SECONDS; of older ones, only this many count."""
_SAME_SECONDS = 86_400.0
_NEIGHBOURS = 64
"""Ways to put a part between its neighbours of the same source and total; beyond that it is refused."""
_STRANGERS = 16
"""The same for neighbours of any source and total, which are not refused."""
_CONTEXT = 100
"""Bytes of a neighbour that are context enough; a shorter one has its own neighbour joined too."""
_FOR_EACH = 4
"""Readings asked about for each destination; the others are asked about for one only."""
_MAX_LOST = 50_000  # keys of forgotten parts
_LARGE = 8_192  # bytes; longer messages are read in a thread
_PAUSE = 0.005  # seconds of reading after which the event loop does other work
_SAME_MESSAGE = 10.0  # seconds; parts forwarded earlier may belong to a previous message with the same reference
_OVERHEAD, _PER_RECEIVER = 1_200, 500  # bytes of a part besides its payload, as tracemalloc measures them

T = TypeVar("T")
PartKey = tuple[str, str, int | str]
Share = tuple[str, str, bool]  # account, direction, and whether the parts have a time of delivery
Codings = Mapping[int | str, str]
_Pieces = tuple[tuple["HeldPart", Segment], ...]


class Owner(Protocol):
    """A session; `places` bound its questions, see client.SESSION_QUESTIONS, and `reading` its messages being read."""

    places: asyncio.Semaphore
    reading: asyncio.Lock


@dataclass(eq=False, slots=True)
class HeldPart:
    """A received part of the messages `keys`, for each of its destinations; it waits, or was forwarded.

    `number` is its number in the message, from 1, `kin` source and total, by which many phones tell messages with one
    reference apart.
    """

    message: Message
    number: int
    keys: list[PartKey]
    kin: tuple[str, int]
    owner: Owner
    share: Share
    answer: asyncio.Future[Ruling]
    since: float
    timer: asyncio.TimerHandle | None = None
    complete: bool = False  # for all of its destinations

    @property
    def size(self) -> int:
        """Return the bytes that it uses."""
        return _OVERHEAD + _PER_RECEIVER * len(self.keys) + sum(len(each.payload) for each in self.message.texts)


@dataclass(eq=False, slots=True)
class _Box:
    """The parts with one reference that one destination has received or is about to receive.

    Boxes of equal `mark` hold the same parts: those of a message to many are looked at once.
    """

    mark: int = 0
    parts: dict[int, list[HeldPart]] = field(default_factory=dict)  # by number, the oldest first

    def all(self) -> list[HeldPart]:
        return [part for same in self.parts.values() for part in same]

    def holds_all(self, total: int) -> bool:
        return len(self.parts) >= total and all(number in self.parts for number in range(1, total + 1))

    def put(self, part: HeldPart) -> None:
        self.mark = hash((self.mark, id(part), True))
        self.parts.setdefault(part.number, []).append(part)

    def remove(self, part: HeldPart) -> None:
        self.mark = hash((self.mark, id(part), False))
        self.parts[part.number].remove(part)
        if not self.parts[part.number]:
            del self.parts[part.number]


class Joiner:
    """Judges the messages of all sessions, and keeps long ones that may get more parts; for the event loop only."""

    def __init__(
        self, client: VerdictClient, codings: Codings, *, hold: float, remember: float, most: int = MAX_BYTES
    ) -> None:
        self._client = client
        self._codings = codings
        self.hold = hold
        self._remember = remember
        self._most = most
        self._boxes: dict[PartKey, _Box] = {}
        self._kept: dict[Share, OrderedDict[HeldPart, None]] = {}  # the oldest first
        self._bytes: Counter[Share] = Counter()
        self._lost: OrderedDict[PartKey, None] = OrderedDict()  # where parts of an incomplete message were forgotten
        self._waiting: dict[HeldPart, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._short, self._long = asyncio.Lock(), asyncio.Lock()
        self._paused = 0.0
        self._shared: dict[Hashable, asyncio.Task[Any]] = {}

    async def judge(self, message: Message, owner: Owner) -> Ruling:
        """Judge a message that is no part of a longer one."""
        coding = self._codings.get(message.coding, message.coding)
        size = sum(len(each.payload) for each in message.texts)
        texts = await self._in_turn(
            owner, size, lambda: [read.text for each in message.texts for read in readings([each], coding)]
        )
        receivers = [digits(each) for each in message.destinations]
        return await self._client.ask(texts, digits(message.source), receivers, owner.places)

    def add(self, message: Message, direction: str, owner: Owner, account: str, *, hold: bool) -> HeldPart:
        """Add a part; its `answer` comes when the message is complete or after `hold` seconds, without `hold` at once.

        `owner` may flush it, `account` is charged for its memory.
        """
        assert message.part is not None
        loop = asyncio.get_running_loop()
        references = (message.part.reference, *message.aliases)
        source = digits(message.source)
        keyed = [source if each < 0 else each & 0xFF for each in references]  # -1: there is none
        keys = list(dict.fromkeys((direction, digits(to), each) for to in message.destinations for each in keyed))
        now = loop.time()
        share = account, direction, message.scheduled
        kin, number = (source, message.part.total), message.part.number
        part = HeldPart(message, number, keys, kin, owner, share, loop.create_future(), now)
        self._expire(now)
        boxes = self._boxes_of(part)
        if any(_is_crowded(box, part, now) for box in boxes):
            part.answer.set_result(self._client.refusal("repeated_part"))
            return part
        gone = (each for box in boxes for each in box.all() if each not in self._waiting)
        # If parts of this message were forwarded, its sender waits for each answer: holding would gain nothing.
        hold = hold and all(each.since < now - _SAME_MESSAGE for each in gone)
        for key in keys:
            self._boxes.setdefault(key, _Box()).put(part)
        self._bytes[share] += part.size
        self._kept.setdefault(share, OrderedDict())[part] = None
        self._waiting[part] = None
        HELD.inc()
        boxes = self._boxes_of(part)
        kept = [each for box in boxes for each in box.all()]
        if any(box.holds_all(total) for box in boxes for total in {each.kin[1] for each in kept}):
            for each in dict.fromkeys(kept):
                each.complete = each.complete or all(box.holds_all(each.kin[1]) for box in self._boxes_of(each))
        self._make_room()
        if not hold:
            self._release(part)
            return part
        part.timer = loop.call_later(self.hold, self._time_out, part)
        for other in self._together(part):
            if other.complete:
                self._release(other)
        return part

    def forget(self, part: HeldPart) -> None:
        """Forget a part that did not reach its receiver."""
        kept = self._kept.get(part.share, OrderedDict())
        if part not in kept:
            return
        del kept[part]
        for key in part.keys:
            box = self._boxes[key]
            box.remove(part)
            if not box.parts:
                del self._boxes[key]
        self._bytes[part.share] -= part.size
        if not kept:
            del self._kept[part.share], self._bytes[part.share]

    async def pause(self) -> None:
        """Let the event loop do other work, if the last time is _PAUSE ago."""
        if time.monotonic() - self._paused > _PAUSE:
            await asyncio.sleep(0)
            self._paused = time.monotonic()

    def flush(self, owner: Owner | None = None) -> None:
        """Judge the waiting parts of this owner, by default of all, now."""
        for part in [each for each in self._waiting if owner in (None, each.owner)]:
            self._release(part)

    def _boxes_of(self, part: HeldPart) -> list[_Box]:
        """Return the boxes of its destinations, one of those that hold the same."""
        return list({box.mark: box for key in part.keys if (box := self._boxes.get(key))}.values())

    def _expire(self, now: float) -> None:
        for (_, _, scheduled), kept in list(self._kept.items()):
            since = now - (max(self._remember, SCHEDULED_SECONDS) if scheduled else self._remember)
            while kept and (oldest := next(iter(kept))).since < since:
                self._release(oldest)
                self.forget(oldest)

    def _make_room(self) -> None:
        while (size := self._bytes.total()) > self._most:
            oldest = next(iter(self._kept[max(self._bytes, key=self._bytes.__getitem__)]))
            self._release(oldest)
            self.forget(oldest)
            FORGOTTEN.inc()
            if not oldest.complete:
                self._lost |= dict.fromkeys(oldest.keys)
        while len(self._lost) > _MAX_LOST:
            self._lost.popitem(last=False)
        PART_BYTES.set(size)

    def _together(self, part: HeldPart) -> list[HeldPart]:
        """Return the waiting parts that may be of one message with this one, which is among them."""
        return list({each: None for box in self._boxes_of(part) for each in box.all() if each in self._waiting})

    def _time_out(self, part: HeldPart) -> None:
        for other in self._together(part):  # else those that came later would be judged without it, if it is refused
            self._release(other)

    def _release(self, part: HeldPart) -> None:
        """Judge a waiting part together with the others that have arrived."""
        if part not in self._waiting:
            return
        del self._waiting[part]
        HELD.dec()
        if part.timer:
            part.timer.cancel()
        receivers: dict[int, tuple[_Box, list[str]]] = {}
        for key in part.keys:
            box = self._boxes.get(key) or _Box()
            receivers.setdefault(box.mark, (box, []))[1].append(key[1])
        doubted = not part.complete and any(key in self._lost for key in part.keys)
        to = [(_assemblies(box, part), tuple(dict.fromkeys(numbers))) for box, numbers in receivers.values()]
        self._spawn(self._settle(part, to, doubted=doubted))

    async def _settle(
        self, part: HeldPart, to: list[tuple[tuple[_Pieces, ...], tuple[str, ...]]], *, doubted: bool
    ) -> None:
        answers = [
            await self._once((*each, part.kin[0]), partial(self._judge_parts, part, *each))  # the same for its kin
            for each in to
        ]
        answer = max(answers, key=lambda each: each.severity)
        if doubted:
            answer = self._client.unread(answer, "lost_part")
        if answer.refused:
            self.forget(part)
        if not part.answer.done():  # its session may have ended
            part.answer.set_result(answer)

    async def _judge_parts(self, part: HeldPart, assemblies: tuple[_Pieces, ...], receivers: tuple[str, ...]) -> Ruling:
        texts: dict[str, None] = {}
        for each in assemblies:
            texts |= dict.fromkeys(
                await self._once(each, partial(self._in_turn, part.owner, _size(each), partial(self._read, each)))
            )
        first, others = list(texts)[:_FOR_EACH], list(texts)[_FOR_EACH:]
        asked = [self._client.ask(first, part.kin[0], receivers, part.owner.places)]
        if others:
            asked.append(self._client.ask(others, part.kin[0], receivers[:1], part.owner.places))
        return max(await asyncio.gather(*asked), key=lambda each: each.severity)

    def _read(self, pieces: _Pieces) -> list[str]:
        total = max(part.number for part, _ in pieces)
        runs = []
        for coding, run in groupby(pieces, lambda piece: piece[0].message.coding):
            # one header for all: their own references and totals may differ
            segments = [Segment(text.payload, _header(text.udh, total, part.number)) for part, text in run]
            runs.append([read.text for read in readings(segments, self._codings.get(coding, coding))])
        return ["".join(texts) for texts in islice(product(*runs), _STRANGERS)]

    async def _in_turn(self, owner: Owner, size: int, read: Callable[[], T]) -> T:
        """Read a message of `size` bytes; nonsense takes a millisecond for a short one, half a second for 64 KiB.

        Sessions take turns with one message each, and long messages are read in a thread. Otherwise a flood would keep
        the event loop busy until the answers about other sessions' messages came too late, and these passed unread.
        """
        if size > _LARGE:
            async with owner.reading, self._long:
                return await asyncio.to_thread(read)
        async with owner.reading, self._short:
            done = read()
            await self.pause()
            return done

    def _once(self, key: Hashable, work: Callable[[], Coroutine[object, object, T]]) -> "asyncio.Task[T]":
        """Do for parts that are judged together what is the same for all of them."""
        if key not in self._shared:
            self._shared[key] = asyncio.create_task(work())
            self._shared[key].add_done_callback(lambda _: self._shared.pop(key))
        return self._shared[key]

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)


def _header(udh: bytes, total: int, number: int) -> bytes:
    """Return a header of a part, with the port of a WAP push if `udh` has it."""
    element = bytes((0, 3, 0, total, number))
    return b"\x0b" + PUSH_PORT + b"\0\0" + element if PUSH_PORT in udh else b"\5" + element


def _is_crowded(box: _Box, part: HeldPart, now: float) -> bool:
    """Return whether not all parts with this one's number, or not all of its neighbours, could be tried."""
    kin = [each for each in box.parts.get(part.number, ()) if each.kin == part.kin and each.since > now - _SAME_SECONDS]
    sides = _sides(_kin(box, part), part)
    count = len(part.message.texts) * prod(len(each) for side in sides for each in side)
    return len(kin) >= _SAME or (count > _NEIGHBOURS and any(len(side) > 1 for side in sides))


def _assemblies(box: _Box, part: HeldPart) -> tuple[_Pieces, ...]:
    """Return what the phone may show when this part arrives: in full, and the part between its neighbours."""
    found: dict[_Pieces, None] = {}
    if part.message.lone:
        found |= {((part, text),): None for text in part.message.texts}
    for numbered, most in ((_kin(box, part), _NEIGHBOURS), (box.parts, _STRANGERS)):
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


def _kin(box: _Box, part: HeldPart) -> dict[int, list[HeldPart]]:
    """Return a box's parts of this one's source and total, the last _SAME of each number."""
    own = {number: [each for each in same if each.kin == part.kin] for number, same in box.parts.items()}
    return {number: same[-_SAME:] for number, same in own.items() if same and number <= part.kin[1]}


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


def _size(pieces: _Pieces) -> int:
    return sum(len(text.payload) for _, text in pieces)


def _fitting(pieces: list[tuple[HeldPart, Segment]], arrived: HeldPart) -> _Pieces:
    """Leave out the longest parts besides `arrived` until MAX_PAYLOAD bytes are left; no phone gets parts that long."""
    size = sum(len(text.payload) for _, text in pieces)
    for pair in sorted(pieces, key=lambda pair: len(pair[1].payload), reverse=True) if size > MAX_PAYLOAD else ():
        if size > MAX_PAYLOAD and pair[0] is not arrived:
            pieces.remove(pair)
            size -= len(pair[1].payload)
    return tuple(pieces)
