"""Judges messages, and joins the parts of long ones, so that each is judged together with the others that have arrived.

Parts are held until their message is complete, at most `hold` seconds, and judged together: a threat is refused in all
its parts. Forwarded parts are remembered as long as phones keep theirs, so that a later part, even one after the
message was complete, is judged with them. Phones join parts of equal sender, reference and total; Kannel of one
connection; an SMSC may send on the low byte of the reference alone. So this joins by that byte, regardless of account,
spelling of the number, coding or stated total.

With a service that shares parts, each part is handed to it, and the parts with the same key that other filters received
join the box. A part waits for them at most SHARE_SECONDS, and asks again before it is judged incomplete.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Mapping
from functools import partial
from itertools import groupby, islice, product
from typing import Any, TypeVar

from jingyin.serve.gateways.assembly import (
    STRANGERS,
    Box,
    HeldPart,
    Owner,
    PartKey,
    Payer,
    Pieces,
    assemblies,
    header,
    is_crowded,
    size_of,
)
from jingyin.serve.gateways.client import FORGOTTEN, HELD, PART_BYTES, Ruling, VerdictClient
from jingyin.serve.gateways.codec import Message, digits
from jingyin.serve.gateways.shared import SharedParts
from jingyin.serve.sms import Segment, coding_of, readings, reassemble

MAX_BYTES = 128 << 20
"""Bytes of all parts together; beyond that the oldest of the account with the most are forgotten."""
SCHEDULED_SECONDS = 31 * 86_400.0
"""Least time to keep parts with a time of delivery, which may come together long after they were sent."""
PHONE_SECONDS = 7 * 86_400.0
"""Time for which Android keeps the parts of an incomplete message."""
_FOR_EACH = 4
"""Readings asked about for each destination; the others are asked about for one only."""
_MAX_LOST = 50_000  # keys of forgotten parts
_LARGE = 8_192  # bytes; longer messages are read in a thread
_PAUSE = 0.005  # seconds of reading after which the event loop does other work
_SAME_MESSAGE = 10.0  # seconds; parts forwarded earlier may belong to a previous message with the same reference

T = TypeVar("T")
Codings = Mapping[int | str, str]


class Joiner:
    """Judges the messages of all sessions, and keeps long ones that may get more parts; for the event loop only."""

    def __init__(
        self, client: VerdictClient, codings: Codings, *, hold: float, remember: float, most: float = MAX_BYTES,
        shared: SharedParts | None = None,
    ) -> None:  # fmt: skip
        """`shared` are the parts of other filters, None without any."""
        self._client = client
        self._codings = codings
        self.hold = hold
        self._remember = remember
        self._most = most
        self._others = shared
        self._boxes: dict[PartKey, Box] = {}
        self._kept: dict[Payer, OrderedDict[HeldPart, None]] = {}  # the oldest first
        self._bytes: Counter[Payer] = Counter()
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
        payer = account, direction, message.scheduled
        kin, number = (source, message.part.total), message.part.number
        part = HeldPart(message, number, keys, kin, owner, payer, loop.create_future(), now)
        self._expire(now)
        boxes = self._boxes_of(part)
        if any(is_crowded(box, part, now) for box in boxes):
            part.answer.set_result(self._client.refusal("repeated_part"))
            return part
        recent = (each for box in boxes for each in box.since(now - _SAME_MESSAGE))
        # If parts of this message were forwarded, its sender waits for each answer: holding would gain nothing.
        hold = hold and all(each in self._waiting or each.elsewhere for each in recent)
        self._waiting[part] = None
        HELD.inc()
        self._keep(part)
        if self._others:
            self._spawn(self._share(part, partial(self._wait, hold=hold)))
        else:
            self._wait(part, hold=hold)
        return part

    def _keep(self, part: HeldPart) -> None:
        """Put a part into its boxes."""
        for key in part.keys:
            self._boxes.setdefault(key, Box()).put(part)
        self._bytes[part.payer] += part.size
        self._kept.setdefault(part.payer, OrderedDict())[part] = None
        self._make_room()

    def _wait(self, part: HeldPart, *, hold: bool) -> None:
        """Judge a part now, without `hold`, or with the others that complete its message."""
        if not hold or part.due:
            self._release(part)
            return
        part.timer = asyncio.get_running_loop().call_later(self.hold, self._time_out, part)
        for box in self._boxes_of(part):
            for other in [each for each in box.waiting if each.kin[1] <= box.run]:
                if self._is_complete(other):
                    self._release(other)

    async def _share(self, part: HeldPart, then: Callable[[HeldPart], None], *, again: bool = False) -> None:
        """Hand a part to the other filters, unless `again`, and keep theirs that may be of one message with it."""
        assert self._others is not None
        part.asking = True
        now = asyncio.get_running_loop().time()
        answer = await self._others.exchange(part, again=again)
        for key, messages in answer.parts.items():
            for message in messages:
                other, box = part.of_other(message, key, now), self._boxes.get(key, Box())
                if not (
                    any(map(other.same_as, box.kin.get((other.kin, other.number), ()))) or is_crowded(box, other, now)
                ):
                    self._keep(other)
        self._lost |= dict.fromkeys(answer.lost)
        part.asking = False
        then(part)

    def forget(self, part: HeldPart) -> None:
        """Forget a part that did not reach its receiver."""
        kept = self._kept.get(part.payer, OrderedDict())
        if part not in kept:
            return
        del kept[part]
        for key in part.keys:
            box = self._boxes[key]
            box.remove(part)
            if not box.parts:
                del self._boxes[key]
        self._bytes[part.payer] -= part.size
        if not kept:
            del self._kept[part.payer], self._bytes[part.payer]

    async def pause(self) -> None:
        """Let the event loop do other work, if the last time is _PAUSE ago."""
        if time.monotonic() - self._paused > _PAUSE:
            await asyncio.sleep(0)
            self._paused = time.monotonic()

    def flush(self, owner: Owner | None = None) -> None:
        """Judge the waiting parts of this owner, by default of all, now."""
        for part in [each for each in self._waiting if owner in (None, each.owner)]:
            self._release(part)

    def _boxes_of(self, part: HeldPart) -> list[Box]:
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
            if not self._is_complete(oldest):
                self._lost |= dict.fromkeys(oldest.keys)
            self.forget(oldest)
            FORGOTTEN.inc()
        while len(self._lost) > _MAX_LOST:
            self._lost.popitem(last=False)
        PART_BYTES.set(size)

    def _together(self, part: HeldPart) -> list[HeldPart]:
        """Return the waiting parts that may be of one message with this one, which is among them."""
        return list(dict.fromkeys(each for box in self._boxes_of(part) for each in box.waiting))

    def _is_complete(self, part: HeldPart) -> bool:
        """Return whether its message has been complete, for all of its destinations, while it was kept."""
        boxes = self._boxes_of(part)
        return bool(boxes) and all(box.was_complete(part) for box in boxes)

    def _time_out(self, part: HeldPart) -> None:
        if self._others and not self._is_complete(part):
            self._spawn(self._share(part, self._release_all, again=True))
        else:
            self._release_all(part)

    def _release_all(self, part: HeldPart) -> None:
        # Else those that came later would be judged without it, if it is refused.
        for other in (part, *self._together(part)):
            self._release(other)

    def _release(self, part: HeldPart) -> None:
        """Judge a waiting part together with the others that have arrived."""
        if part.asking:
            part.due = True
        if part not in self._waiting or part.asking:
            return
        del self._waiting[part]
        HELD.dec()
        if part.timer:
            part.timer.cancel()
        receivers: dict[int, tuple[Box, list[str]]] = {}
        for key in part.keys:
            box = self._boxes.get(key) or Box()
            box.release(part)
            receivers.setdefault(box.mark, (box, []))[1].append(key[1])
        doubted = any(key in self._lost for key in part.keys) and not self._is_complete(part)
        to = [(assemblies(box, part), tuple(dict.fromkeys(numbers))) for box, numbers in receivers.values()]
        self._spawn(self._settle(part, to, doubted=doubted))

    async def _settle(
        self, part: HeldPart, to: list[tuple[tuple[Pieces, ...], tuple[str, ...]]], *, doubted: bool
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
            if self._others:
                await self._others.forget(part)
        if not part.answer.done():  # its session may have ended
            part.answer.set_result(answer)

    async def _judge_parts(self, part: HeldPart, arranged: tuple[Pieces, ...], receivers: tuple[str, ...]) -> Ruling:
        texts: dict[str, None] = {}
        for each in arranged:
            texts |= dict.fromkeys(
                await self._once(each, partial(self._in_turn, part.owner, size_of(each), partial(self._read, each)))
            )
        first, others = list(texts)[:_FOR_EACH], list(texts)[_FOR_EACH:]
        asked = [self._client.ask(first, part.kin[0], receivers, part.owner.places)]
        if others:
            asked.append(self._client.ask(others, part.kin[0], receivers[:1], part.owner.places))
        return max(await asyncio.gather(*asked), key=lambda each: each.severity)

    def _read(self, pieces: Pieces) -> list[str]:
        total = max(part.number for part, _ in pieces)
        runs, declared = [], []
        for coding, run in groupby(pieces, lambda piece: piece[0].message.coding):
            # one header for all: their own references and totals may differ
            segments = [Segment(text.payload, header(text.udh, total, part.number)) for part, text in run]
            name = self._codings.get(coding, coding)
            runs.append([read.text for read in readings(segments, name)])
            name = name if isinstance(name, str) else coding_of(name)
            declared.append(reassemble(segments, name, apart=True).text)
        alike = ([texts[min(i, len(texts) - 1)] for texts in runs] for i in range(max(map(len, runs))))
        # Android's first: the product may be cut.
        return list(dict.fromkeys(map("".join, [declared, *alike, *islice(product(*runs), STRANGERS)])))

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
