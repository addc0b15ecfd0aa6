"""Listens for ESMEs, and ends without losing a message."""

import asyncio

from jingyin.model.errors import ConfigError
from jingyin.serve.gateways.smpp.report import SESSIONS, log
from jingyin.serve.gateways.smpp.session import CLOSE_SECONDS, Session, Terms

DRAIN_SECONDS = 10.0
"""After SIGTERM, longest wait for the SMSC's answers to what has gone on."""


class Proxy:
    """The sessions of one listening socket; make it on the running event loop."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._sessions: dict[asyncio.Task[None], Session] = {}

    async def listen(self, host: str, port: int) -> int:
        """Begin to serve and return the port. Raises ConfigError if the address can't be had."""
        try:
            self._server = await asyncio.start_server(self._accept, host, port)
        except OSError as error:
            raise ConfigError(
                f"can't listen on {host}:{port}: {error.strerror}; choose another, or end what holds it"
            ) from None
        return int(self._server.sockets[0].getsockname()[1])

    async def drain(self) -> None:
        """Stop: no message taken is lost; later ones are refused with ESME_RTHROTTLED until their ESME is unbound."""
        self._server.close()
        log("draining", sessions=len(self._sessions))
        await asyncio.gather(*(session.drain(DRAIN_SECONDS) for session in self._sessions.values()))
        if self._sessions:
            await asyncio.wait(self._sessions, timeout=2 * CLOSE_SECONDS)
        left = list(self._sessions)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(reader, writer, self._terms)
        task = asyncio.get_running_loop().create_task(session.run())
        self._sessions[task] = session
        SESSIONS.inc()
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._sessions[task]
        SESSIONS.dec()
        if not task.cancelled() and (error := task.exception()):
            log("session_failed", error=type(error).__name__)
