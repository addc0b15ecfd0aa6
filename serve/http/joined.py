"""Joined texts: a message of a conversation is scored alone, then behind those before it; the stronger action counts.

Only messages that pass are joined with later ones: the receiver has most likely read them, and one threat, or one false
alarm, does not stop all that follows it. A joined text has what is left of its message's deadline. Where it has no
verdict by then, or no room in the queue, the message keeps its own.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from jingyin.model.labels import ACTIONS, Verdict
from jingyin.serve.http.batcher import Batcher, BusyError, Outcome
from jingyin.serve.http.conversation import Conversations, JoinedText
from jingyin.serve.http.metrics import Metrics


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
