"""uvicorn's HTTP protocol, made patient with half-closed clients, impatient with slow ones, and quick to refuse.

Beyond the number of requests that admission.py allows the answer to a POST is 503 before it becomes a task: a refusal
then costs a tenth of an answer, so that a flood of requests can't keep the service from those that it took. If there
are more refusals than it allows, connections are not read for a while after theirs. Probes (GET) are never refused.

A request line with its headers may have MAX_HEAD bytes; what is longer is answered 431 and its connection closed.
"""

import asyncio
from asyncio import Transport
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from jingyin.serve.http.service import Service
from jingyin.serve.http.settings import Settings

MAX_HEAD = 8_192
"""Most bytes of a request line and its headers."""
DROP_SECONDS = 1.0
"""How long a client may go on sending what is not read any more."""


def _canned(status: str, headers: str, error: str) -> bytes:
    body = f'{{"error":"{error}","request_id":null}}'
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}content-length: {len(body)}\r\n\r\n{body}"
    ).encode()


_BUSY = _canned(
    "503 Service Unavailable", "retry-after: 1\r\n", "too many requests are under way; try again in a second"
)
_SLOW = _canned("408 Request Timeout", "connection: close\r\n", "the request came too slowly; send it faster")
_LARGE = _canned(
    "431 Request Header Fields Too Large",
    "connection: close\r\n",
    f"the headers have more than {MAX_HEAD} bytes; send fewer",
)


class Protocol(HttpToolsProtocol):
    """One connection, with the limits of `settings`; refusals are counted by reason.

    `_head` counts the bytes of a request line and headers that are not complete, and is None outside of them; `_begun`
    counts requests, `_idle` is true between them.
    """

    def __init__(self, *args: Any, settings: Settings, service: Service, **named: Any) -> None:  # noqa: ANN401  uvicorn
        super().__init__(*args, **named)
        self._settings = settings
        self._refused = service.metrics.refused
        self._admission = service.admission
        self._refusing = False
        self._head: int | None = None
        self._begun = 0
        self._idle = True
        self._dropping = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begin; a connection that sends nothing is closed after a while."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self._settings.read_seconds, self._give_up)
        if len(self.connections) > self._settings.max_connections:
            self._refuse("connections", _BUSY)
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Parse what came; httptools itself would gather a header of any length."""
        if self._dropping:
            return
        before, first = self._head, self._begun + self._idle
        super().data_received(data)
        if self._head is not None and self._begun == first:  # else what is not complete began somewhere within `data`
            self._head = (before or 0) + len(data)
            if self._head > MAX_HEAD:
                self._drop()

    def on_message_begin(self) -> None:
        """Give the request its time of arrival, and a time to be complete."""
        if self._dropping:
            return
        super().on_message_begin()
        self._head, self._idle = 0, False
        self._begun += 1
        self.scope["jingyin.arrival"] = self.loop.time()  # type: ignore[typeddict-unknown-key]
        self.scope["jingyin.pause"] = self._pause  # type: ignore[typeddict-unknown-key]
        self._timer.cancel()
        self._timer = self.loop.call_later(self._settings.read_seconds, self._give_up)

    def on_headers_complete(self) -> None:
        """Start the request's task, or decide to refuse it."""
        self._head = None
        if len(self.url) + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers) > MAX_HEAD:
            self._drop()
        if self._dropping:
            return
        answered = self.cycle is None or self.cycle.response_complete  # else it is pipelined and must wait its turn
        full = len(self.tasks) >= self._admission.limit
        self._refusing = full and answered and self.parser.get_method() == b"POST"
        if not self._refusing:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hand a piece of the body on; that of a refused request is forgotten."""
        if not self._refusing and not self._dropping:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        self._idle = True
        if self._dropping:
            return
        self._timer.cancel()
        if self._refusing:
            self._refuse("requests", _BUSY)
            self._pause()
            self._timer = self.loop.call_later(self.timeout_keep_alive, self.transport.close)
        else:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give the place of an answered request free; its task, within which this is called, ends a moment later."""
        if (task := asyncio.current_task()) is not None:
            self.tasks.discard(task)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._timer.cancel()
        super().connection_lost(exc)

    def eof_received(self) -> Any:  # noqa: ANN401  asyncio takes None or True
        """Keep a connection whose client has sent all of its request and closed that half, until the answer."""
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_complete or self.scheme == "https":
            return None
        cycle.keep_alive = False
        return True

    def _refuse(self, reason: str, answer: bytes) -> None:
        self._refused(reason).inc()
        self.transport.write(answer)

    def _drop(self) -> None:
        """Refuse the headers, and read on for a while without a look: a reset would take the answer from its client."""
        if self._dropping:
            return
        self._dropping = True
        self._timer.cancel()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False  # the request before this one gets its answer, and is the last
            self._refused("headers").inc()
            return
        self._refuse("headers", _LARGE)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(DROP_SECONDS, self.transport.close)

    def _pause(self) -> None:
        if seconds := self._admission.rest():
            self.loop.call_soon(self.flow.pause_reading)  # soon, because uvicorn reads on when an answer is complete
            self.loop.call_later(seconds, self.flow.resume_reading)

    def _give_up(self) -> None:
        cycle = self.cycle
        answered_early = cycle is not None and not self._refusing and cycle.more_body and cycle.response_started
        if not answered_early:
            self._refuse("slow", _SLOW)
        self.transport.close()
