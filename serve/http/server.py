"""One process of the service: signals, draining."""

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn

from jingyin.model.errors import ConfigError
from jingyin.serve.http.guard import Guard
from jingyin.serve.http.logs import log
from jingyin.serve.http.protocol import Protocol
from jingyin.serve.http.service import Service
from jingyin.serve.http.settings import Settings

QUIET_SECONDS = 1.0
"""How long idle connections stay open at the end: their clients may be about to send."""
POLL_SECONDS = 0.02

SWITCH_SECONDS = 0.00005
"""How long the event loop may keep the inference thread from the interpreter, which it needs some times a message.

Python's 5 ms are two messages; with 0.5 ms the network's messages took three times as long beside a busy loop, and the
p99 of single calls was 30 ms instead of 12."""


def make_server(app: Guard, service: Service, started: Callable[[], None]) -> "Server":
    """Return a server that is ready to `run` on a socket in this process; raises ConfigError as server_config does.

    It calls `started` once it answers and heeds signals: a SIGTERM before that ends the process at once.
    """
    server = Server(server_config(service.settings, app, service), service, started)
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # what is loaded stays: a full collection would stop the service for 30 ms to find that out
    return server


def server_config(settings: Settings, app: Guard, service: Service) -> uvicorn.Config:
    """Return uvicorn's settings; raises ConfigError when the TLS files can't be used."""
    password = settings.tls_key_password
    config = uvicorn.Config(
        app,
        http=partial(Protocol, settings=settings, service=service),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        ssl_keyfile_password=password.get_secret_value() if password else None,
        ssl_ca_certs=str(settings.tls_client_ca) if settings.tls_client_ca else None,
        ssl_cert_reqs=2 if settings.tls_client_ca else 0,
    )
    try:
        config.load()
    except OSError as error:
        raise ConfigError(
            f"the TLS files can't be used ({type(error).__name__}); check certificate, key and password"
        ) from None
    return config


class Server(uvicorn.Server):
    """uvicorn's server with SIGHUP, and with an end that gives keep-alive clients notice.

    It runs until SIGTERM or SIGINT, then answers what was taken; SIGHUP reloads the bundle.
    """

    def __init__(self, config: uvicorn.Config, service: Service, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._say_started = started
        self._reloads: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, listen to SIGHUP, and tell that it has started."""
        await super().startup(sockets)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        if self.started:
            self._say_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the end; unlike uvicorn don't die of the signal after a clean one."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting; close each connection with its next answer, idle ones after a while; then end.

        uvicorn alone closes idle connections at once, and with them the requests that are on their way.
        """
        self._service.draining = True
        log("draining", connections=len(self.server_state.connections))
        await asyncio.sleep(POLL_SECONDS)  # who has connected already is accepted
        for server in self.servers:
            server.close()
        end = asyncio.get_running_loop().time() + min(QUIET_SECONDS, self._service.settings.drain_seconds)
        while self.server_state.connections and asyncio.get_running_loop().time() < end and not self.force_exit:
            await asyncio.sleep(POLL_SECONDS)
        await super().shutdown(sockets)

    def _reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload_in_thread())
        self._reloads.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._reloads.discard)

    async def _reload_in_thread(self) -> None:
        try:
            await asyncio.to_thread(self._service.reload)
        except Exception as error:  # logged and counted where it happened; the old bundle goes on
            log("sighup_ignored", level="warning", error=type(error).__name__)
