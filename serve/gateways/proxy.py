"""A proxy between clients and a gateway, for any protocol that has a codec.

Each client has a session, with one connection to the gateway; see session.py for what is forwarded, and how.
"""

import argparse
import asyncio
import struct
import sys
from dataclasses import replace

from jingyin.model.errors import ConfigError
from jingyin.serve.gateways.client import VerdictClient, log
from jingyin.serve.gateways.codec import Codec, FrameKind
from jingyin.serve.gateways.program import HelpFormatter, Listener, accounts, add_options, address, joiner, run
from jingyin.serve.gateways.session import CLOSE_SECONDS, ProxySettings, Session

MAX_SESSIONS = 1_000


class Proxy:
    """The sessions of all listening sockets."""

    def __init__(self) -> None:
        self._listener = Listener(MAX_SESSIONS)
        self._sessions: set[Session] = set()

    async def listen(self, host: str, port: int, settings: ProxySettings) -> int:
        """Begin to serve and return the port. Raises ConfigError if the address is unavailable."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            session = Session(reader, writer, settings)
            self._sessions.add(session)
            try:
                await session.run()
            finally:
                self._sessions.discard(session)

        return await self._listener.listen(host, port, serve)

    async def drain(self) -> None:
        """Stop without losing an accepted message; later ones are refused as busy until their session ends."""
        self._listener.close()
        log("draining", sessions=len(self._sessions))
        await asyncio.gather(*(session.drain() for session in self._sessions))
        if self._listener.tasks:
            await asyncio.wait(self._listener.tasks, timeout=2 * CLOSE_SECONDS)
        await self._listener.end()


JUDGED = {"submit": {FrameKind.SUBMIT}, "deliver": {FrameKind.DELIVER}, "both": {FrameKind.SUBMIT, FrameKind.DELIVER}}


def main(codec: type[Codec], name: str, port: int, gateway: str = "--gateway", *, back: bool = False) -> None:
    """Run the proxy for a protocol until SIGTERM.

    `port` is the usual one, `gateway` the option that names the gateway. With `back` the gateway also connects to
    clients, and the proxy listens for it.
    """
    about = f"A proxy that asks jingyin about each message.\n\n{sys.modules[codec.__module__].__doc__}"
    program = f"python -m jingyin.serve.gateways.{name}"
    parser = argparse.ArgumentParser(prog=program, description=about, formatter_class=HelpFormatter)
    add_options(parser, port)
    where = "address of the gateway"
    parser.add_argument(gateway, dest="gateway", type=address, required=True, metavar="HOST:PORT", help=where)
    parser.add_argument("--judge", choices=JUDGED, default="submit", help="messages to phones, from phones, or both")
    parser.add_argument("--block-status", type=lambda text: int(text, 0), help="status that refuses blocked messages")
    if back:
        parser.add_argument(
            "--back-port", type=int, default=port + 1, help="where the gateway connects to for the client"
        )
        parser.add_argument("--sp", type=address, metavar="HOST:PORT", help="where the client listens for the gateway")
    run(parser.parse_args(), lambda options, client: start(codec, options, client))


def settings(codec: type[Codec], options: argparse.Namespace, client: VerdictClient) -> ProxySettings:
    """Return the settings given by the options. Raises ConfigError for a status that no response can have."""
    statuses = codec.statuses | ({} if options.block_status is None else {"block": options.block_status})
    if statuses["block"] in (0, codec.statuses["busy"]):
        raise ConfigError(
            f"--block-status {statuses['block']} accepts a message, or asks for it again; choose a code that refuses it"
        )
    try:
        codec().refuse(codec().frame(codec().close()), statuses["block"])
    except (OverflowError, ValueError, struct.error):
        raise ConfigError(
            f"--block-status {statuses['block']} does not fit into a response; choose a code that the protocol has"
        ) from None
    judged = frozenset(JUDGED[options.judge])
    return ProxySettings(
        codec, options.gateway, client, joiner(options, client, codec.codings), accounts(options), judged, statuses,
        options.proxy_protocol,
    )  # fmt: skip


async def start(codec: type[Codec], options: argparse.Namespace, client: VerdictClient) -> Proxy:
    """Listen as the options say."""
    proxy, shared = Proxy(), settings(codec, options, client)
    await proxy.listen(options.host, options.port, shared)
    if getattr(options, "sp", None):
        await proxy.listen(
            options.host, options.back_port, replace(shared, gateway=options.sp, back=True, begins_with_source=False)
        )
    return proxy
