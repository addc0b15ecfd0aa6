"""A filter as a program: the options that all filters have, start and end, its sockets, /healthz and /metrics."""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Protocol

from prometheus_client import generate_latest

from jingyin.model.errors import ConfigError, JingyinError
from jingyin.serve.gateways.accounts import Accounts
from jingyin.serve.gateways.client import (
    ENDED,
    REGISTRY,
    SECONDS_TO_WAIT,
    SESSIONS,
    AwayError,
    Http,
    VerdictClient,
    log,
)
from jingyin.serve.gateways.parts import MAX_BYTES, PHONE_SECONDS, Joiner
from jingyin.serve.gateways.shared import SharedParts
from jingyin.serve.sms import CODINGS

START_SECONDS = 30.0
"""How long a filter that forwards messages without a verdict waits for the service before it starts without."""
_HEALTH_SECONDS = 5.0  # for a request to arrive


class Filter(Protocol):
    """A started filter, which is listening."""

    async def drain(self) -> None:
        """Stop without losing an accepted message."""


def address(text: str) -> tuple[str, int]:
    """Read HOST:PORT."""
    host, _, port = text.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise argparse.ArgumentTypeError("HOST:PORT is wanted, say 10.0.0.5:2775")
    return host.strip("[]"), int(port)


def _wait(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 60:  # with 0 no verdict would come in time, and every message would pass
        raise argparse.ArgumentTypeError("more than 0 and at most 60 seconds are wanted, say 3")
    return seconds


def _number(text: str) -> float:
    if not (number := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"at least 0 is wanted, got {text}")
    return number


def _coding(text: str) -> tuple[int, str]:
    number, _, name = text.partition("=")
    if not (number.isdigit() and int(number) < 256 and name in CODINGS):
        raise argparse.ArgumentTypeError(f"NUMBER=NAME is wanted, say 0=gbk; names are {', '.join(CODINGS)}")
    return int(number), name


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Prints a description as it is written, and defaults other than None, False and []."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default else action.help


def add_options(parser: argparse.ArgumentParser, port: int) -> None:
    """Add the options that all filters have."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=port, help="port to listen on")
    parser.add_argument("--jingyin", default="http://127.0.0.1:8080", help="URL of the service")
    parser.add_argument("--uds", help="Unix socket of the service, instead of its URL")
    parser.add_argument("--seconds", type=_wait, default=SECONDS_TO_WAIT, help="longest wait for a verdict, in seconds")
    parser.add_argument("--on-failure", choices=("pass", "block"), default="pass", help="action without a verdict")
    parser.add_argument(
        "--review", choices=("forward", "refuse"), default="forward",
        help="a message with action review: forward it, or refuse it with the protocol's temporary error",
    )  # fmt: skip
    parser.add_argument(
        "--unread", choices=("refuse", "forward"), default="refuse",
        help="a message that was not read in full: the same",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="judge and count, block nothing")
    parser.add_argument("--hold", type=_number, default=0.5, help="longest wait for the other parts, in seconds")
    parser.add_argument("--remember", type=_number, default=PHONE_SECONDS, help="seconds to keep forwarded parts")
    parser.add_argument("--part-memory", type=_number, default=MAX_BYTES >> 20, help="MiB for parts of long messages")
    parser.add_argument("--share-parts", action="store_true", help="share parts with the other filters of the service")
    parser.add_argument(
        "--coding", type=_coding, action="append", default=[], metavar="NUMBER=NAME",
        help="meaning of a data_coding at the gateway, such as 0=gbk; repeatable",
    )  # fmt: skip
    parser.add_argument("--rate", type=_number, default=0, help="most messages of one account a second, 0: any number")
    parser.add_argument(
        "--proxy-protocol", action="store_true", help="connections begin with a PROXY header, of version 1 or 2"
    )
    parser.add_argument("--metrics", type=address, metavar="HOST:PORT", help="address for /metrics and /healthz")


def joiner(options: argparse.Namespace, client: VerdictClient, codings: Mapping[int | str, str]) -> Joiner:
    """Return the joiner that the options ask for; `codings` are those of the protocol."""
    return Joiner(
        client, {**codings, **dict(options.coding)},
        hold=options.hold, remember=options.remember, most=options.part_memory * (1 << 20),
        shared=SharedParts(client.http, options.remember) if options.share_parts else None,
    )  # fmt: skip


def accounts(options: argparse.Namespace) -> Accounts:
    """Return the accounts as the options and the environment say."""
    return Accounts(options.rate, os.environ.get("JINGYIN_ACCOUNT_SALT", ""))


def run(options: argparse.Namespace, start: Callable[[argparse.Namespace, VerdictClient], Awaitable[Filter]]) -> None:
    """Run a filter until SIGTERM; the key, if jingyin wants one, comes from JINGYIN_KEY.

    Exits with code 2 and one sentence if it can't listen, or jingyin answers without a verdict.
    """

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # a filter has nothing to reload
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        key = os.environ.get("JINGYIN_KEY", "")
        headers = "Content-Type: application/json\r\n" + (f"Authorization: Bearer {key}\r\n" if key else "")
        client = VerdictClient(
            Http(options.jingyin, options.uds, headers),
            seconds=options.seconds, on_failure=options.on_failure, review=options.review, unread=options.unread,
            dry_run=options.dry_run,
        )  # fmt: skip
        ready = False
        try:
            if options.metrics:
                host, port = options.metrics
                await serve_health(host, port, lambda: (ready, "fails" if client.fails else "answers"))
            if await _wait_for_jingyin(client, options.on_failure, stop):
                started = await start(options, client)
                ready = True
                await stop.wait()
                ready = False
                await started.drain()
        finally:
            client.close()
            await asyncio.sleep(0)  # the loop closes them in its next round
        log("ended")

    sys.setswitchinterval(0.0005)  # a thread that decodes a long message gives way to the event loop ten times sooner
    try:
        asyncio.run(main())
    except (JingyinError, OSError) as error:
        print(f"jingyin: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


async def _wait_for_jingyin(client: VerdictClient, on_failure: str, stop: asyncio.Event) -> bool:
    """Wait until the service answers, with on_failure "pass" at most START_SECONDS; return False if told to stop.

    Raises ConfigError if it answers without a verdict.
    """
    end = asyncio.get_running_loop().time() + START_SECONDS
    waited = False
    while True:
        try:
            await client.check()
            return True
        except AwayError as error:
            if not waited:
                log("waits_for_jingyin", error=str(error))
            waited = True
        if on_failure == "pass" and asyncio.get_running_loop().time() >= end:
            log("starts_without_jingyin")
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await stop.wait()
            return False


class Listener:
    """The sockets on which a filter listens, and its connections: at most `most`, each served in a task of its own."""

    def __init__(self, most: int) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._most = most
        self._servers: list[asyncio.Server] = []

    async def listen(
        self, host: str, port: int,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[object, object, None]],
    ) -> int:  # fmt: skip
        """Begin to serve and return the port, which is logged. Raises ConfigError if the address is unavailable."""

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(self.tasks) >= self._most:
                ENDED.labels("too_many").inc()
                writer.transport.abort()
                return
            task = asyncio.get_running_loop().create_task(serve(reader, writer))
            self.tasks.add(task)
            SESSIONS.inc()
            task.add_done_callback(lambda task: forget(task, writer))

        def forget(task: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
            self.tasks.discard(task)
            SESSIONS.dec()
            writer.close()
            if not task.cancelled() and (error := task.exception()):
                log("session_failed", error=type(error).__name__)

        try:
            server = await asyncio.start_server(accept, host, port, backlog=512)
        except (OSError, OverflowError) as error:
            fault = error.strerror if isinstance(error, OSError) else "no such port"
            raise ConfigError(
                f"can't listen on {host}:{port}: {fault}; choose another, or stop the program that uses it"
            ) from None
        self._servers.append(server)
        found = int(server.sockets[0].getsockname()[1])
        log("serving", host=host, port=found)
        return found

    def close(self) -> None:
        """Accept no more connections."""
        for server in self._servers:
            server.close()

    async def end(self) -> None:
        """End the connections."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def serve_health(host: str, port: int, state: Callable[[], tuple[bool, str]]) -> asyncio.Server:
    """Answer /healthz with 200 or 503, by `state`: whether messages are taken, and how jingyin does; and /metrics.

    The event loop is that of the messages: if it hangs, so do they. Raises ConfigError if the address is unavailable.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_HEALTH_SECONDS):
                path = (await reader.readuntil(b"\r\n\r\n")).partition(b" ")[2].split(b" ")[0].partition(b"?")[0]
                status, kind, body = b"404 Not Found", b"text/plain", b"/healthz and /metrics are here"
                if path == b"/healthz":
                    ready, jingyin = state()
                    status = b"200 OK" if ready else b"503 Service Unavailable"
                    kind, body = b"application/json", json.dumps({"ready": ready, "jingyin": jingyin}).encode()
                elif path == b"/metrics":
                    status, kind, body = b"200 OK", b"text/plain; version=0.0.4", generate_latest(REGISTRY)
                head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
                writer.write(head % (status, kind, len(body)) + body)
                await writer.drain()
        writer.close()

    try:
        return await asyncio.start_server(answer, host, port)
    except OSError as error:
        raise ConfigError(f"can't listen on {host}:{port} for metrics: {error.strerror}; choose another") from None
