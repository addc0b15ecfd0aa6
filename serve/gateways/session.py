"""A session of the proxy: a client, its connection to the gateway, and the frames between them.

Frames are forwarded byte for byte, sequence numbers included: logins, whose digests stay valid, answers, keep-alives,
reports and commands unknown to the codec. Messages are judged first; the proxy itself writes only refusals and the
request that ends a session.
"""

import asyncio
import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from jingyin.serve.gateways.accounts import Accounts
from jingyin.serve.gateways.assembly import HeldPart, Owner
from jingyin.serve.gateways.client import ENDED, Ruling, VerdictClient, log
from jingyin.serve.gateways.codec import RESPONSE, Codec, Frame, FrameError, FrameKind, Message, UnreadableError
from jingyin.serve.gateways.parts import Joiner
from jingyin.serve.gateways.source import read_source

LOGIN_SECONDS = 10.0
"""Longest wait for the first frame, before which the gateway is not called, for a login, and for the answer to it."""
READ_SECONDS = 10.0
"""Longest time from the first byte of a frame to its last."""
WRITE_SECONDS = 60.0
"""How long a peer may leave data unread before it is disconnected."""
CONNECT_SECONDS = 5.0
LINGER_SECONDS = 5.0
"""How long the gateway may still answer after the client has stopped sending."""
CLOSE_SECONDS = 1.0
"""How long a peer may take to close, or to answer our own closing request."""
DRAIN_SECONDS = 10.0
"""After SIGTERM, longest wait for the gateway's answers to forwarded requests."""
SESSION_BYTES, TOTAL_BYTES = 1 << 20, 24 << 20
"""Bytes of frames that wait for verdicts; beyond that, sessions with such frames are not read from."""
_FRAME_BYTES = 1_000  # of a frame besides its own bytes, about
_MAX_UNANSWERED = 10_000
_NUMBERS = itertools.count(1)


@dataclass
class ProxySettings:
    """Settings shared by all sessions."""

    codec: type[Codec]
    gateway: tuple[str, int]
    client: VerdictClient
    joiner: Joiner
    accounts: Accounts
    judged: frozenset[FrameKind]
    statuses: Mapping[str, int]
    begins_with_source: bool = False  # connections begin with a PROXY header
    back: bool = False  # the client is the gateway, which connects to the SP
    waiting_bytes: int = 0


class _Peer:
    """One end of a session: its streams, and its requests that the other end has not answered yet."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, codec: Codec) -> None:
        self._reader, self._writer, self._codec = reader, writer, codec
        self._data = bytearray()
        self.unanswered: OrderedDict[bytes, list[HeldPart | None]] = OrderedDict()  # by sequence number

    async def read(self) -> Frame | None:
        """Read a frame, or return None at the end of the stream, even within a frame.

        Raises FrameError, and TimeoutError if the frame is incomplete after READ_SECONDS.
        """
        end = None
        while (length := self._codec.cut(self._data)) is None or len(self._data) < length:
            if self._data and end is None:
                end = asyncio.get_running_loop().time() + READ_SECONDS
            try:
                async with asyncio.timeout_at(end):
                    more = await self._reader.read(1 << 16)
            except ConnectionError:
                return None
            if not more:
                return None
            self._data += more
        data = bytes(self._data[:length])
        del self._data[:length]
        return self._codec.frame(data)

    def asked(self, sequence: bytes) -> None:
        parts = self.unanswered.setdefault(sequence, [])
        del parts[_MAX_UNANSWERED:]
        parts.append(None)
        if len(self.unanswered) > _MAX_UNANSWERED:
            self.unanswered.popitem(last=False)

    def answered(self, sequence: bytes) -> HeldPart | None:
        """Note an answer; return the part that it answers, None if several requests have this sequence number."""
        parts = self.unanswered.pop(sequence, [])
        if len(parts) > 1:
            self.unanswered[sequence] = [None] * (len(parts) - 1)  # nor does a later answer say which one it is for
        return parts[0] if len(parts) == 1 else None

    def write(self, data: bytes) -> None:
        if not self._writer.transport.is_closing():  # else asyncio would log a warning for each call
            self._writer.write(data)

    async def flushed(self) -> None:
        """Wait until the peer has read most of the data written to it; disconnect it after WRITE_SECONDS."""
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await self._writer.drain()
        except TimeoutError:
            self._writer.transport.abort()
        except ConnectionError:  # the other direction ends then
            pass

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    async def hang_up(self) -> None:
        """Close after reading the peer's remaining data: otherwise the kernel might drop the data written to it."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                self._writer.write_eof()
                while await self._reader.read(1 << 16):
                    pass
                self._writer.close()
                await self._writer.wait_closed()
        except OSError:  # a timeout is one
            pass
        finally:
            self._writer.transport.abort()


class _Flow:
    """One direction of a session: frames from `source` to `sink`.

    Single messages are forwarded in the order of their arrival, parts when their message has been judged.
    """

    def __init__(self, session: "Session", source: _Peer, sink: _Peer, messages: FrameKind) -> None:
        self._session, self._settings, self._codec = session, session.settings, session.codec
        self._source, self._sink = source, sink
        self._messages = messages  # in this direction, whatever their command: a peer may use the other one's
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: asyncio.Task[None] | None = None
        self._progress = asyncio.Event()
        self._bytes = 0
        self._one_at_a_time = False

    async def run(self, frame: Frame | None = None) -> None:
        """Forward frames until the source ends, `frame` first."""
        frame = frame or await self._source.read()
        while frame and not self._is_own(frame):
            if frame.kind in (FrameKind.SUBMIT, FrameKind.DELIVER):
                frame = frame._replace(kind=self._messages)
            if self._codec.kinds.get(frame.command & ~RESPONSE) is FrameKind.CLOSE:
                await self.settle()  # before the answer too, after which the sink closes
            if frame.kind is FrameKind.ANSWER:
                self._pass_answer(frame)
            elif frame.kind in (FrameKind.SUBMIT, FrameKind.DELIVER):
                self._take(frame)
            else:
                self._sink.write(frame.data)
                if frame.kind is FrameKind.LOGIN and self is self._session.flows[0]:  # a gateway's says nothing here
                    await self._session.log_in(frame)
            await self._sink.flushed()
            await self._source.flushed()
            await self._settings.joiner.pause()
            while self._tasks and (self._bytes > SESSION_BYTES or self._settings.waiting_bytes > TOTAL_BYTES):
                self._progress.clear()
                await self._progress.wait()
            frame = await self._source.read()

    async def settle(self) -> None:
        """Wait until every accepted message has been forwarded or refused."""
        self._settings.joiner.flush(self._session.owner)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> list[asyncio.Task[None]]:
        """Cancel the tasks of accepted frames; return them."""
        for task in self._tasks:
            task.cancel()
        return list(self._tasks)

    def _is_own(self, frame: Frame) -> bool:
        """Return whether this answers our own closing request."""
        return self._session.closing and frame.kind is FrameKind.ANSWER and frame.sequence == self._codec.own_sequence

    def _pass_answer(self, frame: Frame) -> None:
        # Other commands are not tracked, so an answer to one of them may have the sequence number of a message.
        asked = self._codec.kinds.get(frame.command & ~RESPONSE)
        if asked in (FrameKind.SUBMIT, FrameKind.DELIVER) or frame.command == RESPONSE:  # SMPP's generic_nack
            part = self._sink.answered(frame.sequence)
            if part and asked and not self._codec.succeeded(frame):
                self._settings.joiner.forget(part)
        if asked is FrameKind.LOGIN or frame.command == RESPONSE:
            self._session.answered(frame)
        self._sink.write(frame.data)

    # ---- messages

    def _take(self, frame: Frame) -> None:
        settings, session = self._settings, self._session
        if session.draining:
            return self._refuse(frame, Ruling("refuse", "draining"), "busy")
        if not session.bound:
            return self._refuse(frame, Ruling("refuse", "unbound"), "unbound")
        if self._source.unanswered:
            self._one_at_a_time = False
        self._source.asked(frame.sequence)
        if frame.kind not in settings.judged:
            return self._sink.write(frame.data)
        try:
            message = self._codec.read(frame)
        except UnreadableError as error:
            return self._finish(frame, settings.client.refusal("unreadable"), status=error.status)
        if message is None:
            return self._sink.write(frame.data)
        is_submit = frame.kind is FrameKind.SUBMIT  # --rate bounds what a client sends, not what its phones do
        if is_submit and not settings.accounts.admit(session.account, len(message.destinations)):
            return self._finish(frame, settings.client.delay("rate"))
        if message.part is None:
            task = self._last = asyncio.create_task(self._judge(frame, message, self._last))
        else:
            hold = not self._one_at_a_time
            part = settings.joiner.add(message, frame.kind.value, session.owner, session.account, hold=hold)
            self._source.unanswered[frame.sequence][-1] = part
            task = asyncio.create_task(self._finish_part(frame, part))
        self._tasks.add(task)
        size = len(frame.data) + _FRAME_BYTES
        self._bytes += size
        settings.waiting_bytes += size
        task.add_done_callback(lambda task: self._done(task, size))
        return None

    def _done(self, task: asyncio.Task[None], size: int) -> None:
        self._tasks.discard(task)
        self._bytes -= size
        self._settings.waiting_bytes -= size
        self._progress.set()

    async def _judge(self, frame: Frame, message: Message, before: asyncio.Task[None] | None) -> None:
        answer = await self._settings.joiner.judge(message, self._session.owner)
        if before is not None and not before.done():
            await asyncio.wait((before,))
        self._finish(frame, answer)

    async def _finish_part(self, frame: Frame, part: HeldPart) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        answer = await part.answer
        if loop.time() - start >= self._settings.joiner.hold and self._source.unanswered.keys() == {frame.sequence}:
            self._one_at_a_time = True  # the client waits for each answer before the next part: holding is useless
        self._finish(frame, answer)

    def _finish(self, frame: Frame, answer: Ruling, status: str = "block") -> None:
        if answer.refused:
            self._source.answered(frame.sequence)
            return self._refuse(frame, answer, status if answer.action == "block" else "busy")
        self._count(answer)
        return self._sink.write(frame.data)

    def _refuse(self, frame: Frame, answer: Ruling, status: str) -> None:
        self._count(answer)
        self._source.write(self._codec.refuse(frame, self._settings.statuses[status]))

    def _count(self, answer: Ruling) -> None:
        account = self._session.account if self._session.bound else ""  # strangers take any name
        self._settings.accounts.count(account, answer, session=self._session.number)


class Session:
    """One client and its connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, settings: ProxySettings) -> None:
        self.settings, self.codec = settings, settings.codec()
        self.owner = Owner()
        self.bound = self.draining = self.closing = False
        self._reader, self._client = reader, _Peer(reader, writer, self.codec)
        self._gateway: _Peer | None = None
        self.flows: tuple[_Flow, ...] = ()
        self._login: asyncio.Future[None] | None = None
        self._login_sequence = b""
        self.account = self._source = ""
        self.number = next(_NUMBERS)

    async def run(self) -> None:
        """Serve the client until one side ends."""
        by = "proxy"
        try:
            by = await self._serve()
        finally:
            ENDED.labels(by).inc()
            account = self.settings.accounts.name(self.account)
            log("session_ended", by=by, session=self.number, account=account, source=self._source)
            await self._client.hang_up()

    async def log_in(self, frame: Frame) -> None:
        """Wait for the answer to a login, before which nothing more is read. Raises TimeoutError."""
        self._login, self._login_sequence = asyncio.get_running_loop().create_future(), frame.sequence
        self.account = frame.data[self.codec.account].partition(b"\0")[0].decode("latin-1").strip().lower()
        async with asyncio.timeout(LOGIN_SECONDS):
            await self._login

    def answered(self, frame: Frame) -> None:
        """Note the answer to a login: messages are accepted once one has succeeded."""
        if self._login and not self._login.done() and frame.sequence == self._login_sequence:
            self.bound = frame.command != RESPONSE and self.codec.succeeded(frame)
            self._login.set_result(None)

    async def drain(self) -> None:
        """Accept no more messages, wait for the answers to the accepted ones, and end both sides."""
        self.draining = True
        await asyncio.gather(*(flow.settle() for flow in self.flows))
        end = asyncio.get_running_loop().time() + DRAIN_SECONDS
        while (gateway := self._gateway) and asyncio.get_running_loop().time() < end:
            if not (self._client.unanswered or gateway.unanswered):
                break
            await asyncio.sleep(0.01)
        if self._gateway:
            self.closing = True
            self._gateway.write(self.codec.close())
            self._client.write(self.codec.close())

    async def _serve(self) -> str:
        """Serve the client; return the reason why the session ended."""
        try:
            async with asyncio.timeout(LOGIN_SECONDS):
                if self.settings.begins_with_source:
                    self._source = await read_source(self._reader)
                first = await self._client.read()
        except asyncio.IncompleteReadError:
            return "client"
        except (FrameError, OSError) as error:
            return self._blame_client(error)
        if first is None:
            return "client"
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                streams = await asyncio.open_connection(*self.settings.gateway)
        except OSError as error:  # a timeout is one
            log("gateway_unreachable", error=type(error).__name__)
            self._client.write(self.codec.refuse(first, self.settings.statuses["down"]))
            return "unreachable"
        gateway = self._gateway = _Peer(*streams, self.codec)
        kinds = (FrameKind.DELIVER, FrameKind.SUBMIT) if self.settings.back else (FrameKind.SUBMIT, FrameKind.DELIVER)
        up, down = _Flow(self, self._client, gateway, kinds[0]), _Flow(self, gateway, self._client, kinds[1])
        self.flows = up, down
        return await self._between(asyncio.create_task(up.run(first)), asyncio.create_task(down.run()), gateway)

    async def _between(self, up: asyncio.Task[None], down: asyncio.Task[None], gateway: _Peer) -> str:
        try:
            while not (await asyncio.wait((up, down), timeout=LOGIN_SECONDS, return_when=asyncio.FIRST_COMPLETED))[0]:
                if not self.bound and (self._login is None or self._login.done()):
                    return self._late()  # or a stranger, who must not keep a connection
            if not up.done():
                return "drain" if self.closing else _blame(down.exception(), "gateway")
            by = self._blame_client(up.exception())
            await self.flows[0].settle()
            self._gateway = None
            gateway.end()
            await asyncio.wait((down,), timeout=LINGER_SECONDS)
            return "drain" if self.draining else by
        finally:
            self._gateway = None
            tasks = [up, down, *(task for flow in self.flows for task in flow.cancel())]
            up.cancel()
            down.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await gateway.hang_up()

    def _blame_client(self, error: BaseException | None) -> str:
        if isinstance(error, FrameError):
            self._client.write(self.codec.out_of_step())
            return "frame"
        return self._late() if isinstance(error, TimeoutError) else _blame(error, "client")

    def _late(self) -> str:
        """Return who was late: the gateway if it did not answer the login, which is cancelled then."""
        return "silent" if self._login and self._login.cancelled() else "slow"


def _blame(error: BaseException | None, peer: str) -> str:
    """Return `peer`, or "fault" for an error that no peer can cause, whose type is logged."""
    if error is None or isinstance(error, (OSError, FrameError)):
        return peer
    log("session_failed", error=type(error).__name__)
    return "fault"
