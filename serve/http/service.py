"""One request, from texts to answers: reading, memory, and the form of an answer."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from jingyin.model.labels import ACTIONS, Action
from jingyin.model.text import CleanText, clean
from jingyin.serve.answer import Answer, Context, Origin
from jingyin.serve.explain import Explanation
from jingyin.serve.http.batcher import Batcher, BusyError, Gate, Outcome, Shares
from jingyin.serve.http.deployment import Deployment, Load
from jingyin.serve.http.keys import Keys
from jingyin.serve.memory.memory import Memory
from jingyin.serve.observe import Metrics, error_site, log
from jingyin.serve.scorer import Scored
from jingyin.serve.settings import Settings
from jingyin.serve.sms import Decoded, Segment, readings

if TYPE_CHECKING:
    from jingyin.serve.cases.writer import Writer

MAX_EXPLAINED = 16
"""Messages that may wait for evidence."""
EXPLAIN_SECONDS = 5.0
"""Longest wait for evidence."""
TEND_SECONDS = 0.5
TRIAL_SECONDS = 2.0
"""Time limit of an analyst's trial message."""
INLINE_BYTES = 2_000
"""Bytes of a payload up to which the event loop decodes it."""
MAX_BODIES = 8 << 20
"""Bytes of bodies that may be under way in a worker."""


class Service:
    """The parts of a running service, one for each worker."""

    def __init__(
        self, settings: Settings, load: Load, make_memory: Callable[[Metrics], Memory],
        make_writer: "Callable[[Metrics], Writer] | None" = None,
    ) -> None:  # fmt: skip
        self.settings = settings
        self.metrics = Metrics()
        self.requests = Shares(settings.max_requests)
        self.gate = Gate()
        self.bodies = Shares(MAX_BODIES)
        self.connections = 0
        self.draining = False
        self._load = load
        self._make_memory, self._make_writer = make_memory, make_writer

    def start(self) -> None:
        """Load the bundle and start the threads; needs the running event loop. Raises BundleError or ConfigError."""
        self.keys = Keys(self.settings.keys) if self.settings.keys else None
        self.deployment = Deployment(*self._load(), self.metrics)
        self.memory = self._make_memory(self.metrics)
        self.cases = self._make_writer(self.metrics) if self._make_writer else None
        if self.cases:
            self.cases.start()
        self.batcher = Batcher(self.deployment, self.metrics, self.settings.queue)
        self._evidence = ThreadPoolExecutor(1, thread_name_prefix="jingyin-evidence")
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="jingyin-decoding")
        self._explaining = 0
        self._tend()

    def stop(self) -> None:
        """End the threads; every request must have been answered."""
        self._timer.cancel()
        self.batcher.close()
        if self.cases:
            self.cases.close()
        self._evidence.shutdown(wait=True, cancel_futures=True)
        self._decoding.shutdown(wait=True)

    def observe_cache(self) -> None:
        """Bring the cache's metrics up to date."""
        cache = self.deployment.scorer.cache
        for what in ("cache_hits", "cache_misses", "used", "budget"):
            self.metrics.cache.labels(what).set(getattr(cache, what))

    def _tend(self) -> None:
        """Update metrics, which another worker may serve, and expire memory, also without messages."""
        self.observe_cache()
        self.memory.tend()
        if (parent := multiprocessing.parent_process()) and not parent.is_alive():
            os.kill(os.getpid(), signal.SIGTERM)
        self._timer = asyncio.get_running_loop().call_later(TEND_SECONDS, self._tend)

    async def answer(self, texts: Sequence[str], origin: Origin) -> list[Answer]:
        """Read messages, and let memory judge them in their order. Raises BusyError if the queue has no room."""
        outcomes = await self.batcher.read(texts, origin.deadline, origin.client, origin.sender or "")
        # Together, so that they share a round trip to the state: each call reaches it before the next one starts.
        return await asyncio.gather(*map(partial(self._judge, origin), texts, outcomes))

    async def answer_sms(self, segments: list[Segment], coding: str | int, origin: Origin) -> tuple[Answer, Decoded]:
        """Read one message as the gateway holds it; of several plausible readings the riskiest counts.

        Raises InputError if the segments are of several messages.
        """

        def decode() -> list[tuple[Decoded, CleanText]]:
            return [(message, clean(message.text)) for message in readings(segments, coding)]

        # Decoding 64 KiB of nonsense takes 0.1 s.
        short = sum(len(segment.payload) for segment in segments) <= INLINE_BYTES
        loop = asyncio.get_running_loop()
        (message, text), *others = decode() if short else await loop.run_in_executor(self._decoding, decode)
        sender, alone = origin.sender or "", not others
        (outcome,) = await self.batcher.read([text], origin.deadline, origin.client, sender, count=alone)
        all_read = not isinstance(outcome, str) and outcome.final
        for other, text in others:
            reading = await self._read_extra(text, origin)
            all_read = all_read and reading is not None and reading.final
            if reading and (isinstance(outcome, str) or reading.decision.risk > outcome.decision.risk):
                message, outcome = other, reading
        if not alone and not isinstance(outcome, str):
            if outcome.final and (all_read or outcome.decision.action == "block"):  # nothing is riskier than a block
                self.deployment.count([outcome])
            else:
                outcome = outcome._replace(final=False)
        return await self._judge(origin, message.text, outcome), message

    async def trial(self, text: str, key: str, sender: str | None, receiver: str | None, route: str | None) -> Answer:
        """Return the answer that a message would get; nothing is counted or kept. Raises BusyError."""
        loop = asyncio.get_running_loop()
        origin = Origin(key, key, sender, receiver, loop.time() + TRIAL_SECONDS, route)
        reading = await self._read_extra(text, origin)
        if reading is None:
            raise BusyError("the message was not read in time; try again in a second")
        context = Context(origin, loop.time(), lambda other: self._read_extra(other, origin))
        return await self.memory.judge(context, Answer(reading, reading.decision.action, "scored"), trial=True)

    async def _read_extra(self, text: str | CleanText, origin: Origin) -> Scored | None:
        sender = origin.sender or ""
        try:
            (outcome,) = await self.batcher.read([text], origin.deadline, origin.client, sender, extra=True)
        except BusyError:
            return None
        return None if isinstance(outcome, str) else outcome

    async def _judge(self, origin: Origin, text: str, outcome: Outcome) -> Answer:
        least: Action = self.settings.on_deadline
        if isinstance(outcome, str):
            answer = Answer(None, least, outcome)
        elif outcome.final:
            answer = Answer(outcome, outcome.decision.action, "scored")
        else:
            action = outcome.decision.action
            if action == "block" and outcome.decision.stage == "prefilter":
                action = "review"  # the prefilter alone is a reason to look, no more
            answer = Answer(outcome, max(action, least, key=ACTIONS.index), "deadline")
        now = asyncio.get_running_loop().time()
        context = Context(origin, now, lambda other: self._read_extra(other, origin), text)
        judged = await self.memory.judge(context, answer)
        if judged.action != answer.action:
            self.metrics.changed(judged.reason, judged.action).inc()
        if isinstance(outcome, str) or not outcome.final:
            self.metrics.unscored(answer.reason, judged.action).inc()
        if self.settings.dry_run:
            self.metrics.dry_run(judged.action).inc()
        if self.cases:
            self.cases.offer(origin, text, judged)
        return judged

    def result(self, answer: Answer) -> dict[str, Any]:
        """Return an answer as plain JSON types; see openapi.json."""
        action, dry_run = answer.action, {}
        if self.settings.dry_run:
            action, dry_run = "pass", {"dry_run": action}
        fields: dict[str, Any] = dict.fromkeys(("label", "risk", "probabilities", "stage"))
        fields |= {"edits": {}, "bundle": self.deployment.bundle_id, "reasons": []}
        if answer.scored is not None:
            clean, decision, _, from_cache, _ = answer.scored
            reasons = [{"sign": reason.sign, "confidence": reason.confidence} for reason in decision.reasons]
            fields |= {"label": decision.label, "risk": decision.risk, "probabilities": decision.probabilities}
            fields |= {"stage": "cache" if from_cache else decision.stage, "edits": clean.edits, "reasons": reasons}
        return {"action": action, "reason": answer.reason, **fields, **dry_run, **answer.more}

    async def explain(self, texts: Sequence[str]) -> list[Explanation | None]:
        """Return the evidence of each message: None where it failed, or was not ready in EXPLAIN_SECONDS.

        It is slow, a run of the network for each word, so it has a thread and a time limit of its own. If there is no
        room for all messages, or evidence is switched off, it is None for all of them.
        """
        if not (texts and self.settings.explain) or self._explaining + len(texts) > MAX_EXPLAINED:
            return [None] * len(texts)
        self._explaining += len(texts)

        def find(text: str) -> Explanation | None:
            try:
                return self.deployment.scorer.explanation(text)
            except Exception as error:
                log("evidence_failed", level="error", **error_site(error))
                return None

        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(self._evidence, find, text) for text in texts]
        try:
            done, late = await asyncio.wait(futures, timeout=EXPLAIN_SECONDS)
            for future in late:
                future.cancel()
            return [future.result() if future in done else None for future in futures]
        finally:
            self._explaining -= len(texts)
