"""The socket that is listened on: TCP, or a Unix socket."""

import os
import socket
import stat
from pathlib import Path

from jingyin.model.errors import ConfigError
from jingyin.serve.http.settings import Settings

_BACKLOG = 2_048


def bind(settings: Settings) -> socket.socket:
    """Open the socket; raises ConfigError if that can't be."""
    try:
        return _bind_unix(settings.uds) if settings.uds else _bind_tcp(settings.host, settings.port)
    except OSError as error:
        at = settings.uds or _host_and_port(settings.host, settings.port)
        raise ConfigError(
            f"can't listen on {at}: {error.strerror or error}; choose another, or end what holds it"
        ) from None


def address(settings: Settings, listener: socket.socket) -> str:
    """Return where the service is found, as a URL."""
    if settings.uds:
        return f"unix:{settings.uds}"
    host, port = listener.getsockname()[:2]
    return f"{'https' if settings.tls_certificate else 'http'}://{_host_and_port(host, port)}"


def _host_and_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind_tcp(host: str, port: int) -> socket.socket:
    family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(found[:2], family=family, backlog=_BACKLOG)


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
    listener.listen(_BACKLOG)
    return listener


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
