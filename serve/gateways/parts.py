"""Judges messages, and joins the parts of long ones, so that each is judged together with the others that have arrived.

Parts are held until their message is complete, at most `hold` seconds, and judged together: a threat is refused in all
its parts. Forwarded parts are remembered, so that a later part, even one after the message was complete, is judged with
them. Like a phone, this joins parts by reference, regardless of account, spelling of the number, coding or stated
total; of the reference the low byte counts, because an SMSC may send on no more. If a part's number arrives more than
once, each candidate is tried; one more than can be tried is refused, as it would hide the others.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby, islice, product
from typing import Any, Protocol, TypeVar

from jingyin.serve.gateways.client import HELD, PART_BYTES, REFUSED, Ruling, VerdictClient
from jingyin.serve.gateways.codec import Message, digits
from jingyin.serve.sms import MAX_PAYLOAD, Segment, readings

MAX_BYTES = 64 << 20
"""Bytes of all parts together; beyond that the oldest of the account with the most are forgotten."""
SCHEDULED_SECONDS = 31 * 86_400.0
"""Least time to keep parts with a time of delivery, which may come together long after they were sent."""
_COMBINATIONS = 16
"""Ways to assemble a message that are read; also most parts of one number, source and total."""
_FOR_EACH = 4
"""Readings asked about for each destination; the others are asked about for one only."""
_LARGE = 8_192  # bytes; longer messages are read in a thread
_PAUSE = 0.005  # seconds of reading after which the event loop does other work
_SAME_MESSAGE = 10.0  # seconds; parts forwarded earlier may belong to a previous message with the same reference
_OVERHEAD = 600  # bytes of a part besides its payload, about

T = TypeVar("T")
PartKey = tuple[str, str, int | str]
Share = tuple[str, str, bool]  # account, direction, and whether the parts have a time of delivery
Codings = Mapping[int | str, str]
_Candidates = tuple[tuple["HeldPart", ...], ...]  # by number, those that the phone may take


class Owner(Protocol):
    """A session; `places` bound its questions, see client.SESSION_QUESTIONS, and `reading` its messages being read."""

    places: asyncio.Semaphore
    reading: asyncio.Lock


@dataclass(eq=False)
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

    @property
    def size(self) -> int:
        """Return the bytes that it uses in one box."""
        return _OVERHEAD + sum(len(each.payload) for each in self.message.texts)


@dataclass(eq=False)
class _Box:
    """The parts with one reference that one destination has received or is about to receive."""

    touched: float = 0.0  # when the last part came
    parts: dict[int, list[HeldPart]] = field(default_factory=dict)  # by number, the oldest first
    whole: dict[tuple[str, int], float] = field(default_factory=dict)  # by kin, when the last whole message was over

    def opener(self, kin: tuple[str, int], number: int) -> HeldPart | None:
        """Return the first part since the last whole message: many phones keep it, and drop others until it is used."""
        since = self.whole.get(kin, 0.0)
        return next((each for each in self.parts.get(number, ()) if each.kin == kin and each.since > since), None)

    def all(self) -> list[HeldPart]:
        return [part for same in self.parts.values() for part in same]

    def is_whole(self, part: HeldPart) -> bool:
        return all(number in self.parts for number in range(1, part.kin[1] + 1))


class Joiner:
    """Judges the messages of all sessions, and keeps long ones that may get more parts; for the event loop only."""

    def __init__(self, client: VerdictClient, codings: Codings, *, hold: float, remember: float) -> None:
        self._client = client
        self._codings = codings
        self.hold = hold
        self._remember = remember
        self._boxes: dict[PartKey, _Box] = {}
        self._kept: dict[Share, OrderedDict[HeldPart, None]] = {}  # the oldest first
        self._bytes: Counter[Share] = Counter()
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
        boxes = [self._boxes[key] for key in keys if key in self._boxes]
        if any(sum(each.kin == part.kin for each in box.parts.get(part.number, ())) >= _COMBINATIONS for box in boxes):
            part.answer.set_result(self._client.refusal("repeated_part"))
            return part
        gone = (each for box in boxes for each in box.all() if each not in self._waiting)
        # If parts of this message were forwarded, its sender waits for each answer: holding would gain nothing.
        hold = hold and all(each.since < now - _SAME_MESSAGE for each in gone)
        for key in keys:
            self._put(key, part, now)
        self._kept.setdefault(share, OrderedDict())[part] = None
        self._waiting[part] = None
        HELD.inc()
        self._make_room()
        if not hold:
            self._release(part)
            return part
        part.timer = loop.call_later(self.hold, self._time_out, part)
        for other in self._together(part):
            if all(box.is_whole(other) for box in map(self._boxes.get, other.keys) if box):
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
            box.parts[part.number].remove(part)
            if not box.parts[part.number]:
                del box.parts[part.number]
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

    def flush(self, owner: Owner) -> None:
        """Judge the waiting parts of this owner now."""
        for part in [each for each in self._waiting if each.owner is owner]:
            self._release(part)

    def _put(self, key: PartKey, part: HeldPart, now: float) -> None:
        box, kin = self._boxes.setdefault(key, _Box()), part.kin
        if len(box.parts) >= kin[1] and all(box.opener(kin, number) for number in range(1, kin[1] + 1)):
            box.whole[kin] = box.touched
        box.touched = now
        box.parts.setdefault(part.number, []).append(part)
        self._bytes[part.share] += part.size

    def _expire(self, now: float) -> None:
        for (_, _, scheduled), kept in list(self._kept.items()):
            since = now - (max(self._remember, SCHEDULED_SECONDS) if scheduled else self._remember)
            while kept and (oldest := next(iter(kept))).since < since:
                self._release(oldest)
                self.forget(oldest)

    def _make_room(self) -> None:
        while (size := self._bytes.total()) > MAX_BYTES:
            oldest = next(iter(self._kept[max(self._bytes, key=self._bytes.__getitem__)]))
            self._release(oldest)
            self.forget(oldest)
        PART_BYTES.set(size)

    def _together(self, part: HeldPart) -> list[HeldPart]:
        """Return the waiting parts that may be of one message with this one, which is among them."""
        boxes = (self._boxes[key] for key in part.keys if key in self._boxes)
        return list({each: None for box in boxes for each in box.all() if each in self._waiting})

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
        assembled = [(key[1], each) for key in part.keys for each in _candidates(self._boxes.get(key), part)]
        self._spawn(self._settle(part, assembled))

    def _texts(self, candidates: _Candidates, arrived: HeldPart) -> Iterator[str]:
        """Yield the readings of the messages that the phone may assemble when this part arrives."""
        chosen = (
            zip(parts, texts, strict=True)
            for parts in islice(product(*candidates), _COMBINATIONS)
            for texts in _choices(parts)
        )
        for each in islice(chosen, max(4, MAX_PAYLOAD // _size(candidates))):
            yield from self._read(_fitting(list(each), arrived))

    def _read(self, candidate: list[tuple[HeldPart, Segment]]) -> Iterator[str]:
        total = max(part.number for part, _ in candidate)
        runs = []
        for coding, run in groupby(candidate, lambda pair: pair[0].message.coding):
            # one header for all: their own references and totals may differ
            segments = [Segment(text.payload, bytes((5, 0, 3, 0, total, part.number))) for part, text in run]
            runs.append([read.text for read in readings(segments, self._codings.get(coding, coding))])
        for texts in islice(product(*runs), _COMBINATIONS):
            yield "".join(texts)

    async def _settle(self, part: HeldPart, assembled: list[tuple[str, _Candidates]]) -> None:
        read: dict[_Candidates, list[str]] = {}
        for candidates in dict.fromkeys(candidates for _, candidates in assembled):
            arrived = part if _size(candidates) > MAX_PAYLOAD else None  # else it makes no difference to _fitting
            read[candidates] = await self._once((candidates, arrived), partial(self._read_all, candidates, part))
        source, _ = part.kin
        first = {text: to for to, candidates in reversed(assembled) for text in read[candidates]}
        questions = dict.fromkeys(
            (text, to)
            for to, candidates in assembled
            for i, text in enumerate(read[candidates])
            if i < _FOR_EACH or first[text] == to
        )
        answers = (
            self._once((text, source, to), partial(self._client.ask, [text], source, [to], part.owner.places))
            for text, to in questions
        )
        answer = max(await asyncio.gather(*answers), key=lambda each: each.severity)
        if answer.action in REFUSED:
            self.forget(part)
        if not part.answer.done():  # its session may have ended
            part.answer.set_result(answer)

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

    async def _read_all(self, candidates: _Candidates, part: HeldPart) -> list[str]:
        texts, following = [], partial(next, self._texts(candidates, part), None)
        while (text := await self._in_turn(part.owner, _size(candidates), following)) is not None:
            texts.append(text)
        return texts

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


def _candidates(box: _Box | None, part: HeldPart) -> tuple[_Candidates, _Candidates]:
    """Return the parts of a message by number, those of the arrived part's kin alone, and those of all.

    Of the kin the newest comes first, then the opener, the very first, and the others, newest first. Of the arrived
    part's number, only that part. Alone, so that no other messages with this reference use up the combinations.
    """

    def order(number: int, same: list[HeldPart]) -> tuple[HeldPart, ...]:
        kin = [each for each in same if each.kin == part.kin]
        opener = box.opener(part.kin, number) if box else None
        first = (*kin[-1:], *filter(None, (opener,)), *kin[:1], *kin[::-1])
        return tuple(dict.fromkeys((*first, same[-1], same[0], *reversed(same))))[:_COMBINATIONS]

    def chosen(numbered: dict[int, list[HeldPart]]) -> _Candidates:
        candidates: list[tuple[HeldPart, ...]] = []
        combinations = 1
        for number, same in sorted(numbered.items(), reverse=True):
            if len(same) > 1 and combinations < _COMBINATIONS:
                candidates.append(order(number, same))
            elif same:  # of lower numbers only the first is tried: product() begins with the last factor
                candidates.append((next((each for each in reversed(same) if each.kin == part.kin), same[-1]),))
            combinations *= len(candidates[-1]) if same else 1
        return tuple(reversed(candidates))

    every = {**box.parts, part.number: [part]} if box else {part.number: [part]}
    own = {n: [each for each in same if each.kin == part.kin] for n, same in every.items() if n <= part.kin[1]}
    return chosen(own), chosen(every)


def _choices(parts: tuple[HeldPart, ...]) -> Iterator[tuple[Segment, ...]]:
    """Yield one text of each part: first as of a peer that takes the same of all, then others."""
    texts = [part.message.texts for part in parts]
    same = (tuple(each[min(i, len(each) - 1)] for each in texts) for i in range(max(map(len, texts))))
    return islice(dict.fromkeys(chain(same, islice(product(*texts), _COMBINATIONS))), _COMBINATIONS)


def _size(candidates: _Candidates) -> int:
    return sum(max(len(text.payload) for part in same for text in part.message.texts) for same in candidates) or 1


def _fitting(candidate: list[tuple[HeldPart, Segment]], arrived: HeldPart) -> list[tuple[HeldPart, Segment]]:
    """Leave out the longest parts besides `arrived` until MAX_PAYLOAD bytes are left; no phone gets parts that long."""
    size = sum(len(text.payload) for _, text in candidate)
    for pair in sorted(candidate, key=lambda pair: len(pair[1].payload), reverse=True):
        if size > MAX_PAYLOAD and pair[0] is not arrived:
            candidate.remove(pair)
            size -= len(pair[1].payload)
    return candidate
