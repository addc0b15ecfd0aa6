"""Asks jingyin about messages, for every filter; also the filters' log and metrics.

Over HTTP, not in this process: a network would block the sessions' event loop for milliseconds; cache, reload, shadow,
memory and metrics of one service then serve all gateways; and a filter keeps working when jingyin does not.
"""

import asyncio
import json
import re
import ssl
import sys
import time
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from jingyin.model.errors import ConfigError

REGISTRY = CollectorRegistry()
MESSAGES = Counter(
    "jingyin_gateway_messages",
    "Messages by what became of them, a part of a long one counted as one; would_block is a dry run's block.",
    ["action", "reason"],
    registry=REGISTRY,
)
SECONDS = Histogram(
    "jingyin_gateway_judge_seconds",
    "From question to verdict.",
    buckets=(0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 1.0),
    registry=REGISTRY,
)
SESSIONS = Gauge("jingyin_gateway_sessions", "Clients that are connected.", registry=REGISTRY)
ENDED = Counter("jingyin_gateway_sessions_ended", "Sessions by what ended them.", ["by"], registry=REGISTRY)
for _by in ("unreachable", "silent"):  # so that alarms see it at 0 before it rises
    ENDED.labels(_by)
MODE = Gauge(
    "jingyin_gateway_mode", "1; the settings that decide what is refused.",
    ["on_failure", "review", "unread", "dry_run"], registry=REGISTRY,
)  # fmt: skip
HELD = Gauge("jingyin_gateway_parts_held", "Parts that wait for the others of their message.", registry=REGISTRY)
PART_BYTES = Gauge("jingyin_gateway_part_bytes", "Bytes of parts that wait or are remembered.", registry=REGISTRY)
FORGOTTEN = Counter("jingyin_gateway_parts_forgotten", "Parts forgotten early for lack of memory.", registry=REGISTRY)

SECONDS_TO_WAIT = 3.0
"""Longest wait for a verdict, by default. A gateway can wait, and a message that is not read in time is a way past the
filter: 60 different threats at once take two cores a second."""
RISKY = 0.1
"""Risk of a message not read in full from which it counts as unread; ordinary ones that networks read have .06 to .9,
blatant threats .2 and more by the prefilter alone."""
_RETRY_SECONDS = 0.05  # after a refusal for want of room
MOST_FAILURES, REST_SECONDS = 10, 1.0
"""After this many failures, and REST_SECONDS without any answer, jingyin is asked only once in REST_SECONDS: waiting
for a hung one would slow down every client. Any answer, even a refusal, ends this, so no sender can cause it by making
others wait.
"""
_QUESTIONS = 64
"""Most questions pending in a filter, and in one of its sessions: if a session floods, only its own messages wait."""
SESSION_QUESTIONS = 16
_KEEP_SECONDS = 2.0  # shorter than in any server, which must not close a connection while a question is sent
_MAX_ANSWER = 1 << 20
_REASON = re.compile("[a-z_]{1,20}")
_SEVERITY = ("pass", "review", "would_block", "refuse", "block")


def log(event: str, **fields: object) -> None:
    """Write one line: time (Unix seconds), event, and fields, which must not contain the text of messages."""
    line = json.dumps({"time": round(time.time(), 3), "event": event, **fields})
    print(line, file=sys.stderr, flush=True)  # noqa: T201


class AwayError(ConfigError):
    """jingyin does not answer, perhaps not yet."""


class Ruling(NamedTuple):
    """The action for a message and the reason.

    Actions are pass, review, block, refuse (with a temporary error, after which the client may send it again), and
    would_block in a dry run.
    """

    action: str
    reason: str

    @property
    def severity(self) -> tuple[int, bool]:
        """A sort key; among equal actions, answers without a verdict sort highest, so that they are counted."""
        return _SEVERITY.index(self.action), self.reason != "scored"

    @property
    def refused(self) -> bool:
        """Whether the message is not forwarded."""
        return self.action in ("block", "refuse")


# ---- HTTP/1.1


class _HttpConnection(asyncio.Protocol):
    """A connection that is kept open; one request at a time."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    async def request(self, data: bytes) -> tuple[int, bytes]:
        """Return status and body. Raises ConnectionError, or ValueError if the answer is not HTTP."""
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._ends_with_connection = False
        if self.transport.is_closing():
            raise ConnectionResetError
        self.transport.write(data)
        try:
            return await self._answer
        except BaseException:
            self.transport.abort()
            raise
        finally:
            self._answer = None

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # data without a request
            self.transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(ValueError("no HTTP"))

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and self._answer and self._ends_with_connection:
            self.on_message_complete()
        self._fail(ConnectionResetError())

    def on_message_begin(self) -> None:
        self._body, self._has_end = b"", False

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        is_chunked = name == b"transfer-encoding" and value.lower().endswith(b"chunked")
        self._has_end |= name == b"content-length" or is_chunked

    def on_headers_complete(self) -> None:
        self._ends_with_connection = not self._has_end  # RFC 9112, 6.3

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > _MAX_ANSWER:
            self._fail(ValueError("too long"))

    def on_message_complete(self) -> None:
        is_interim = self._parser.get_status_code() < 200  # the answer follows
        if self._answer and not self._answer.done() and not is_interim:
            if not self._parser.should_keep_alive():
                self.transport.close()
            self._answer.set_result((self._parser.get_status_code(), self._body))

    def _fail(self, error: Exception) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(error)


class Http:
    """A server at `url` (http or https), or the one behind the Unix socket `uds`; connections are reused."""

    def __init__(self, url: str, uds: str | None = None, headers: str = "") -> None:
        parts = urlsplit(url.rstrip("/"))
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"{url!r} is not an address; write http://HOST:PORT, or name a Unix socket with --uds")
        self.name = uds or url
        self._uds, self._host, self._path = uds, parts.hostname, parts.path
        try:
            self._port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise ConfigError(f"the port of {url!r} is not a number from 1 to 65535") from None
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._headers = f" HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n{headers}"
        self._idle: list[_HttpConnection] = []

    async def request(self, method: str, target: str, body: bytes = b"", *, again: bool = False) -> tuple[int, bytes]:
        """Return status and body; with `again` retry on a new connection if the server had closed a kept one.

        Raises OSError, or ValueError if the answer isn't HTTP.
        """
        length = f"Content-Length: {len(body)}\r\n\r\n" if body else "\r\n"
        data = f"{method} {self._path}{target}{self._headers}{length}".encode("latin-1") + body
        connection = self._kept()
        try:
            return await self._exchange(connection or await self._connect(), data)
        except ConnectionError:
            if not (connection and again):
                raise
        return await self._exchange(await self._connect(), data)

    async def _exchange(self, connection: _HttpConnection, data: bytes) -> tuple[int, bytes]:
        answer = await connection.request(data)
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        return answer

    def _kept(self) -> _HttpConnection | None:
        oldest = time.monotonic() - _KEEP_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since >= oldest and not connection.transport.is_closing():
                return connection
            connection.transport.close()
        return None

    async def _connect(self) -> _HttpConnection:
        loop = asyncio.get_running_loop()
        if self._uds:
            return (await loop.create_unix_connection(_HttpConnection, self._uds))[1]
        return (await loop.create_connection(_HttpConnection, self._host, self._port, ssl=self._ssl))[1]

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.transport.close()


# ---- questions

_Pair = tuple[str, str]
_End = asyncio.Future[None]


class VerdictClient:
    """Asks for verdicts; make it on the running event loop.

    `seconds` bounds the wait for a verdict; the service gets two thirds of it. `on_failure` ("pass" or "block") is the
    action for a message without one. `review` and `unread` ("refuse" or "forward") say what happens to messages with
    action review, and to those that were not read in full. In a dry run nothing is refused.
    """

    def __init__(
        self, http: Http, *, seconds: float = SECONDS_TO_WAIT, on_failure: str = "pass", review: str = "forward",
        unread: str = "refuse", dry_run: bool = False,
    ) -> None:  # fmt: skip
        self.http = http
        self._seconds = seconds
        self._deadline = seconds * 2 / 3
        self._on_failure = on_failure
        self._block = "would_block" if dry_run else "block"
        doubted = {"forward": "review", "refuse": "would_block" if dry_run else "refuse"}
        self._review, self._unread, self._later = doubted[review], doubted[unread], doubted["refuse"]
        MODE.clear()
        MODE.labels(on_failure, review, unread, str(dry_run).lower()).set(1)
        self._places = asyncio.Semaphore(_QUESTIONS)
        self._ends: dict[_Pair, _End] = {}
        self._failures = 0
        self._answered = self._rest_until = 0.0

    async def check(self) -> None:
        """Ask once. Raises ConfigError if there is no verdict, AwayError if there is no answer or no room."""
        try:
            async with asyncio.timeout(10):
                await self._question("在吗", "", "")
        except Exception as error:
            away = isinstance(error, OSError) or str(error) == "status 503"  # a timeout is an OSError
            raise (AwayError if away else ConfigError)(
                f"jingyin gives no verdict at {self.http.name} ({_reason(error)}); "
                "start `jingyin serve`, or name its address with --jingyin or --uds and its key in JINGYIN_KEY"
            ) from None

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def refusal(self, reason: str) -> Ruling:
        """Return the answer for a message that is refused unread."""
        return Ruling(self._block, reason)

    def delay(self, reason: str) -> Ruling:
        """Return the answer for a message that may be sent again later."""
        return Ruling(self._later, reason)

    @property
    def fails(self) -> bool:
        """Whether the last question got no verdict."""
        return self._failures > 0

    def failure(self, reason: str) -> Ruling:
        """Return the answer for a message that can't be judged."""
        return Ruling(self._block if self._on_failure == "block" else "pass", reason)

    def unread(self, answer: Ruling, reason: str) -> Ruling:
        """Return at least the answer for a message that was not read in full."""
        return max(answer, Ruling(self._unread, reason), key=lambda each: each.severity)

    async def ask(
        self, texts: Iterable[str], sender: str, receivers: Iterable[str], places: asyncio.Semaphore
    ) -> Ruling:
        """Return the most severe answer to the readings of one message, for each of its receivers; never raises.

        `places` bounds the questions of its session, see SESSION_QUESTIONS.
        """
        turns = [
            (text, (sender, receiver), *self._turn((sender, receiver)))
            for text, receiver in product(dict.fromkeys(texts), dict.fromkeys(receivers))
        ]
        try:
            if len(turns) == 1:
                return await self._ask(*turns[0], places)
            answers = await asyncio.gather(*(self._ask(*turn, places) for turn in turns))
            return max(answers, key=lambda answer: answer.severity)
        finally:  # also of calls cancelled before they began
            for _, pair, _, end in turns:
                self._end_turn(pair, end)

    def _turn(self, pair: _Pair) -> tuple[_End | None, _End]:
        """Return the end of the previous question about this sender and receiver, and of the new one.

        The new one waits for the answer to the previous one, so that the service knows the earlier message.
        """
        before, end = self._ends.get(pair), asyncio.get_running_loop().create_future()
        self._ends[pair] = end
        return before, end

    def _end_turn(self, pair: _Pair, end: _End) -> None:
        if not end.done():
            end.set_result(None)
        if self._ends.get(pair) is end:
            del self._ends[pair]

    async def _ask(self, text: str, pair: _Pair, before: _End | None, end: _End, places: asyncio.Semaphore) -> Ruling:
        if before:
            await asyncio.wait((before,), timeout=self._seconds)  # no longer, even in a flood
        async with places, self._places:
            answer = await self._ask_now(text, *pair)
        self._end_turn(pair, end)
        return answer

    async def _ask_now(self, text: str, sender: str, receiver: str) -> Ruling:
        start = time.monotonic()
        if self._failures >= MOST_FAILURES and start - self._answered > REST_SECONDS:
            if start < self._rest_until:
                return self.failure("resting")
            self._rest_until = start + REST_SECONDS
        try:
            async with asyncio.timeout(self._seconds):
                answer = await self._question(text, sender, receiver)
        except Exception as error:  # whatever the error, the message must not be lost
            if not self._failures:  # one line per outage, not per message
                log("jingyin_fails", error=_reason(error), action=self._on_failure)
            self._failures += 1
            return self.failure(_reason(error))
        SECONDS.observe(time.monotonic() - start)
        if self._failures:
            log("jingyin_answers", failures=self._failures)
        self._failures = 0
        return answer

    async def _question(self, text: str, sender: str, receiver: str) -> Ruling:
        deadline = max(1, round(self._deadline * 1000))
        question: dict[str, object] = {"text": text, "reasons": False, "deadline_ms": deadline}
        if sender or receiver:
            question |= {"sender": sender, "receiver": receiver}
        body = json.dumps(question, ensure_ascii=False).encode(errors="replace")
        until = time.monotonic() + self._deadline
        while True:
            status, answer = await self.http.request("POST", "/v1/score", body, again=True)
            self._answered = time.monotonic()
            if status != 503 or self._answered > until:
                break
            await asyncio.sleep(_RETRY_SECONDS)
        if status != 200:
            raise _StatusError(f"status {status}")
        verdict = json.loads(answer)
        action, reason = verdict["action"], verdict["reason"]
        if action not in ("pass", "review", "block") or not _REASON.fullmatch(reason):
            raise ValueError("no verdict")
        ruling = Ruling({"block": self._block, "review": self._review}.get(action, action), reason)
        edits, risk = verdict.get("edits", {}), verdict.get("risk", 0.0)  # null: not even the prefilter has read it
        is_risky = risk is None or risk >= RISKY
        if "unread" in edits:
            ruling = self.unread(ruling, "unread")
        elif "cut" in edits and is_risky:  # networks read parts of such a text
            ruling = self.unread(ruling, "long")
        if reason == "deadline" and (action == "review" or is_risky):
            ruling = self.unread(ruling, reason)
        return ruling


class _StatusError(Exception):
    """jingyin answered with a status other than 200."""


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, _StatusError) else type(error).__name__
