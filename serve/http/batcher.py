"""The queue and the inference threads.

Cache and prefilter read a single message at once, on the event loop: that takes less than handing it over. A message
for a network waits for a thread, with that first look as its answer if the deadline comes first. Long messages and
batches get their first look from a thread, before the networks; single messages go before batches, messages that are
more likely threats than not before others, and senders take turns, each with its riskiest message first: a sender of
costly messages delays only its own, and in a burst of threats time is spent on these.

A thread stays with a batch for a time slice. A message that takes longer keeps its readings so far and resumes in a
lane of its own, which takes turns with that of new messages: threats, which networks read for 10 to 50 ms, wait for
each other, while messages that one small network settles overtake them.

All bookkeeping happens on the loop, so nothing here needs a lock; a thread gets a batch, reads it and posts it back.
A batch takes waiting messages up to a number that adapts, so that a batch lasts about BATCH_SECONDS.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from queue import SimpleQueue
from threading import Thread
from time import monotonic, perf_counter
from typing import Literal, NamedTuple

from jingyin.model.errors import JingyinError
from jingyin.model.text import CleanText
from jingyin.serve.http.deployment import Deployment
from jingyin.serve.observe import Metrics, error_site, log
from jingyin.serve.scorer import Scored, Scorer

Outcome = Scored | Literal["deadline", "error"]
"""The best reading so far, or the reason why there is none."""

BATCH_SECONDS = 0.002
"""Longest duration of a batch: the wait of a message that arrives just after its start."""
MAX_BATCH = 128
THREADS = 2
"""Inference threads: networks read two messages at a time where a core is free, so that threats wait for each other
less. More would take from other workers."""
LOOKS = 32
"""Messages of a batch for a first look."""
INLINE_CHARACTERS = 500
"""Characters up to which the event loop takes the first look: seven parts of an SMS, which take 0.15 ms."""
TURNS = 4
"""Requests of a client that the event loop handles in a row while others wait."""
SLICE_SECONDS = 0.004
"""How long a thread stays with one batch before others get their turn; four times as long for a message that resumes,
so that most threats end with their second slice."""
RISKY = 0.5
"""Risk, by the prefilter or the networks so far, from which a message goes before others."""
OTHERS = 4
"""One message in so many is one of the others, so that a flood of threats does not hold them up for ever."""
CHARACTERS = 16_000
"""Characters of a batch, about: cleaning them takes 5 ms."""
HANDOVER_SECONDS = 0.002
"""How long before the deadline a thread stops, so that its readings so far arrive in time."""


class BusyError(JingyinError):
    """A share of the service is used up: try again later."""

    status = 503


class Shares:
    """A capacity of `size`, of which each client may hold at most as much as stays free.

    So one client alone gets half, two get a third each, and there is always room for another (Choudhury & Hahne 1998).
    """

    def __init__(self, size: int) -> None:
        self.free = self.size = size
        self._taken: Counter[str] = Counter()

    def take(self, client: str, amount: int) -> bool:
        """Take room, or return False."""
        if self._taken[client] + amount > self.free:
            return False
        self._taken[client] += amount
        self.free -= amount
        return True

    def give(self, client: str, amount: int) -> None:
        """Give room back."""
        self._taken[client] -= amount
        self.free += amount
        if not self._taken[client]:
            del self._taken[client]


class Gate:
    """Admits TURNS requests of each client in a round of the event loop; its others wait."""

    def __init__(self) -> None:
        self._passed: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def turn(self, client: str) -> None:
        """Wait for a turn."""
        if not self._passed:
            asyncio.get_running_loop().call_soon(self._next_round)
        if self._passed[client] < TURNS:
            self._passed[client] += 1
            return
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(waiting)
        await waiting

    def _next_round(self) -> None:
        self._passed.clear()
        for client, waiting in list(self._waiting.items()):
            while waiting and self._passed[client] < TURNS:
                turn = waiting.popleft()
                if not turn.done():  # a cancelled request waits no more
                    turn.set_result(None)
                    self._passed[client] += 1
            if not waiting:
                del self._waiting[client]
        if self._passed:
            asyncio.get_running_loop().call_soon(self._next_round)


@dataclass(slots=True, eq=False)
class _Pending:
    """The messages of one request, and their outcomes so far; `left` of them are unfinished."""

    texts: list[str | CleanText]
    outcomes: list[Outcome]
    deadline: float
    turn: str
    left: int
    counted: bool
    future: asyncio.Future[None]


class _Item(NamedTuple):
    """A message of a request, and its next time slice."""

    pending: _Pending
    i: int
    seconds: float


_Heap = list[tuple[float, int, _Item]]
"""A sender's messages by descending risk, then by arrival."""


class _Turns:
    """Waiting messages, in two classes: risky ones, and others. In each the senders of all clients take turns."""

    def __init__(self) -> None:
        self._risky: dict[str, _Heap] = {}
        self._others: dict[str, _Heap] = {}
        self._numbers = count()
        self._taken = 0

    def put(self, item: _Item) -> None:
        risk = _risk(item.pending.outcomes[item.i])
        heappush(self._of(risk).setdefault(item.pending.turn, []), (-risk, next(self._numbers), item))

    def drop(self, pending: _Pending) -> None:
        """Forget the messages of a request that was answered without them."""
        for senders in (self._risky, self._others):
            kept = [entry for entry in senders.pop(pending.turn, ()) if entry[2].pending is not pending]
            if kept:
                heapify(kept)
                senders[pending.turn] = kept

    def ahead(self, turn: str, risk: float) -> int:
        """Estimate how many messages go before a new one."""
        senders = self._of(risk)
        return len(senders.get(turn, ())) * len(senders)

    def take(self, most: int) -> list[_Item]:
        """Return the next messages: at least one, up to `most` messages and about CHARACTERS."""
        batch: list[_Item] = []
        characters = 0
        while (self._risky or self._others) and len(batch) < most and characters <= CHARACTERS:
            self._taken += 1
            is_others_turn = not self._risky or (self._others and self._taken % OTHERS == 0)
            senders = self._others if is_others_turn else self._risky
            turn = next(iter(senders))
            waiting = senders.pop(turn)
            item = heappop(waiting)[2]
            if waiting:
                senders[turn] = waiting  # behind the others
            if not item.pending.future.done():  # skip messages already answered
                batch.append(item)
                characters += _length(item.pending.texts[item.i])
        return batch

    def _of(self, risk: float) -> dict[str, _Heap]:
        return self._risky if risk >= RISKY else self._others


class Batcher:
    """Reads messages for requests; make it on the running event loop, and `close` it when the last is answered."""

    def __init__(self, deployment: Deployment, metrics: Metrics, queue: int) -> None:
        self._deployment = deployment
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._shares = Shares(queue)
        self._unseen, self._singles, self._again, self._extra, self._batches = (_Turns() for _ in range(5))
        self._lanes = [self._unseen, self._singles, self._again]  # the one whose turn is next first
        self._inbox: SimpleQueue[tuple[list[_Item], _Turns] | None] = SimpleQueue()
        self._idle = THREADS
        self._most = 16.0  # messages of a batch
        self._pace = 0.0  # running mean of seconds a message
        self._threads = [Thread(target=self._work, name="jingyin-inference", daemon=True) for _ in range(THREADS)]
        for each in self._threads:
            each.start()

    async def read(
        self,
        texts: Sequence[str | CleanText],
        deadline: float,
        client: str = "",
        sender: str = "",
        *,
        extra: bool = False,
        count: bool = True,
    ) -> list[Outcome]:
        """Read the messages of one request until `deadline`, a time of the event loop; return the best reading of each.

        A client has a share of the queue, and each of its senders a turn of its own. Raises BusyError at once if the
        queue has no room for all messages, unless it is a single one that has had its first look. An `extra` text is
        not a message of its own: it is neither cached nor counted, nor seen by the shadow. Without `count` the caller
        counts it.
        """
        outcomes: list[Outcome] = ["deadline"] * len(texts)
        turn = f"{client}\0{sender}"
        waiting = self._extra if extra else self._unseen
        if not extra and len(texts) == 1 and _length(texts[0]) <= INLINE_CHARACTERS:
            waiting = self._singles
            outcomes = _each(self._deployment.scorer.first_look, texts)
            if is_final(outcomes[0]):
                self._count(outcomes if count else [])
                return outcomes
            if waiting.ahead(turn, _risk(outcomes[0])) * self._pace > deadline - self._loop.time():
                return outcomes  # it would wait in vain
        if not self._shares.take(client, len(texts)):
            if waiting is self._singles:
                return outcomes
            raise BusyError("more messages of yours wait than your share of the queue holds; try again in a second")
        cleaned = [text if isinstance(look, str) else look.clean for text, look in zip(texts, outcomes, strict=True)]
        counted, future = count and not extra, self._loop.create_future()
        pending = _Pending(cleaned, outcomes, deadline, turn, len(texts), counted, future)
        timer = self._loop.call_at(deadline, self._resolve, pending)
        for i in range(len(texts)):
            waiting.put(_Item(pending, i, SLICE_SECONDS))
        self._start()
        try:
            if texts:
                await pending.future
            return pending.outcomes
        finally:
            timer.cancel()
            if pending.left:  # they would wait, beyond the client's share, until their lane is next
                for each in (self._unseen, self._singles, self._again, self._extra, self._batches):
                    each.drop(pending)
            self._shares.give(client, len(texts))
            self._metrics.queue.set(self._shares.size - self._shares.free)

    def close(self) -> None:
        """End the threads after the batches under way."""
        for _ in self._threads:
            self._inbox.put(None)
        for each in self._threads:
            each.join()

    # ---- on the event loop

    def _start(self) -> None:
        """Give idle threads their next batches."""
        self._metrics.queue.set(self._shares.size - self._shares.free)
        while self._idle and (given := self._next()):
            self._idle -= 1
            self._inbox.put(given)

    def _next(self) -> tuple[list[_Item], _Turns] | None:
        """Return the next batch: from the lanes of single messages in turn, from the others if these are empty."""
        for waiting in (*self._lanes, self._extra, self._batches):
            most = LOOKS if waiting is self._unseen else 1 if waiting is self._again else int(self._most)
            if batch := waiting.take(most):
                if waiting in self._lanes:
                    self._lanes.remove(waiting)
                    self._lanes.append(waiting)
                return batch, waiting
        return None

    def _finish(self, batch: list[_Item], waiting: _Turns, outcomes: Sequence[Outcome], seconds: float) -> None:
        self._idle += 1
        looked = waiting is self._unseen
        if not looked:
            self._metrics.batch.observe(len(batch))
            self._metrics.batch_seconds.observe(seconds)
        if waiting not in (self._unseen, self._again):
            # Halving when late and growing slowly, as TCP does, keeps one run of slow messages from delaying the next.
            slow = seconds > BATCH_SECONDS
            self._most = max(1.0, self._most / 2) if slow else min(MAX_BATCH, self._most * 1.25)
            self._pace += (seconds / len(batch) - self._pace) / 8
        counted: list[Outcome] = []  # what was answered at its deadline is not
        for item, outcome in zip(batch, outcomes, strict=True):
            pending = item.pending
            if pending.future.done():
                continue
            pending.outcomes[item.i] = outcome
            if pending.counted:
                counted.append(outcome)
            if not isinstance(outcome, str):
                pending.texts[item.i] = outcome.clean  # cleaned once
            if not is_final(outcome) and looked:
                (self._singles if len(pending.texts) == 1 else self._batches).put(item)
            elif not is_final(outcome) and self._loop.time() < pending.deadline - HANDOVER_SECONDS:
                lane = self._again if waiting is self._singles else waiting
                lane.put(item._replace(seconds=4 * item.seconds))
            else:
                pending.left -= 1
                if not pending.left:
                    self._resolve(pending)
        self._start()
        self._count(counted)

    def _resolve(self, pending: _Pending) -> None:
        if not pending.future.done():
            pending.future.set_result(None)

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        self._deployment.count([each for each in outcomes if not isinstance(each, str) and each.final])

    # ---- on an inference thread

    def _work(self) -> None:
        while (given := self._inbox.get()) is not None:
            batch, waiting = given
            start = perf_counter()
            until = 0.0
            if waiting is not self._unseen:
                until = max(item.pending.deadline for item in batch) - HANDOVER_SECONDS
                until = min(until, monotonic() + max(item.seconds for item in batch))
            scorer = self._deployment.uncached if waiting is self._extra else self._deployment.scorer
            outcomes = read_all(scorer, [item.pending.texts[item.i] for item in batch], until)
            seconds = perf_counter() - start
            self._loop.call_soon_threadsafe(self._finish, batch, waiting, outcomes, seconds)


def _length(text: str | CleanText) -> int:
    return len(text if isinstance(text, str) else text.text)


def _risk(outcome: Outcome) -> float:
    return 0.0 if isinstance(outcome, str) else outcome.decision.risk


def is_final(outcome: Outcome) -> bool:
    """Whether an outcome can't get better."""
    return outcome == "error" if isinstance(outcome, str) else outcome.final


def read_all(scorer: Scorer, texts: Sequence[str | CleanText], until: float) -> Sequence[Outcome]:
    """Read a batch; if that fails, each message by itself, so that one can't take the others down."""
    try:
        return list(scorer.scored(texts, until=until))
    except Exception as error:
        log("batch_failed", level="error", messages=len(texts), **error_site(error))
        return _each(lambda text: next(iter(scorer.scored([text], until=until))), texts)


def _each(read: Callable[[str | CleanText], Scored], texts: Sequence[str | CleanText]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for text in texts:
        try:
            outcomes.append(read(text))
        except Exception as error:
            log("message_failed", level="error", **error_site(error))
            outcomes.append("error")
    return outcomes
