"""Starts the service and ends it: binding, signals, draining."""

import asyncio
import gc
import os
import signal
import socket
import stat
import sys
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn

from jingyin.model.errors import ConfigError
from jingyin.serve.http.app import create_app
from jingyin.serve.http.logs import log, take_over_logging
from jingyin.serve.http.protocol import Protocol
from jingyin.serve.http.service import Service
from jingyin.serve.http.settings import Settings
from jingyin.serve.scorer import Scorer

QUIET_SECONDS = 1.0
"""How long idle connections stay open at the end: their clients may be about to send."""

SWITCH_SECONDS = 0.00005
"""How long the event loop may keep the inference thread from the interpreter, which it needs some times for each message.

Python's 5 ms are two messages; with 0.5 ms the network's messages took three times as long beside a busy loop, and the p99 of
single calls was 30 ms instead of 12."""


def run_server(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was taken and return.

    SIGHUP reloads the bundle. Raises BundleError before the socket opens, ConfigError if it can't be opened.
    """
    take_over_logging()
    sys.setswitchinterval(SWITCH_SECONDS)
    app, service = create_app(settings, lambda: _load(settings))
    gc.freeze()  # what is loaded stays: a full collection would stop the service for 30 ms to find that out
    listener = _bind(settings)
    server = _Server(_config(settings, app, service), service)
    log("serving", bundle=service.deployment.bundle_id, address=_address(settings, listener), keys=bool(settings.keys))
    try:
        server.run([listener])
    finally:
        if settings.uds:
            settings.uds.unlink(missing_ok=True)
    log("ended")


def _load(settings: Settings) -> tuple[Scorer, Scorer | None]:
    shadow = Scorer.load(settings.shadow) if settings.shadow else None
    return Scorer.load(settings.bundle), shadow


def _config(settings: Settings, app: object, service: Service) -> uvicorn.Config:
    password = settings.tls_key_password
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
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


class _Server(uvicorn.Server):
    """uvicorn's server with SIGHUP, and with an end that gives keep-alive clients notice."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._reloads: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and listen to SIGHUP."""
        await super().startup(sockets)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)

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
        for server in self.servers:
            server.close()
        end = asyncio.get_running_loop().time() + min(QUIET_SECONDS, self._service.settings.drain_seconds)
        while self.server_state.connections and asyncio.get_running_loop().time() < end and not self.force_exit:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    def _reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload_in_thread())
        self._reloads.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._reloads.discard)

    async def _reload_in_thread(self) -> None:
        try:
            await asyncio.to_thread(self._service.deployment.reload)
        except Exception as error:  # logged and counted where it happened; the old bundle goes on
            log("sighup_ignored", level="warning", error=type(error).__name__)


def _bind(settings: Settings) -> socket.socket:
    try:
        return _bind_unix(settings.uds) if settings.uds else _bind_tcp(settings.host, settings.port)
    except OSError as error:
        at = settings.uds or f"{settings.host}:{settings.port}"
        raise ConfigError(
            f"can't listen on {at}: {error.strerror or error}; choose another, or end what holds it"
        ) from None


def _bind_tcp(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=2_048)


def _bind_unix(path: Path) -> socket.socket:
    """Bind a Unix socket for owner and group; one left behind by a dead server is replaced."""
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _is_served(path):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    os.chmod(path, 0o660)
    listener.listen(2_048)
    return listener


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _address(settings: Settings, listener: socket.socket) -> str:
    if settings.uds:
        return f"unix:{settings.uds}"
    host, port = listener.getsockname()[:2]
    return f"{'https' if settings.tls_certificate else 'http'}://{host}:{port}"
