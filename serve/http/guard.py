"""What surrounds every route: request id, API key, metrics, log.

Plain ASGI, because each of Starlette's BaseHTTPMiddleware costs about as much as a memo answer.
"""

import asyncio
import itertools
import re
import secrets
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jingyin.serve.http.logs import log, where
from jingyin.serve.http.problems import problem
from jingyin.serve.http.schema import REQUEST_ID
from jingyin.serve.http.service import Service

PROTECTED = frozenset(("/v1/score", "/v2/models/jingyin/infer", "/admin/reload"))
"""Routes that need a key, if there are keys; the others say nothing that a message holds."""

_ROUTES = PROTECTED | {
    "/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready",
    "/v2/models/jingyin", "/v2/models/jingyin/ready",
}  # fmt: skip
_ID = re.compile(REQUEST_ID.encode())


class Guard:
    """The outermost ASGI layer."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; anything but HTTP goes through."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start = perf_counter()
        scope["jingyin.arrival"] = asyncio.get_running_loop().time()
        given, key = _read_headers(scope)
        scope["jingyin.id"] = given or f"{self._prefix}-{next(self._numbers)}"
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", scope["jingyin.id"].encode()))
                if self._service.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            refusal = self._refusal(scope["path"], key)
            if refusal:
                return await problem(*refusal, scope["jingyin.id"])(scope, receive, answer)
            await self._app(scope, receive, answer)
        except Exception as error:  # it has been answered (problems.on_fault)
            log("fault", level="error", request=scope["jingyin.id"], **where(error))
        finally:
            self._record(scope, status, perf_counter() - start)

    def _refusal(self, path: str, presented: bytes) -> tuple[int, str] | None:
        keys = self._service.keys
        if keys is None or path not in PROTECTED:
            return None
        key = keys.find(presented) if presented else None
        if key is None:
            return 401, "an API key is wanted; send it as Authorization: Bearer KEY"
        if path.startswith("/admin/") and not key.admin:
            return 403, "this API key may not do that; use one that is marked admin in the key file"
        return None

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in _ROUTES else "other"
        self._service.metrics.requests.labels(route, str(status)).inc()
        self._service.metrics.seconds.labels(route).observe(seconds)
        if status >= 400 or not status or self._service.settings.log_requests == "all":
            log("request", request=scope["jingyin.id"], route=route, status=status, seconds=round(seconds, 6))


def _read_headers(scope: Scope) -> tuple[str | None, bytes]:
    """Return the request id, if one of the right form was sent, and the API key that was presented."""
    given, key = None, b""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value):
            given = value.decode()
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            key = value[7:].strip()
    return given, key
