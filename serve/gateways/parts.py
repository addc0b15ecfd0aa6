"""Joins the parts of long messages, so that each is judged together with the others that have arrived.

Parts are held until their message is complete, at most `hold` seconds, and judged together: a threat is refused in all
its parts. Forwarded parts are remembered, so that a later part, even one after the message was complete, is judged with
them. Like a phone, this joins parts by reference, regardless of account, spelling of the number, coding or stated
total; of the reference the low byte counts, because an SMSC may send on no more. If a part's number arrives more than
once, each candidate is tried; one more than can be tried is refused, as it would hide the others.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain, groupby, islice, product
from typing import Protocol

from jingyin.serve.gateways.client import HELD, PART_BYTES, Ruling, VerdictClient
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
_LARGE = 8_192  # bytes; longer messages are read one at a time, so that others are served in between
_SAME_MESSAGE = 10.0  # seconds; parts forwarded earlier may belong to a previous message with the same reference
_OVERHEAD = 600  # bytes of a part besides its payload, about

PartKey = tuple[str, str, int | str]
Share = tuple[str, str, bool]  # account, direction, and whether the parts have a time of delivery
Codings = Mapping[int | str, str]
_Candidates = tuple[tuple["HeldPart", ...], ...]  # by number, those that the phone may take


class Owner(Protocol):
    """A session; `places` bound its questions, see client.SESSION_QUESTIONS."""

    places: asyncio.Semaphore


@dataclass(eq=False)
class HeldPart:
    """A received part of the messages `keys`, for each of its destinations; it waits, or was forwarded.

    `kin` is source and total, by which many phones tell messages with one reference apart.
    """

    message: Message
    keys: list[PartKey]
    kin: tuple[str, int]
    owner: "Owner"
    share: Share
    answer: "asyncio.Future[Ruling]"
    since: float
    timer: asyncio.TimerHandle | None = None

    @property
    def number(self) -> int:
        """Return its number in the message, from 1."""
        assert self.message.part is not None
        return self.message.part.number

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
        assert part.message.part is not None
        return all(number in self.parts for number in range(1, part.message.part.total + 1))


class Joiner:
    """The long messages of all sessions that may get more parts; use it on the event loop only."""

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
        self._reading = asyncio.Lock()
        self._asked: dict[tuple[str, str, str], asyncio.Task[Ruling]] = {}

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
        part = HeldPart(message, keys, (source, message.part.total), owner, share, loop.create_future(), now)
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
        part.timer = loop.call_later(self.hold, self._release, part)
        boxes = [self._boxes[key] for key in keys if key in self._boxes]
        for other in {each: None for box in boxes for each in box.all() if each in self._waiting}:
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
            async with self._reading if _size(candidates) > _LARGE else nullcontext():
                texts = read[candidates] = []
                for text in self._texts(candidates, part):
                    texts.append(text)
                    await asyncio.sleep(0)
        source, _ = part.kin
        first = {text: to for to, candidates in reversed(assembled) for text in read[candidates]}
        questions = {
            (text, source, to): None
            for to, candidates in assembled
            for i, text in enumerate(read[candidates])
            if i < _FOR_EACH or first[text] == to
        }
        answers = await asyncio.gather(*(self._ask(question, part.owner.places) for question in questions))
        answer = max(answers, key=lambda each: each.severity)
        if answer.action == "block":
            self.forget(part)
        if not part.answer.done():  # its session may have ended
            part.answer.set_result(answer)

    def _ask(self, question: tuple[str, str, str], places: asyncio.Semaphore) -> "asyncio.Task[Ruling]":
        """Ask once for the parts that are judged together."""
        if question not in self._asked:
            text, sender, receiver = question
            task = asyncio.create_task(self._client.ask([text], sender, [receiver], places))
            self._asked[question] = task
            task.add_done_callback(lambda _: self._asked.pop(question))
        return self._asked[question]

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

    every = {**box.parts, part.number: [part]} if box else {part.number: [part]}
    own = {n: [each for each in same if each.kin == part.kin] for n, same in every.items() if n <= part.kin[1]}
    alone, together = (
        tuple(tuple(same) if len(same) == 1 else order(n, same) for n, same in sorted(numbered.items()) if same)
        for numbered in (own, every)
    )
    return alone, together


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
