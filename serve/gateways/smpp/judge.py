"""Asks jingyin over HTTP.

Over HTTP, not in this process: a network takes milliseconds of the interpreter, which the sessions' event loop would
feel; cache, reload, shadow and metrics of one service then hold for all gateways; and the proxy goes on when jingyin
does not. The round trip costs a fraction of a millisecond.
"""

import asyncio
import time
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, NamedTuple

import aiohttp

from jingyin.serve.gateways.smpp.report import SECONDS, log
from jingyin.serve.sms import Segment

MOST_FAILURES = 10
"""After as many in a row jingyin is not asked for REST_SECONDS: a hung one would else slow every window down."""
REST_SECONDS = 1.0
REASONS = ("scored", "burst", "conversation", "deadline", "error")
"""What jingyin gives as the reason of an action."""

_KEEP_ALIVE = 2.0  # less than any server's: a connection must not be closed under a question
_CONNECTIONS = 64
_ABOUT_THE_QUESTION = (400, 413, 422)  # no sender may bring about a rest


class Outcome(NamedTuple):
    """What becomes of a message (pass, review or block) and why."""

    action: str
    reason: str


class Judge:
    """Make it on the running event loop; `close` it at the end.

    `seconds` is the longest wait for a verdict, `on_failure` ("pass" or "block") the action for a message without one.
    """

    def __init__(self, url: str, *, key: str, seconds: float, on_failure: str) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        connector = aiohttp.TCPConnector(limit=_CONNECTIONS, keepalive_timeout=_KEEP_ALIVE)
        self._client = aiohttp.ClientSession(headers=headers, connector=connector)
        self._url = url.rstrip("/") + "/v1/score"
        self._seconds = seconds
        self._on_failure = on_failure
        self._failures = 0
        self._rest_until = 0.0

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def failure(self, reason: str) -> Outcome:
        """Return what becomes of a message that can't be judged."""
        return Outcome(self._on_failure, reason)

    async def outcome(self, segments: Sequence[Segment], coding: str) -> Outcome:
        """Judge the parts of one message, in any order; never raises."""
        start = time.monotonic()
        if start < self._rest_until:
            return self.failure("resting")
        try:
            async with asyncio.timeout(self._seconds):
                outcome = await self._ask(_question(segments, coding))
        except aiohttp.ClientResponseError as error:
            return self._failed(f"status {error.status}", is_down=error.status not in _ABOUT_THE_QUESTION)
        except Exception as error:  # whatever it is, the message must not be lost with it
            return self._failed(type(error).__name__, is_down=True)
        SECONDS.observe(time.monotonic() - start)
        if self._failures:
            log("jingyin_answers", failures=self._failures)
        self._failures = 0
        return outcome

    async def _ask(self, question: dict[str, Any]) -> Outcome:
        try:
            verdict = await self._post(question)
        except aiohttp.ClientConnectionError:  # a connection that jingyin closed as it ended or was replaced
            verdict = await self._post(question)
        action, reason = verdict["action"], verdict["reason"]
        if action not in ("pass", "review", "block") or reason not in REASONS:
            raise ValueError("no verdict")
        return Outcome(action, reason)

    async def _post(self, question: dict[str, Any]) -> Any:  # noqa: ANN401  JSON
        async with self._client.post(self._url, json=question) as answer:
            answer.raise_for_status()
            return await answer.json()

    def _failed(self, reason: str, *, is_down: bool) -> Outcome:
        if not self._failures:  # one line for an outage, not one for each message
            log("jingyin_fails", error=reason, action=self._on_failure)
        self._failures += is_down
        if self._failures >= MOST_FAILURES:
            self._rest_until = time.monotonic() + REST_SECONDS
        return self.failure(reason)


def _question(segments: Sequence[Segment], coding: str) -> dict[str, Any]:
    parts = [{"payload": b64encode(each.payload).decode(), "udh": b64encode(each.udh).decode()} for each in segments]
    return {"parts": parts, "coding": coding}
