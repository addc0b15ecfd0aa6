"""uvicorn's HTTP protocol, made patient with half-closed clients and impatient with slow ones."""

from asyncio import Transport
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

GRACE_SECONDS = 1.0
"""The route answers 408 when a body is late; only who is slower still is cut off without an answer."""


def make_protocol(read_seconds: float) -> type[HttpToolsProtocol]:
    """Return a protocol class that gives each request `read_seconds` to arrive; uvicorn itself sets no limit."""

    class Protocol(HttpToolsProtocol):
        def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._timer = self.loop.call_later(read_seconds, transport.close)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._timer.cancel()
            self._timer = self.loop.call_later(read_seconds + GRACE_SECONDS, self.transport.close)

        def on_message_complete(self) -> None:
            self._timer.cancel()
            super().on_message_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._timer.cancel()
            super().connection_lost(exc)

        def eof_received(self) -> Any:  # noqa: ANN401  asyncio takes None or True
            """Keep a connection whose client has sent all of its request and closed that half until the answer."""
            cycle = self.cycle
            if cycle is None or cycle.more_body or cycle.response_complete or self.scheme == "https":
                return None
            cycle.keep_alive = False
            return True

    return Protocol
