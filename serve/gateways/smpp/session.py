"""One ESME and its connection to the SMSC."""

import asyncio
import contextlib
from dataclasses import dataclass

from jingyin.model.errors import InputError
from jingyin.serve.gateways.smpp.judge import Judge, Outcome
from jingyin.serve.gateways.smpp.parts import Joiner
from jingyin.serve.gateways.smpp.pdu import (
    BIND_FAILED,
    BINDS,
    HEADER,
    INVALID_LENGTH,
    JUDGED,
    RESPONSE,
    SYSTEM_ERROR,
    THROTTLED,
    UNBIND,
    FrameError,
    Pdu,
    Submitted,
    generic_nack,
    read_pdu,
    read_submitted,
    response,
    unbind,
)
from jingyin.serve.gateways.smpp.report import ENDED, MESSAGES, log

BIND_SECONDS = 10.0
"""Longest wait for the first PDU; the SMSC is not called before it."""
CONNECT_SECONDS = 5.0
LINGER_SECONDS = 5.0
"""How long the SMSC may still answer an ESME that sends nothing more."""
CLOSE_SECONDS = 1.0
"""How long a peer may take to close, or to answer our unbind."""
MOST_PENDING = 1_000
"""Messages of a session that may wait for verdicts; nothing more is read from the ESME then."""

OUR_SEQUENCE = 0x7FFFFFFF
"""Of the proxy's own unbind, so that its answer is known."""


@dataclass(frozen=True)
class Terms:
    """What all sessions share: the SMSC's address, the status that answers blocked messages, seconds of holding."""

    smsc_host: str
    smsc_port: int
    block_status: int
    hold: float
    judge: Judge
    joiner: Joiner


class Session:
    """Passes PDUs between an ESME and the SMSC, and judges what the ESME submits.

    Single messages go on in the order in which they came; parts go on when their message is judged.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, terms: Terms) -> None:
        self._esme_in, self._esme = reader, writer
        self._smsc: asyncio.StreamWriter | None = None
        self._terms = terms
        self._user = b""
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: asyncio.Task[None] | None = None
        self._unanswered: set[int] = set()
        self._one_at_a_time = False
        self._draining = False

    async def run(self) -> None:
        """Serve the ESME until one side ends."""
        by = "proxy"
        try:
            by = await self._serve()
        finally:
            ENDED.labels(by).inc()
            log("session_ended", by=by)
            await hang_up(self._esme_in, self._esme)

    async def drain(self, seconds: float) -> None:
        """Take no more messages, wait for the answers to those taken, and unbind both sides."""
        self._draining = True
        await self._settle()
        end = asyncio.get_running_loop().time() + seconds
        while self._unanswered and self._smsc is not None and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
        if self._smsc is not None:
            self._smsc.write(unbind(OUR_SEQUENCE))
            self._esme.write(unbind(OUR_SEQUENCE))

    async def _serve(self) -> str:
        """Return what ended the session."""
        try:
            async with asyncio.timeout(BIND_SECONDS):
                first = await read_pdu(self._esme_in)
        except (FrameError, TimeoutError) as error:
            return self._blame_esme(error)
        if first is None:
            return "esme"
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                smsc = await asyncio.open_connection(self._terms.smsc_host, self._terms.smsc_port)
        except OSError as error:  # a timeout is one
            log("smsc_unreachable", error=type(error).__name__)
            self._answer(first, BIND_FAILED if first.command in BINDS else SYSTEM_ERROR)
            return "unreachable"
        return await self._between(first, *smsc)

    async def _between(self, first: Pdu, smsc_in: asyncio.StreamReader, smsc: asyncio.StreamWriter) -> str:
        self._smsc = smsc
        up = asyncio.create_task(self._from_esme(first, smsc))
        down = asyncio.create_task(self._from_smsc(smsc_in))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            if not up.done():
                return _blame(down.exception(), "smsc")
            by = self._blame_esme(up.exception())
            await self._settle()
            self._smsc = None
            with contextlib.suppress(OSError):
                smsc.write_eof()
            await asyncio.wait((down,), timeout=LINGER_SECONDS)
            return "drain" if self._draining else by
        finally:
            self._smsc = None
            tasks = (up, down, *self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await hang_up(smsc_in, smsc)

    def _blame_esme(self, error: BaseException | None) -> str:
        if isinstance(error, FrameError):
            self._esme.write(generic_nack(INVALID_LENGTH))
            return "frame"
        return "slow" if isinstance(error, TimeoutError) else _blame(error, "esme")

    # ---- both directions

    async def _from_smsc(self, smsc_in: asyncio.StreamReader) -> None:
        while (pdu := await read_pdu(smsc_in)) and not _is_ours(pdu):
            if pdu.command & RESPONSE:
                self._unanswered.discard(pdu.sequence)
            self._esme.write(pdu.data)
            with contextlib.suppress(ConnectionError):  # what it submitted before it went is still sent on
                await self._esme.drain()

    async def _from_esme(self, pdu: Pdu | None, smsc: asyncio.StreamWriter) -> None:
        while pdu and not _is_ours(pdu):
            if pdu.command in JUDGED:
                self._take(pdu, smsc)
            else:
                if pdu.command in BINDS:
                    self._user = pdu.data[HEADER.size :].partition(b"\0")[0]
                elif pdu.command == UNBIND:
                    await self._settle()
                smsc.write(pdu.data)
            with contextlib.suppress(ConnectionError):  # _from_smsc ends then
                await smsc.drain()
            while len(self._tasks) >= MOST_PENDING:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            pdu = await read_pdu(self._esme_in)

    # ---- submitted messages

    def _take(self, pdu: Pdu, smsc: asyncio.StreamWriter) -> None:
        if self._draining:
            MESSAGES.labels("refuse", "draining").inc()
            return self._answer(pdu, THROTTLED)
        if self._unanswered:
            self._one_at_a_time = False
        self._unanswered.add(pdu.sequence)
        try:
            message = read_submitted(pdu)
        except InputError:
            message = None
        if message is not None and message.part is not None:
            key = self._user, message.source, message.destination
            outcome = self._terms.joiner.add(
                key, message.part, message.segments, message.coding, self, hold=not self._one_at_a_time
            )
            task = asyncio.create_task(self._finish_part(pdu, outcome, smsc))
        else:
            task = self._last = asyncio.create_task(self._judge(pdu, message, self._last, smsc))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return None

    async def _judge(
        self, pdu: Pdu, message: Submitted | None, before: asyncio.Task[None] | None, smsc: asyncio.StreamWriter
    ) -> None:
        judge = self._terms.judge
        if message is None:
            outcome = judge.failure("unreadable")
        else:
            outcome = await judge.outcome(message.segments, message.coding)
        if before is not None and not before.done():
            await asyncio.wait((before,))
        self._finish(pdu, outcome, smsc)

    async def _finish_part(self, pdu: Pdu, outcome: "asyncio.Future[Outcome]", smsc: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await outcome
        if loop.time() - start >= self._terms.hold and self._unanswered == {pdu.sequence}:
            self._one_at_a_time = True  # it waits for this answer before it sends the next part: holding is in vain
        self._finish(pdu, outcome.result(), smsc)

    def _finish(self, pdu: Pdu, outcome: Outcome, smsc: asyncio.StreamWriter) -> None:
        MESSAGES.labels(*outcome).inc()
        if outcome.action == "block":
            self._answer(pdu, self._terms.block_status)
        else:
            smsc.write(pdu.data)

    async def _settle(self) -> None:
        """Wait until every message taken has gone on or been refused."""
        self._terms.joiner.hurry(self)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _answer(self, request: Pdu, status: int) -> None:
        self._unanswered.discard(request.sequence)
        self._esme.write(response(request, status))


def _blame(error: BaseException | None, peer: str) -> str:
    """Return `peer`, whose end it is; but "fault" for an error that no peer can cause, whose type is logged."""
    if error is None or isinstance(error, (OSError, FrameError)):
        return peer
    log("session_failed", error=type(error).__name__)
    return "fault"


def _is_ours(pdu: Pdu) -> bool:
    return (pdu.command, pdu.sequence) == (UNBIND | RESPONSE, OUR_SEQUENCE)


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close a connection; what the peer still sends is read first, else the kernel might drop what was written."""
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            writer.write_eof()
            while await reader.read(1 << 16):
                pass
            writer.close()
            await writer.wait_closed()
    except OSError:  # a timeout is one
        writer.transport.abort()
