"""A gateway, clients and a scoring service between real sockets."""

import argparse
import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from inspect import Signature, signature
from typing import Any

import pytest
from aiohttp import web
from tests.serve.gateways.dialects import ALL, RESPONSE, SMPP, Dialect

from jingyin.serve.gateways import client, proxy
from jingyin.serve.gateways.parts import Joiner
from jingyin.serve.gateways.session import ProxySettings

THREAT, GREETING = "不给钱就弄死你", "妈，今晚回家吃饭"
"""What is blocked, for the 死 in it, and what passes."""
SLOW = pytest.mark.parametrize(
    "dialect", [pytest.param(each, marks=[] if each is SMPP else pytest.mark.exhaustive, id=each.name) for each in ALL]
)
"""For tests that wait: in every dialect only if all tests run."""
HALVES = THREAT.encode("utf-16-be")[:-3], THREAT.encode("utf-16-be")[-3:]
"""Cut within the 死 that makes it a threat."""


def counted(action: str, reason: str) -> float:
    """Return how many messages have been counted with this action and reason."""
    return client.REGISTRY.get_sample_value("jingyin_gateway_messages_total", {"action": action, "reason": reason}) or 0


@contextmanager
def counts(wanted: dict[tuple[str, str], int]) -> Iterator[None]:
    """Assert how many more messages are counted meanwhile with each action and reason."""
    before = {each: counted(*each) for each in wanted}
    yield
    assert {each: counted(*each) - before[each] for each in wanted} == wanted


async def until(ready: Callable[[], object]) -> None:
    """Wait for a condition; the scenario's own time-out ends a vain wait."""
    while not ready():
        await asyncio.sleep(0.01)


async def read(reader: asyncio.StreamReader, seconds: float = 20) -> bytes:
    """Read one frame; b"" at the end of the stream."""
    try:
        async with asyncio.timeout(seconds):
            head = await reader.readexactly(4)
            return head + await reader.readexactly(int.from_bytes(head) - 4)
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


class Gateway:
    """Keeps all it receives, and answers requests; `answer` may be replaced."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.received: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.answer: Callable[[bytes], bytes] = dialect.answer
        self.closed = 0
        self.reads = asyncio.Event()
        self.reads.set()

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self.server.sockets[0].getsockname()[1])

    def submitted(self) -> list[int]:
        """Return the sequence numbers of the messages that came, in their order."""
        read_ = [self.dialect.read(each) for each in self.received]
        return [sequence for command, _, sequence in read_ if command in (self.dialect.command["submit"], 0x21, 0x103)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with suppress(ConnectionError):
            while data := await read(reader, 60):
                self.received.append(data)
                await self.reads.wait()
                if not self.dialect.read(data)[0] & RESPONSE:
                    writer.write(self.answer(data))
        self.closed += 1
        writer.close()

    def stop(self) -> None:
        self.server.close()
        for writer in self.writers:
            writer.close()


class Peer:
    """A client's two streams."""

    def __init__(self, dialect: Dialect, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dialect, self.reader, self.writer = dialect, reader, writer

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def read(self, seconds: float = 20) -> bytes:
        return await read(self.reader, seconds)

    async def answers(self, count: int) -> dict[int, int]:
        """Read so many frames; return statuses by sequence number."""
        read_ = [self.dialect.read(await self.read()) for _ in range(count)]
        return {sequence: status for _, status, sequence in read_}

    async def ask(self, *requests: bytes) -> dict[int, int]:
        """Send requests; return the statuses of their answers by sequence number."""
        self.send(*requests)
        return await self.answers(len(requests))


class Scoring:
    """Answers as /v1/score does: blocks what holds 死, after a millisecond for each 慢; keeps what it was asked.

    It remembers as the service does, for each sender and receiver: 弄 and then 完 is a threat too.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self._before: dict[tuple[str, str], str] = {}
        self.answer: dict[str, Any] | None = None
        self.block = "死"

    async def start(self) -> int:
        app = web.Application(client_max_size=1 << 21)
        app.router.add_post("/v1/score", self.score)
        self.runner = web.AppRunner(app, access_log=None)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return int(self.runner.addresses[0][1])

    async def score(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.asked.append(asked)
        text, pair = asked["text"], (asked.get("sender", ""), asked.get("receiver", ""))
        await asyncio.sleep(0.001 * text.count("慢"))
        if self.answer:
            return web.json_response(self.answer)
        if re.search(self.block, text):
            return web.json_response({"action": "block", "reason": "scored"})
        if "弄" in self._before.get(pair, "") and "完" in text:
            return web.json_response({"action": "block", "reason": "conversation"})
        self._before[pair] = text
        return web.json_response({"action": "pass", "reason": "scored"})


class Judge:
    """Stands for a client of the service: passes everything, and keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.questions = 0

    async def ask(self, texts: list[str], sender: str, receivers: list[str], places: object) -> client.Ruling:
        self.asked += texts
        self.questions += len(texts) * len(receivers)
        return client.Ruling("pass", "scored")

    def refusal(self, reason: str) -> client.Ruling:
        return client.Ruling("block", reason)


class World:
    """A proxy between a gateway and as many clients as are asked for."""

    dialect: Dialect
    gateway: Gateway
    scoring: Scoring
    client: client.VerdictClient
    proxy: proxy.Proxy
    settings: ProxySettings
    port: int

    def __init__(self) -> None:
        self.peers: list[Peer] = []

    @property
    def joiner(self) -> Joiner:
        return self.settings.joiner

    async def connect(self) -> Peer:
        self.peers.append(Peer(self.dialect, *await asyncio.open_connection("127.0.0.1", self.port)))
        return self.peers[-1]

    async def bound(self, user: str = "901234") -> Peer:
        peer = await self.connect()
        peer.send(self.dialect.login(user=user))
        command, status, sequence = self.dialect.read(await peer.read())
        assert (command, status, sequence) == (self.dialect.command["login"] | RESPONSE, 0, 1)
        return peer


Scenario = Callable[..., Awaitable[None]]


def play(
    scenario: Scenario, dialect: Dialect, *, jingyin: int | None = None, hold: float = 0.3, remember: float = 3_600,
    seconds: float = 20, on_failure: str = "pass", review: str = "forward", unread: str = "refuse",
    dry_run: bool = False, key: str = "", **options: Any,
) -> None:  # fmt: skip
    """Run a scenario; `jingyin` is the port of a service, by default of a fake one."""

    async def run() -> None:
        world = World()
        world.dialect, world.gateway, world.scoring = dialect, Gateway(dialect), Scoring()
        scoring, gateway = await world.scoring.start(), await world.gateway.start()
        headers = f"Authorization: Bearer {key}\r\n" if key else ""
        http = client.Http(f"http://127.0.0.1:{scoring if jingyin is None else jingyin}", None, headers)
        world.client = client.VerdictClient(
            http, seconds=seconds, on_failure=on_failure, review=review, unread=unread, dry_run=dry_run
        )
        given = {
            "judge": "submit",
            "coding": [],
            "block_status": None,
            "sp": None,
            "part_memory": 64,
            "share_parts": False,
            "rate": 0,
            "proxy_protocol": False,
        }
        given |= options
        world.settings = proxy.settings(
            dialect.codec,
            argparse.Namespace(gateway=("127.0.0.1", gateway), hold=hold, remember=remember, **given),
            world.client,
        )
        world.proxy = proxy.Proxy()
        world.port = await world.proxy.listen("127.0.0.1", 0, world.settings)
        try:
            async with asyncio.timeout(60):
                await scenario(world)
        finally:
            for peer in world.peers:
                peer.writer.close()
            world.gateway.stop()
            await world.proxy.drain()
            world.client.close()
            await world.scoring.runner.cleanup()

    asyncio.run(run())


Test = Callable[..., None]


def as_test(scenario: Scenario, run: Callable[[Scenario, dict[str, Any]], None], *own: str) -> Test:
    """Make a test of a scenario that `run` calls; its parameters but its `own` are fixtures."""

    @wraps(scenario)
    def test(**given: Any) -> None:
        run(partial(scenario, **given), given)

    fixtures = [each for name, each in signature(scenario).parameters.items() if name not in own]
    test.__signature__ = Signature(fixtures)  # type: ignore[attr-defined]
    return test


def played(fixed: Dialect | None = None, *, given: str = "", **options: Any) -> Callable[[Scenario], Test]:
    """Make a test of a scenario: play it with these options, in the test's dialect or a fixed one.

    It gets the `world`, and a bound `peer`, if it has such parameters; those named in `given` are options too.
    """

    def decorate(scenario: Scenario) -> Test:
        own = {"world", "peer"} & {*signature(scenario).parameters}

        def run(scenario: Scenario, fixtures: dict[str, Any]) -> None:
            async def start(world: World) -> None:
                have = {"world": world, "peer": await world.bound() if "peer" in own else None}
                await scenario(**{name: have[name] for name in own})

            play(start, fixed or fixtures["dialect"], **options, **{name: fixtures[name] for name in given.split()})

        return as_test(scenario, run, *own)

    return decorate
