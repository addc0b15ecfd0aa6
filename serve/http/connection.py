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
MAX_REST = 2 << 20
"""Most bytes between two heads besides a body of known length: a chunked body, or the beginnings of later requests."""
READ_SECONDS = 10.0
"""Longest time for a request to arrive, and for a new connection to send any."""
MAX_CONNECTIONS = 4_096

# Renamed in place, at the same length.
_UPGRADE = re.compile(rb"\r\nupgrade(?=[ \t]*:)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """Stands between transport and uvicorn; app.py finds it in the scope's state, and calls `begin`, `whole` and `end`.

    `_bytes` counts the bytes of an incomplete head; `_asking` is True from the end of the head to that of the answer,
    or, if that came early, to the next head. `_rest` is the number of bytes that may follow until that one.
    """

    def __init__(self, *, app_state: dict[str, Any], **given: Any) -> None:  # noqa: ANN401  uvicorn's
        self._service = app_state["service"]
        self._inner = AutoHTTPProtocol(app_state={**app_state, "connection": self}, **given)  # type: ignore[call-arg]
        self.pause_writing = self._inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = self._inner.resume_writing  # type: ignore[method-assign]
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._bytes = self._rest = 0
        self._asking = self._early = False
        self._before = b""  # the last bytes of the head so far
        self.arrival = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the connection, or refuse it beyond MAX_CONNECTIONS."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._service.connections += 1
        self._inner.connection_made(transport)
        self._watch()
        if self._service.connections > MAX_CONNECTIONS:
            self._refuse("connections", "503 Service Unavailable\r\nretry-after: 1")

    def data_received(self, data: bytes) -> None:
        """Pass data on to uvicorn, and watch the head of the next request."""
        if self._transport.is_closing():
            return
        if not self._asking:
            if not self._bytes:
                self._watch()
                self._before = b""
            self._bytes += len(data)
        elif len(data) > self._rest:  # a head without end behind an early answer
            self._refuse("headers", "431 Request Header Fields Too Large")
            return
        else:
            self._rest -= len(data)
        self._inner.data_received(data if self._asking and not self._early else self._without_upgrade(data))
        if self._transport.is_closing():
            self._service.metrics.refused("malformed").inc()
        elif self._bytes > MAX_HEAD:  # a complete request has a task, which starts before this call
            self._loop.call_soon(self._check_head)

    def _without_upgrade(self, data: bytes) -> bytes:
        """Rename the header in a head, not in a body that follows: a chunk may begin like it."""
        seen = self._before + data
        end = seen.find(b"\r\n\r\n")
        head = len(data) if end < 0 else max(0, end - len(self._before))
        self._before = seen[-3:]
        return _UPGRADE.sub(b"\r\nX-Other", data[:head]) + data[head:]

    def begin(self, *, whole: bool, length: int) -> float:
        """Note that a head, or with `whole` the whole request, has arrived; return when its first byte did.

        `length` is that of the body, 0 if it is unknown.
        """
        if not self._bytes:  # pipelined
            self._watch()
        self._asking, self._early, self._bytes, self._rest = True, False, 0, length + MAX_REST
        if whole:
            self.whole()
        return self.arrival

    def whole(self) -> None:
        """Note that the whole request has arrived."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def end(self) -> None:
        """Note that the request has been answered; uvicorn closes the connection if no other follows.

        After an early answer the rest of the body is dropped, until the next request or the end of READ_SECONDS.
        """
        self._asking = self._early = self._timer is not None
        self._before = b""

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass the end on to uvicorn."""
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
