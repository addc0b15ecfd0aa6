"""The parts of a running service, and what every route does with a request."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import orjson
from starlette.requests import Request
from starlette.responses import Response

from jingyin.model.errors import JingyinError
from jingyin.model.labels import ACTIONS, Verdict
from jingyin.serve.explain import Explanation
from jingyin.serve.http.admission import Admission
from jingyin.serve.http.batcher import Batcher, BusyError, Outcome
from jingyin.serve.http.deployment import Deployment
from jingyin.serve.http.keys import Keys
from jingyin.serve.http.memory import Bursts, Conversations, CountedVerdict, JoinedText
from jingyin.serve.http.observe import Metrics, log, where
from jingyin.serve.http.settings import Settings

# Joined texts: a message of a conversation is scored alone, then behind those before it; the stronger action counts.
#
# Only messages that pass are joined with later ones: the receiver has most likely read them, and one threat, or one false
# alarm, does not stop all that follows it. A joined text has what is left of its message's deadline. Where it has no
# verdict by then, or no room in the queue, the message keeps its own.


@dataclass(frozen=True, slots=True, kw_only=True)
class RaisedVerdict(Verdict):
    """The verdict on a joined text, for a message whose action `alone` is milder; `edits` are the message's."""

    alone: Verdict


class _Joined(NamedTuple):
    place: int  # of the message that the text ends with, among those of the request
    key: str
    text: JoinedText
    alone: Verdict


class JoinedTexts:
    """Scores the joined texts of a service; for its event loop alone."""

    def __init__(self, conversations: Conversations, batcher: Batcher, metrics: Metrics) -> None:
        self._conversations = conversations
        self._batcher = batcher
        self._metrics = metrics

    async def judge(
        self, keys: Sequence[str | None], texts: Sequence[str], outcomes: Sequence[Outcome], deadline: float
    ) -> list[Outcome]:
        """Return the outcomes of messages, a RaisedVerdict where the joined text has the stronger action.

        `keys` are those of the messages' conversations; `deadline` is a time of the event loop.
        """
        judged = list(outcomes)
        joined = self._join(keys, texts, outcomes)
        found = await self._score([each.text for each in joined], deadline)
        for each, outcome in zip(joined, found, strict=True):
            if isinstance(outcome, str):
                self._metrics.joined("unscored").inc()
            elif ACTIONS.index(outcome.action) > ACTIONS.index(each.alone.action):
                self._metrics.joined("raised").inc()
                self._conversations.forget(each.key, texts[each.place])
                judged[each.place] = _raised(each.alone, outcome)
            else:
                self._metrics.joined("same").inc()
        return judged

    def expire(self, seconds: float) -> None:
        """Forget what will be too old in `seconds`, and bring the metric of what is kept up to date."""
        self._conversations.expire(asyncio.get_running_loop().time() + seconds)
        self._metrics.conversation_bytes.set(self._conversations.used)

    def _join(self, keys: Sequence[str | None], texts: Sequence[str], outcomes: Sequence[Outcome]) -> list[_Joined]:
        now = asyncio.get_running_loop().time()
        joined = []
        for i, (key, text, outcome) in enumerate(zip(keys, texts, outcomes, strict=True)):
            if key is None or isinstance(outcome, str) or outcome.action == "block":
                continue
            whole = self._conversations.join(key, text, now, keep=outcome.action == "pass")
            if whole is not None:
                joined.append(_Joined(i, key, whole, outcome))
        return joined

    async def _score(self, texts: list[JoinedText], deadline: float) -> list[Outcome]:
        try:
            return await self._batcher.score(texts, deadline) if texts else []
        except BusyError:
            return ["deadline"] * len(texts)


def _raised(alone: Verdict, joined: Verdict) -> RaisedVerdict:
    known = {each.name: getattr(joined, each.name) for each in fields(Verdict)}
    return RaisedVerdict(**{**known, "edits": alone.edits}, alone=alone)


MAX_EXPLAINED = 16
"""Messages that may wait for evidence."""
EXPLAIN_SECONDS = 5.0
"""Longest wait for evidence."""
NOTE_SECONDS = 1.0


class Explainer:
    """Evidence on request: slow (a run of the network per word), so it has a thread and a time limit of its own."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="jingyin-evidence")
        self._waiting = 0

    async def explain(self, texts: Sequence[str]) -> list[Explanation | None]:
        """Return the evidence of each message: None where it failed, or was not ready in EXPLAIN_SECONDS.

        Where not all find a place it is None for all of them.
        """
        if not texts or self._waiting + len(texts) > MAX_EXPLAINED:
            return [None] * len(texts)
        self._waiting += len(texts)
        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(self._pool, self._explain, text) for text in texts]
        try:
            done, late = await asyncio.wait(futures, timeout=EXPLAIN_SECONDS)
            for future in late:
                future.cancel()
            return [future.result() if future in done else None for future in futures]
        finally:
            self._waiting -= len(texts)

    def close(self) -> None:
        """Forget what waits and end the thread after what runs."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _explain(self, text: str) -> Explanation | None:
        try:
            return self._deployment.scorer.explanation(text)
        except Exception as error:
            log("evidence_failed", level="error", **where(error))
            return None


@dataclass
class Service:
    """One for each application; the routes find it at app.state.service.

    `reload` loads the bundle anew, here or in all workers, and returns its id.
    """

    settings: Settings
    deployment: Deployment
    metrics: Metrics
    keys: Keys | None
    draining: bool = False
    admission: Admission = field(init=False)
    batcher: Batcher = field(init=False)
    joined: JoinedTexts | None = field(init=False)
    explainer: Explainer = field(init=False)
    reload: Callable[[], str] = field(init=False)

    def __post_init__(self) -> None:
        self.reload = self.deployment.reload
        self.admission = Admission(self.settings.max_requests)
        self._bursts = Bursts(self.settings.burst) if self.settings.burst else None

    def start(self) -> None:
        """Start the threads; needs the running event loop."""
        self.batcher = Batcher(self.deployment, self.metrics, queue=self.settings.queue, wait_ms=self.settings.wait_ms)
        kept = self.settings.conversations
        self.joined = JoinedTexts(Conversations(kept), self.batcher, self.metrics) if kept else None
        self.explainer = Explainer(self.deployment)
        self._tend()

    def stop(self) -> None:
        """End the threads; every request must have been answered."""
        self._timer.cancel()
        self.batcher.close()
        self.explainer.close()

    def note_cache(self) -> None:
        """Bring the cache's metrics up to date."""
        cache = self.deployment.scorer.cache
        for what in ("cache_hits", "cache_misses", "used", "budget"):
            self.metrics.cache.labels(what).set(getattr(cache, what))

    def _tend(self) -> None:
        """Do so each second, since another worker may answer /metrics, and forget old messages, also if none come."""
        self.note_cache()
        if self.joined:
            self.joined.expire(NOTE_SECONDS)
        self._timer = asyncio.get_running_loop().call_later(NOTE_SECONDS, self._tend)

    async def score(
        self,
        texts: list[str],
        arrival: float,
        deadline_ms: int | None,
        conversations: Sequence[str | None] | None = None,
    ) -> list[Outcome]:
        """Score until the deadline, counted from `arrival`, a time of the event loop.

        `conversations` are the keys of the messages' conversations, None for a message without. Raises TooLargeError if
        there are more messages than the settings allow, BusyError as the batcher does.
        """
        limit = self.settings.max_texts
        if len(texts) > limit:
            raise TooLargeError(
                f"{len(texts)} messages came, at most {limit} were wanted; send them in several requests"
            )
        late = True
        deadline = arrival + (deadline_ms or self.settings.deadline_ms) / 1000
        try:
            outcomes = await self.batcher.score(texts, deadline)
            late = "deadline" in outcomes
            outcomes = self._with_bursts(texts, outcomes)
            if self.joined and conversations:
                outcomes = await self.joined.judge(conversations, texts, outcomes, deadline)
                late = late or asyncio.get_running_loop().time() >= deadline
            return outcomes
        finally:
            if len(texts) == 1 and deadline_ms is None:  # others say more about themselves than about the load
                self.admission.note(late=late)

    def _with_bursts(self, texts: Sequence[str], outcomes: list[Outcome]) -> list[Outcome]:
        """Return the outcomes with those held that are only suspicious but come in bulk."""
        if self._bursts is None:
            return outcomes
        now = asyncio.get_running_loop().time()
        judged = [
            outcome if isinstance(outcome, str) else self._bursts.judge(text, outcome, now)
            for text, outcome in zip(texts, outcomes, strict=True)
        ]
        for outcome in judged:
            if isinstance(outcome, CountedVerdict):
                self.metrics.near_duplicates.observe(outcome.near_duplicates)
                self.metrics.burst_held.inc(outcome.held)
        return judged

    def result(self, outcome: Outcome) -> dict[str, Any]:
        """Return an outcome as plain JSON types; see schema.Result."""
        if isinstance(outcome, Verdict):
            alone = outcome.alone if isinstance(outcome, RaisedVerdict) else outcome
            counted = alone if isinstance(alone, CountedVerdict) else None
            reason = "burst" if counted and counted.held else "scored"
            return {
                "action": outcome.action,
                "reason": reason if alone is outcome else "conversation",
                "label": outcome.label,
                "risk": outcome.risk,
                "probabilities": outcome.probabilities,
                "stage": outcome.stage,
                "edits": outcome.edits,
                "bundle": outcome.bundle,
                "reasons": [{"sign": each.sign, "confidence": each.confidence} for each in outcome.reasons],
                **({"near_duplicates": counted.near_duplicates} if counted else {}),
            }
        nothing = dict.fromkeys(("label", "risk", "probabilities", "stage"))
        return {
            "action": self.settings.on_deadline,
            "reason": outcome,
            **nothing,
            "edits": {},
            "bundle": self.deployment.bundle_id,
            "reasons": [],
        }


class TooLargeError(JingyinError):
    """The body, or the number of messages in it, is above the limit."""


class SlowError(JingyinError):
    """The client did not send the whole of its body."""


class MediaTypeError(JingyinError):
    """The body is of another type than the route reads."""


async def read_body(request: Request, service: Service) -> bytes:
    """Read a JSON body within the limit of size; protocol.py sees to the time.

    Raises MediaTypeError for another type, TooLargeError above the limit, SlowError when the client goes away before
    the end.
    """
    kind = request.headers.get("content-type", "application/json")
    if not kind.startswith(("application/json", "application/octet-stream")):
        raise MediaTypeError("the body must be JSON; send it with Content-Type: application/json")
    chunks, size, more = [], 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise SlowError("the client went away, or took too long, before its body had come")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > service.settings.max_body:
            raise TooLargeError(
                f"the body is larger than {service.settings.max_body} bytes; send fewer messages at a time"
            )
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


class _Json(Response):
    """JSON, whose headers take starlette as long as all of its body."""

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """Set the headers."""
        own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(self.body))]
        self.raw_headers = own + [(name.encode(), value.encode()) for name, value in (headers or {}).items()]


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return _Json(orjson.dumps(content), status, headers)
