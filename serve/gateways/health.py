"""A filter's GET /healthz and /metrics, on the event loop that serves its messages: if that hangs, so do they."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import generate_latest

from jingyin.model.errors import ConfigError
from jingyin.serve.gateways.client import REGISTRY

_READ_SECONDS = 5.0


async def serve_health(host: str, port: int, state: Callable[[], tuple[bool, str]]) -> asyncio.Server:
    """Answer /healthz with 200 or 503, by `state`: whether messages are taken, and how jingyin does.

    Raises ConfigError if the address is unavailable.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_READ_SECONDS):
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
