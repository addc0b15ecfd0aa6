"""What surrounds every route: request id, API key, metrics, log; and a short way to the routes that score.

FastAPI's layers take twice as long as a cache answer, so a POST to a route in `direct` goes past them. The same
functions are FastAPI routes too, which describes them in the OpenAPI document and answers other methods.
"""

import asyncio
import itertools
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI, Request, Response
from starlette.types import Message, Receive, Scope, Send

from jingyin.model.errors import JingyinError
from jingyin.serve.http.errors import error_response, on_fault, on_jingyin_error
from jingyin.serve.http.logs import log, where
from jingyin.serve.http.schema import REQUEST_ID
from jingyin.serve.http.service import Service

PROTECTED = frozenset(("/v1/score", "/v2/models/jingyin/infer", "/admin/reload"))
"""Routes that need a key, if there are keys; the others say nothing that a message holds."""

PROTECTED_IN_PUBLIC = PROTECTED | {"/metrics", "/v2", "/v2/models/jingyin"}
"""Routes that need a key on a public address: these too say what runs here and how much. Probes carry no keys."""

_ROUTES = PROTECTED_IN_PUBLIC | {
    "/", "/healthz", "/readyz", "/openapi.json", "/v2/health/live", "/v2/health/ready", "/v2/models/jingyin/ready",
}  # fmt: skip
Route = Callable[[Request], Awaitable[Response]]
_ID = re.compile(REQUEST_ID.encode())


class Guard:
    """The outermost ASGI layer."""

    def __init__(self, app: FastAPI, service: Service, direct: Mapping[str, Route]) -> None:
        self._app = app
        self._service = service
        self._direct = direct
        self._protected = PROTECTED_IN_PUBLIC if service.settings.is_public else PROTECTED
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; anything but HTTP goes through."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        loop_time = asyncio.get_running_loop().time
        arrival = scope.setdefault("jingyin.arrival", loop_time())
        given, key = _read_headers(scope)
        scope["jingyin.id"] = given or f"{self._prefix}-{next(self._numbers)}"
        scope["app"] = self._app
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status == 503 and "jingyin.pause" in scope:
                    scope["jingyin.pause"]()
                message["headers"].append((b"x-request-id", scope["jingyin.id"].encode()))
                if self._service.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await self._respond(scope, receive, answer, key)
        except Exception as error:
            log("fault", level="error", request=scope["jingyin.id"], **where(error))
            if not status:  # the layers of FastAPI answer their own
                await (await on_fault(Request(scope), error))(scope, receive, answer)
        finally:
            self._record(scope, status, loop_time() - arrival)

    async def _respond(self, scope: Scope, receive: Receive, send: Send, key: bytes) -> None:
        if refusal := self._refusal(scope["path"], key):
            return await error_response(*refusal, scope["jingyin.id"])(scope, receive, send)
        route = self._direct.get(scope["path"]) if scope["method"] == "POST" else None
        if route is None:
            return await self._app(scope, receive, send)
        response = await _answer(route, Request(scope, receive))
        return await response(scope, receive, send)

    def _refusal(self, path: str, presented: bytes) -> tuple[int, str] | None:
        keys = self._service.keys
        if keys is None or path not in self._protected:
            return None
        key = keys.find(presented) if presented else None
        if key is None:
            return 401, "an API key is wanted; send it as Authorization: Bearer KEY"
        if path.startswith("/admin/") and not key.admin:
            return 403, "this API key may not do that; use one that is marked admin in the key file"
        return None

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in _ROUTES else "other"
        self._service.metrics.requests(route, status).inc()
        self._service.metrics.seconds(route).observe(seconds)
        if status >= 400 or not status or self._service.settings.log_requests == "all":
            log("request", request=scope["jingyin.id"], route=route, status=status, seconds=round(seconds, 6))


async def _answer(route: Route, request: Request) -> Response:
    try:
        return await route(request)
    except JingyinError as error:
        return await on_jingyin_error(request, error)


def _read_headers(scope: Scope) -> tuple[str | None, bytes]:
    """Return the request id, if one of the right form was sent, and the API key that was presented."""
    given, key = None, b""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value):
            given = value.decode()
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            key = value[7:].strip()
    return given, key
