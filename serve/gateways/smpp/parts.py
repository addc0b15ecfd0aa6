"""Joins the parts of long messages, so that each is judged with what there is of the others.

Parts are held until the message is whole, at most `hold` seconds; then all are judged together and share the outcome.
They are remembered for REMEMBER_SECONDS, so that a part that comes late is judged with those that have gone on.
"""

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from jingyin.serve.gateways.smpp.judge import Judge, Outcome
from jingyin.serve.gateways.smpp.report import HELD
from jingyin.serve.sms import Part, Segment

REMEMBER_SECONDS = 60.0
MAX_BYTES = 64 << 20
"""Of all parts together; beyond it the oldest messages are judged as they are and forgotten."""
MAX_PARTS, MAX_MESSAGE = 255, 600_000
"""Parts and bytes of one message that jingyin takes in a question; of more the newest are judged."""
_OVERHEAD = 500  # bytes a part, about


@dataclass
class _Waiting:
    number: int
    owner: object
    outcome: "asyncio.Future[Outcome]"


@dataclass
class _Message:
    total: int
    coding: str
    memory: asyncio.TimerHandle
    parts: dict[tuple[int, Segment], None] = field(default_factory=dict)  # a set in the order of arrival
    waiting: list[_Waiting] = field(default_factory=list)
    hold: asyncio.TimerHandle | None = None

    @property
    def size(self) -> int:
        return sum(len(segment.payload) + _OVERHEAD for _, segment in self.parts)

    @property
    def is_whole(self) -> bool:
        return len({number for number, _ in self.parts}) == self.total


class Joiner:
    """The long messages under way, of all sessions. Everything happens on the event loop."""

    def __init__(self, judge: Judge, hold: float) -> None:
        self._judge = judge
        self._hold = hold
        self._messages: dict[Hashable, _Message] = {}  # the oldest first
        self._bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def add(
        self, key: Hashable, part: Part, segments: Sequence[Segment], coding: str, owner: object, *, hold: bool
    ) -> "asyncio.Future[Outcome]":
        """Return what will be the outcome of the message, as far as it is there, of which `segments` are one part.

        `key` tells messages apart. With `hold` the outcome waits for the other parts; `owner` may `hurry` it.
        """
        key = (key, part.reference, part.total, coding)
        loop = asyncio.get_running_loop()
        while self._bytes > MAX_BYTES:
            self._end(next(iter(self._messages)))
        if key not in self._messages:
            memory = loop.call_later(REMEMBER_SECONDS, self._end, key)
            self._messages[key] = _Message(part.total, coding, memory)
        message = self._messages[key]
        self._add(message, part.number, segments)
        waiting = _Waiting(part.number, owner, loop.create_future())
        message.waiting.append(waiting)
        HELD.inc()
        if message.is_whole or not hold:
            self._release(key)
        elif message.hold is None:
            message.hold = loop.call_later(self._hold, self._release, key)
        return waiting.outcome

    def hurry(self, owner: object) -> None:
        """Judge now what holds parts of this owner."""
        for key, message in list(self._messages.items()):
            if any(each.owner is owner for each in message.waiting):
                self._release(key)

    def _add(self, message: _Message, number: int, segments: Sequence[Segment]) -> None:
        before = message.size
        for segment in segments:
            message.parts[number, segment] = None
        while len(message.parts) > MAX_PARTS or message.size > MAX_MESSAGE:
            del message.parts[next(iter(message.parts))]
        self._bytes += message.size - before

    def _end(self, key: Hashable) -> None:
        """Judge what still waits of a message, and forget it."""
        if self._messages[key].waiting:
            self._release(key)
        self._forget(key)

    def _forget(self, key: Hashable) -> None:
        if message := self._messages.pop(key, None):
            message.memory.cancel()
            self._bytes -= message.size

    def _release(self, key: Hashable) -> None:
        """Judge a message as it is; a whole one is forgotten, as its reference may be used again."""
        message = self._messages[key]
        if message.hold is not None:
            message.hold.cancel()
            message.hold = None
        waiting, message.waiting = sorted(message.waiting, key=lambda each: each.number), []
        HELD.dec(len(waiting))
        segments = [segment for _, segment in message.parts]
        task = asyncio.get_running_loop().create_task(self._settle(waiting, segments, message.coding))
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)
        if message.is_whole:
            self._forget(key)

    async def _settle(self, waiting: list[_Waiting], segments: list[Segment], coding: str) -> None:
        outcome = await self._judge.outcome(segments, coding)
        for each in waiting:
            if not each.outcome.done():  # its session may have ended
                each.outcome.set_result(outcome)
