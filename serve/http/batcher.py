"""The micro-batcher: requests queue on the event loop, one thread scores.

A single message that cache or prefilter can decide never queues: on a calm service handing it over to the thread and
back takes longer than deciding, and it need not wait for a message that the network reads.

All bookkeeping happens on the loop, so nothing here needs a lock; the thread gets a batch, scores it and posts it
back. A batch takes what waits, at most a number of messages that adapts so that a batch lasts about BATCH_SECONDS.
A lone message goes at once; when the last batches were larger, the next waits for company, at most `wait_ms`:
handing over to the thread and back costs as much as scoring a message from the cache.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Literal

from jingyin.model.errors import JingyinError
from jingyin.model.labels import Verdict
from jingyin.serve.http.deployment import Deployment
from jingyin.serve.http.memory import JoinedText
from jingyin.serve.http.observe import Metrics, log, where
from jingyin.serve.scorer import Scorer

Reason = Literal["deadline", "error"]
Outcome = Verdict | Reason
"""A verdict, or the reason why there is none."""

BATCH_SECONDS = 0.002
"""What a batch may last: the wait of whoever comes just after its start."""
MAX_BATCH = 128
INLINE_CHARACTERS = 500
"""Characters up to which a message may be decided on the event loop: seven parts of an SMS, which take 0.15 ms."""


class BusyError(JingyinError):
    """The queue is full: try again later."""


class _Job:
    """The messages of one request, and their outcomes so far."""

    __slots__ = ("future", "left", "outcomes", "texts", "timer")

    def __init__(self, texts: Sequence[str], future: "asyncio.Future[list[Outcome]]") -> None:
        self.texts = texts
        self.outcomes: list[Outcome] = ["deadline"] * len(texts)
        self.left = len(texts)
        self.future = future
        self.timer: asyncio.TimerHandle | None = None


_Batch = list[tuple[_Job, int]]


class Batcher:
    """Scores messages for requests; make it on the running event loop, and `close` it when the last is answered.

    `_cap` is the most messages of a batch, `_usual` a running mean of them, `_pace` of seconds a message.
    """

    def __init__(self, deployment: Deployment, metrics: Metrics, *, queue: int, wait_ms: float) -> None:
        self._deployment = deployment
        self._metrics = metrics
        self._limit = queue
        self._wait = wait_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[_Job, int]] = deque()
        self._inbox: SimpleQueue[_Batch | None] = SimpleQueue()
        self._busy = False
        self._due: asyncio.Handle | None = None
        self._cap = 16.0
        self._usual = 1.0
        self._pace = 0.0
        self._thread = Thread(target=self._work, name="jingyin-inference", daemon=True)
        self._thread.start()

    async def score(self, texts: Sequence[str], deadline: float) -> list[Outcome]:
        """Score the messages of one request until `deadline`, a time of the event loop.

        Messages without a verdict by then are answered "deadline". Raises BusyError at once if they don't fit the
        queue, or if what waits already would, at the present pace, take half of the time until the deadline. A
        JoinedText is neither cached nor counted as a message, nor seen by the shadow.
        """
        if len(texts) == 1 and (verdict := self._without_network(texts[0])) is not None:
            return [verdict]
        waiting = len(self._waiting)
        if waiting + len(texts) > self._limit:
            raise BusyError(f"{waiting} messages wait, at most {self._limit} may; try again in a second")
        # Half, for what the estimate leaves out: the batch under way and the event loop's own queue.
        if waiting * self._pace > max(0.0, deadline - self._loop.time()) / 2:
            raise BusyError(f"{waiting} messages wait, longer than the deadline allows; try again in a second")
        if not texts:
            return []
        job = _Job(texts, self._loop.create_future())
        job.timer = self._loop.call_at(deadline, self._expire, job)
        self._waiting.extend((job, i) for i in range(len(texts)))
        self._metrics.queue.set(len(self._waiting))
        self._schedule()
        return await job.future

    def close(self) -> None:
        """End the thread after the batch under way."""
        self._inbox.put(None)
        self._thread.join()

    # ---- on the event loop

    def _without_network(self, text: str) -> Verdict | None:
        if len(text) > INLINE_CHARACTERS:
            return None
        scorer = self._deployment.uncached if isinstance(text, JoinedText) else self._deployment.scorer
        try:
            verdict = scorer.score_without_network(text)
        except Exception:
            return None  # the thread will fail too, and tells why
        if verdict is not None:
            self._count([text], [verdict])
        return verdict

    def _schedule(self) -> None:
        if self._busy:
            return
        if self._usual < 2:
            self._due = self._due or self._loop.call_soon(self._start)
        elif len(self._waiting) >= min(self._usual, self._cap):
            self._start()
        else:
            self._due = self._due or self._loop.call_later(self._wait, self._start)

    def _start(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        batch: _Batch = []
        while self._waiting and len(batch) < self._cap:
            item = self._waiting.popleft()
            if not item[0].future.done():  # no work for who has been answered
                batch.append(item)
        self._metrics.queue.set(len(self._waiting))
        self._busy = bool(batch)
        if batch:
            self._usual += (len(batch) - self._usual) / 4
            self._inbox.put(batch)

    def _finish(self, batch: _Batch, outcomes: Sequence[Outcome], seconds: float) -> None:
        # Halving when late and growing slowly, as TCP does, keeps one run of slow messages from holding up the next.
        self._cap = max(1.0, self._cap / 2) if seconds > BATCH_SECONDS else min(MAX_BATCH, self._cap * 1.25)
        self._pace += (seconds / len(batch) - self._pace) / 8
        self._start()  # first: the thread works while the loop answers
        self._metrics.batch.observe(len(batch))
        self._metrics.batch_seconds.observe(seconds)
        for (job, i), outcome in zip(batch, outcomes, strict=True):
            job.outcomes[i] = outcome
            job.left -= 1
            if not job.left:
                self._resolve(job)

    def _expire(self, job: _Job) -> None:
        self._resolve(job)

    def _resolve(self, job: _Job) -> None:
        if job.future.done():
            return
        if job.timer is not None:
            job.timer.cancel()
        for text, outcome in zip(job.texts, job.outcomes, strict=True):
            if isinstance(outcome, str) and not isinstance(text, JoinedText):
                self._metrics.unscored(outcome).inc()
        job.future.set_result(list(job.outcomes))

    # ---- on the inference thread

    def _work(self) -> None:
        while (batch := self._inbox.get()) is not None:
            start = perf_counter()
            texts = [job.texts[i] for job, i in batch]
            outcomes = self._score_batch(texts)
            seconds = perf_counter() - start
            self._loop.call_soon_threadsafe(self._finish, batch, outcomes, seconds)
            self._count(texts, outcomes)

    def _score_batch(self, texts: Sequence[str]) -> Sequence[Outcome]:
        joined = [text for text in texts if isinstance(text, JoinedText)]
        if not joined:
            return score_all(self._deployment.scorer, texts)
        alone = [text for text in texts if not isinstance(text, JoinedText)]
        of_alone = iter(score_all(self._deployment.scorer, alone) if alone else ())
        of_joined = iter(score_all(self._deployment.uncached, joined))
        return [next(of_joined if isinstance(text, JoinedText) else of_alone) for text in texts]

    def _count(self, texts: Sequence[str], outcomes: Sequence[Outcome]) -> None:
        scored = [
            (text, outcome)
            for text, outcome in zip(texts, outcomes, strict=True)
            if not isinstance(outcome, str) and not isinstance(text, JoinedText)
        ]
        verdicts = [outcome for _, outcome in scored]
        self._metrics.count_verdicts(verdicts)
        self._deployment.watch([text for text, _ in scored], verdicts)


def score_all(scorer: Scorer, texts: Sequence[str]) -> Sequence[Outcome]:
    """Score a batch; if that fails, each message by itself, so that one can't take the others down."""
    try:
        return list(scorer.score_many(texts))
    except Exception as error:
        log("batch_failed", level="error", messages=len(texts), **where(error))
    return [_score_alone(scorer, text) for text in texts]


def _score_alone(scorer: Scorer, text: str) -> Outcome:
    try:
        return scorer.score(text)
    except Exception as error:
        log("message_failed", level="error", **where(error))
        return "error"
