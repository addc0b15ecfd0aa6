"""An SMSC and an ESME over real sockets, and PDUs laid out by hand."""

import asyncio
import struct
from base64 import b64decode
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from aiohttp import web

from jingyin.serve.gateways.smpp.judge import Judge
from jingyin.serve.gateways.smpp.parts import Joiner
from jingyin.serve.gateways.smpp.proxy import Proxy
from jingyin.serve.gateways.smpp.session import Terms
from jingyin.serve.sms import Segment, reassemble

BIND, SUBMIT, DELIVER, UNBIND, ENQUIRE, MULTI, DATA = 0x09, 0x04, 0x05, 0x06, 0x15, 0x21, 0x103
RESPONSE = 0x80000000
THREAT, GREETING = "不给钱就弄死你", "妈，今晚回家吃饭"
"""What is blocked, for the 死 in it, and what passes."""


def pdu(command: int, body: bytes = b"", sequence: int = 1, status: int = 0) -> bytes:
    return struct.pack(">4I", 16 + len(body), command, status, sequence) + body


def tlv(tag: int, value: bytes, length: int | None = None) -> bytes:
    return struct.pack(">HH", tag, len(value) if length is None else length) + value


def sar(reference: int, total: int, number: int) -> bytes:
    return tlv(0x20C, struct.pack(">H", reference)) + tlv(0x20E, bytes([total])) + tlv(0x20F, bytes([number]))


def udh(reference: int, total: int, number: int) -> bytes:
    return bytes([5, 0, 3, reference, total, number])


def bind(sequence: int = 1, user: bytes = b"user") -> bytes:
    return pdu(BIND, user + b"\0secret\0\0\x34\0\0\0", sequence)


def submit(
    text: str | bytes,
    sequence: int,
    *,
    esm: int = 0,
    coding: int = 8,
    tlvs: bytes = b"",
    size: int | None = None,
    to: bytes = b"200",
) -> bytes:
    content = text if isinstance(text, bytes) else text.encode("utf-16-be")
    fields = bytes([esm, 0, 0, 0, 0, 0, 0, coding, 0, len(content) if size is None else size])
    return pdu(SUBMIT, b"\0\x01\x01100\0\1\1" + to + b"\0" + fields + content + tlvs, sequence)


def data_sm(text: str, sequence: int, *, tlvs: bytes = b"") -> bytes:
    payload = tlv(0x424, text.encode("utf-16-be"))
    return pdu(DATA, b"CMT\0\x01\x01100\0\x01\x01200\0\0\0\x08" + payload + tlvs, sequence)


def multi(text: str, sequence: int) -> bytes:
    content = text.encode("utf-16-be")
    destinations = b"\2\1\x01\x01200\0\2friends\0"
    return pdu(
        MULTI, b"\0\x01\x01100\0" + destinations + bytes([0, 0, 0, 0, 0, 0, 0, 8, 0, len(content)]) + content, sequence
    )


async def read(reader: asyncio.StreamReader, seconds: float = 20) -> bytes:
    """Read one PDU; b"" at the end of the stream."""
    try:
        async with asyncio.timeout(seconds):
            head = await reader.readexactly(16)
            return head + await reader.readexactly(int.from_bytes(head[:4]) - 16)
    except asyncio.IncompleteReadError:
        return b""


def head(data: bytes) -> tuple[int, int, int]:
    """Return command, status and sequence number."""
    _, command, status, sequence = struct.unpack(">4I", data[:16])
    return command, status, sequence


class Smsc:
    """Keeps all it receives, and answers requests; `answer` may be replaced."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.answer: Callable[[bytes], bytes] = lambda data: pdu(head(data)[0] | RESPONSE, b"id\0", head(data)[2])
        self.closed = 0

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self.server.sockets[0].getsockname()[1])

    def submitted(self) -> list[int]:
        """Return the sequence numbers of the messages that came, in their order."""
        return [head(each)[2] for each in self.received if head(each)[0] in (SUBMIT, MULTI, DATA)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with suppress(ConnectionError):
            while data := await read(reader, 60):
                self.received.append(data)
                if not head(data)[0] & RESPONSE:
                    writer.write(self.answer(data))
        self.closed += 1
        writer.close()

    def stop(self) -> None:
        self.server.close()
        for writer in self.writers:
            writer.close()


class Esme:
    """A client's two streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def read(self, seconds: float = 20) -> bytes:
        return await read(self.reader, seconds)

    async def answers(self, count: int) -> dict[int, int]:
        """Read so many PDUs; return statuses by sequence number."""
        read_ = [head(await self.read()) for _ in range(count)]
        return {sequence: status for _, status, sequence in read_}


async def score(request: web.Request) -> web.Response:
    """Answer as /v1/score does: block what holds 死, after a millisecond for each 慢."""
    asked = await request.json()
    parts = [Segment(b64decode(part["payload"]), b64decode(part["udh"])) for part in asked["parts"]]
    text = reassemble(parts, asked["coding"]).text
    await asyncio.sleep(0.001 * text.count("慢"))
    return web.json_response({"action": "block" if "死" in text else "pass", "reason": "scored"})


async def start_scoring() -> tuple[web.AppRunner, int]:
    """Serve `score` on a free port."""
    app = web.Application(client_max_size=1 << 20)
    app.router.add_post("/v1/score", score)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, runner.addresses[0][1]


class World:
    """A proxy between an SMSC and as many ESMEs as are asked for."""

    def __init__(self, smsc: Smsc, proxy: Proxy, port: int, joiner: Joiner) -> None:
        self.smsc, self.proxy, self.port, self.joiner = smsc, proxy, port, joiner
        self.esmes: list[Esme] = []

    async def connect(self) -> Esme:
        self.esmes.append(Esme(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.esmes[-1]

    async def bound(self, user: bytes = b"user") -> Esme:
        esme = await self.connect()
        esme.send(bind(user=user))
        assert head(await esme.read()) == (BIND | RESPONSE, 0, 1)
        return esme


Scenario = Callable[[World], Awaitable[None]]


def play(
    scenario: Scenario,
    *,
    jingyin: int | None = None,
    hold: float = 0.3,
    status: int = 0x45,
    seconds: float = 20,
    **judging: Any,
) -> None:
    """Run a scenario; `jingyin` is the port of a service, by default of a fake one."""

    async def run() -> None:
        smsc = Smsc()
        scoring, port = await start_scoring()
        url = f"http://127.0.0.1:{port if jingyin is None else jingyin}"
        judge = Judge(url, **{"key": "", "seconds": seconds, "on_failure": "pass", **judging})
        joiner = Joiner(judge, hold)
        proxy = Proxy(Terms("127.0.0.1", await smsc.start(), status, hold, judge, joiner))
        world = World(smsc, proxy, await proxy.listen("127.0.0.1", 0), joiner)
        try:
            async with asyncio.timeout(60):
                await scenario(world)
        finally:
            for esme in world.esmes:
                esme.writer.close()
            smsc.stop()
            await proxy.drain()
            await judge.close()
            await scoring.cleanup()

    asyncio.run(run())
