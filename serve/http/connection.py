"""One connection: uvicorn's own protocol behind the limits that it lacks.

uvicorn bounds neither how long a request may take to arrive, nor how large its head may be, nor how many connections
are open; httptools skips the body of a request that offers an upgrade, as Java's HttpClient does with h2c. Beyond
uvicorn's constructor, which `Config(http=...)` calls, only asyncio's interface is used.
"""

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

MAX_HEAD = 8_192
"""Most bytes that are read of a request line and its headers before they must be complete."""
READ_SECONDS = 10.0
"""Longest time for a request to arrive, and for a new connection to send any."""
MAX_CONNECTIONS = 4_096

# Renamed in place: what follows keeps its length. No line of JSON begins so.
_UPGRADE = re.compile(rb"\r\nupgrade(?=[ \t]*:)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """Between transport and uvicorn; app.py finds it in the scope's state, and says when a request begins and ends.

    `_bytes` counts those of a head that is not complete; `_asking` is true from its end to that of the answer.
    """

    def __init__(self, *, app_state: dict[str, Any], **given: Any) -> None:  # noqa: ANN401  uvicorn's
        self._service = app_state["service"]
        self._inner = AutoHTTPProtocol(app_state={**app_state, "connection": self}, **given)  # type: ignore[call-arg]
        self.pause_writing = self._inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = self._inner.resume_writing  # type: ignore[method-assign]
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._bytes = 0
        self._asking = False
        self.arrival = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; beyond MAX_CONNECTIONS refuse."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._service.connections += 1
        self._inner.connection_made(transport)
        self._watch()
        if self._service.connections > MAX_CONNECTIONS:
            self._refuse("connections", "503 Service Unavailable\r\nretry-after: 1")

    def data_received(self, data: bytes) -> None:
        """Hand data on, and watch the head of the next request."""
        if self._transport.is_closing():
            return
        if not self._asking:
            if not self._bytes:
                self._watch()
            self._bytes += len(data)
        self._inner.data_received(_UPGRADE.sub(b"\r\nX-Other", data))
        if self._transport.is_closing():
            self._service.metrics.refused("malformed").inc()
        elif self._bytes > MAX_HEAD:  # a request that is complete has a task, which begins before this call
            self._loop.call_soon(self._check_head)

    def begin(self, *, whole: bool) -> float:
        """Take note that a head has arrived, or a whole request; return the time at which its first byte did."""
        if not self._bytes:  # pipelined
            self._watch()
        self._asking, self._bytes = True, 0
        if whole:
            self.whole()
        return self.arrival

    def whole(self) -> None:
        """Take note that the whole request has arrived."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def end(self) -> None:
        """Take note that the request has been answered; uvicorn closes the connection if no other follows.

        An early answer leaves its body to come; it is dropped until the next request, or the time of this one is over.
        """
        self._asking = self._timer is not None

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._service.connections -= 1
        self.whole()
        self._inner.connection_lost(exc)

    def _watch(self) -> None:
        self.whole()
        self.arrival = self._loop.time()
        self._timer = self._loop.call_later(READ_SECONDS, self._refuse, "slow", "408 Request Timeout")

    def _check_head(self) -> None:
        if self._bytes and not self._transport.is_closing():
            self._refuse("headers", "431 Request Header Fields Too Large")

    def _refuse(self, reason: str, status: str) -> None:
        self._service.metrics.refused(reason).inc()
        self._transport.write(f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode())
        self._transport.close()
