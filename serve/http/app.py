"""The application: its routes, the middleware around them, error messages, and the page for people at /."""

import asyncio
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import secrets
import signal
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jingyin.model.errors import InputError, JingyinError
from jingyin.model.labels import TABLE
from jingyin.model.signs import SIGNS
from jingyin.serve.answer import Answer, Origin, RefusedError
from jingyin.serve.http import schema
from jingyin.serve.http.admin import ADMIN_ROUTES
from jingyin.serve.http.batcher import BusyError
from jingyin.serve.http.call import Call, body_as, of_state, read_body
from jingyin.serve.http.deployment import Load
from jingyin.serve.http.service import MAX_EXPLAINED, Service
from jingyin.serve.memory.memory import make_memory
from jingyin.serve.observe import error_site, log
from jingyin.serve.settings import Settings

MAX_TEXTS = 1_024
"""Most messages of a request."""
REFUSAL_SECONDS = 0.05
"""How long a client beyond its share waits for the refusal: immediate retries would take the event loop from others."""

OPEN = {"/", "/admin/", "/healthz", "/readyz", "/openapi.json"}
"""Paths that need no key, even if there are keys; on a private address /metrics needs none either."""
_ADMIN = {"/admin/reload", "/admin/known", "/admin/overview", "/admin/senders", "/admin/trial", "/admin/cases"}
_ROUTES = OPEN | _ADMIN | {"/v1/score", "/v1/parts", "/v1/report", "/metrics"}
_BELOW = re.compile("(/admin/(?:known|senders|cases))/.+")
"""Paths that end in an id, which metrics and logs leave out."""


# ---- errors: every error response states the value received, the value expected and the remedy


_HEADERS = {401: {"www-authenticate": "Bearer"}, 503: {"retry-after": "1"}}
_WORDS = {404: "there is no such route; see /openapi.json", 405: "the route has another method; see /openapi.json"}


class JsonResponse(Response):
    """JSON; starlette takes as long for the headers as orjson for the body."""

    def __init__(self, content: object, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        self.status_code = status
        self.background = None
        self.body = orjson.dumps(content)
        self.raw_headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(self.body))]
        self.raw_headers += [(name.encode(), value.encode()) for name, value in headers.items()]


def error_response(call: Call, status: int, error: str) -> Response:
    """Return an error as JSON."""
    return JsonResponse({"error": error, "request_id": call.id}, status, _HEADERS.get(status, {}))


async def on_jingyin_error(request: Request, error: Exception) -> Response:
    """Answer an error raised on purpose; its words hold no text of a message."""
    call: Call = request.scope["jingyin"]
    if isinstance(error, BusyError):
        call.service.metrics.refused("queue").inc()
        await asyncio.sleep(REFUSAL_SECONDS)
    status = getattr(error, "status", 422 if isinstance(error, InputError) else 500)
    return error_response(call, status, str(error))


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer the router's errors: no such route, another method."""
    assert isinstance(error, HTTPException)
    words = _WORDS.get(error.status_code, "the request can't be answered")
    if request.url.path.startswith(("/admin/cases", "/v1/report")) and not request.scope["jingyin"].service.cases:
        words = "the review queue is off; turn it on with the setting cases"
    response = error_response(request.scope["jingyin"], error.status_code, words)
    response.headers.update(error.headers or {})
    return response


# ---- around every route: request id, API key, admission, metrics, log


class RequestMiddleware:
    """The middleware around all routes."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._open = OPEN if service.settings.is_public else OPEN | {"/metrics"}
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; anything but HTTP is passed on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        service, connection = self._service, scope["state"].get("connection") if "state" in scope else None
        loop_time = asyncio.get_running_loop().time
        arrival = loop_time()
        if connection:
            length = next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)
            arrival = connection.begin(whole=scope["method"] != "POST", length=length)
        call = Call(service, "", arrival, scope["client"][0] if scope["client"] else "", connection=connection)
        scope["jingyin"] = call
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                ours = [(b"x-request-id", call.id.encode())] + [(b"connection", b"close")] * service.draining
                message["headers"] = [*message["headers"], *ours]
            elif connection and not message.get("more_body"):
                connection.end()
            await send(message)

        try:
            refusal = self._refusal(scope, call) or self._page_refusal(scope)
            if refusal and refusal[0] == 503:
                await asyncio.sleep(REFUSAL_SECONDS)
            elif call.place:
                await service.gate.turn(call.client)
            app = error_response(call, *refusal) if refusal else self._app
            await app(scope, receive, answer)
        except Exception as error:
            log("fault", level="error", request=call.id, **error_site(error))
            if not status:
                fault = error_response(call, 500, "an internal fault; its place is in the log under this id")
                await fault(scope, receive, answer)
        finally:
            service.requests.give(call.client, call.place)
            service.bodies.give(call.client, call.body)
            self._record(scope, call, status, loop_time() - arrival)

    def _page_refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return the refusal of what a page of another site may have sent.

        The browser names its origin. A page whose name was made to resolve to a loopback address names itself as the
        host: names with a dot are refused there if there are no keys.
        """
        headers = {name: value for name, value in scope["headers"] if name in (b"origin", b"host")}
        host = headers.get(b"host", b"").lower()
        if b"origin" in headers and headers[b"origin"].lower().partition(b"://")[2] != host:
            return 403, "the Origin is another site; ask from the service's own page, or without Origin"
        settings = self._service.settings
        name = host.partition(b":")[0]
        rebound = b"." in name and not _LOCAL.fullmatch(name)
        if rebound and not (settings.is_public or settings.uds or settings.keys):
            return 403, "the Host is a domain; ask this loopback address by number or as localhost, or set keys"
        return None

    def _refusal(self, scope: Scope, call: Call) -> tuple[int, str] | None:
        """Return status and message of a refusal, or None; set the id (if a valid one was sent), client and place."""
        presented = b""
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _ID.fullmatch(value):
                call.id = value.decode()
            elif name == b"authorization" and value[:7].lower() == b"bearer ":
                presented = value[7:].strip()
        call.id = call.id or f"{self._prefix}-{next(self._numbers)}"
        if self._service.keys is not None and scope["path"] not in self._open:
            key = self._service.keys.find(presented) if presented else None
            if key is None:
                return 401, "an API key is wanted; send it as Authorization: Bearer KEY"
            call.client = call.key = key.name
            if scope["path"].startswith("/admin/") and not key.admin:
                return 403, "this API key may not do that; use one that is marked admin in the key file"
        if "\n" in scope["path"]:  # the router ignores one at the end
            return 404, _WORDS[404]
        if scope["method"] == "POST":  # probes are never refused
            if not self._service.requests.take(call.client, 1):
                self._service.metrics.refused("requests").inc()
                return 503, "more requests of yours are under way than your share; try again in a second"
            call.place = 1
        return None

    def _record(self, scope: Scope, call: Call, status: int, seconds: float) -> None:
        below = _BELOW.fullmatch(scope["path"])
        path = below[1] if below else scope["path"]
        route = path if path in _ROUTES else "other"
        self._service.metrics.requests(route, status).inc()
        self._service.metrics.seconds(route).observe(seconds)
        if route.startswith("/admin/") and scope["method"] != "GET":
            log("admin", request=call.id, route=route, key=call.key, status=status)
        elif status >= 400 or not status or self._service.settings.log_requests == "all":
            log("request", request=call.id, route=route, status=status, seconds=round(seconds, 6))


_ID = re.compile(schema.REQUEST_ID.encode())
_LOCAL = re.compile(rb"[0-9.]+|(?:.+\.)?localhost\.?")


# ---- routes


async def score(request: Request) -> Response:
    """Score one message, several, or one as a gateway holds it; always answers with an action."""
    call: Call = request.scope["jingyin"]
    service, body = call.service, schema.parse(await read_body(request))
    call.id = body.request_id or call.id
    milliseconds = min(body.deadline_ms or service.settings.deadline_ms, schema.MAX_DEADLINE_MS)
    origin = Origin(call.client, call.key, body.sender, body.receiver, call.arrival + milliseconds / 1000, body.route)
    if isinstance(body, schema.ScoreTexts):
        most = MAX_EXPLAINED if body.explain else MAX_TEXTS
        if len(body.texts) > most:
            came = f"{len(body.texts)} messages came{' with explain' if body.explain else ''}"
            raise RefusedError(413, f"{came}, at most {most} were wanted; send them in several requests")
        answers = await service.answer(body.texts, origin)
        return JsonResponse({"request_id": call.id, "results": await _results(service, body, body.texts, answers)})
    if isinstance(body, schema.ScoreText):
        answers = await service.answer([body.text], origin)
        (result,) = await _results(service, body, [body.text], answers)
        return JsonResponse({"request_id": call.id, **result})
    answer, message = await service.answer_sms(body.segments, body.declared, origin)
    (result,) = await _results(service, body, [message.text], [answer])
    faults = {"partial": message.partial, "undecodable": message.undecodable, "damaged": message.damaged}
    for kind, count in zip(("partial", "undecodable_byte", "damaged_header"), faults.values(), strict=True):
        if count:
            service.metrics.sms(kind).inc(count)
    return JsonResponse({"request_id": call.id, **result, "sms": faults})


async def _results(
    service: Service, body: schema.ScoreBody, texts: Sequence[str], answers: Sequence[Answer]
) -> list[dict[str, Any]]:
    """Return answers as plain JSON types, with the evidence that was asked for; null where there is none."""
    results = [service.result(answer) for answer in answers]
    if not body.reasons:
        for result in results:
            result["reasons"] = []
    if body.explain:
        for result, found in zip(results, await service.explain(texts), strict=True):
            result["evidence"] = found and [*map(asdict, found.risk)]
            for reason in result["reasons"]:
                reason["spans"] = found and [*map(asdict, found.reasons.get(reason["sign"], []))]
    return results


async def share(request: Request) -> Response:
    """Keep a part for other filters (gateways/shared.py), or forget it; answer with the parts that each key had."""
    call: Call = request.scope["jingyin"]
    body, memory = await body_as(request, schema.SharedPart), call.service.memory
    if body.forget and body.part:
        await of_state(memory.forget_part(call.key, body.keys, body.part))
        return JsonResponse({"request_id": call.id, "keys": []})
    found = await of_state(memory.share_part(call.key, body.keys, body.part, body.seconds))
    return JsonResponse({"request_id": call.id, "keys": [{"parts": parts, "lost": lost} for parts, lost in found]})


async def ready(request: Request) -> Response:
    """Answer whether to send messages: yes, from when all networks are warm until the worker drains."""
    draining = request.scope["jingyin"].service.draining
    return JsonResponse({"ready": not draining}, 503 if draining else 200)


async def metrics(request: Request) -> Response:
    """Return metrics in Prometheus' text format."""
    service: Service = request.scope["jingyin"].service
    service.observe_cache()
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def reload(request: Request) -> Response:
    """Have the workers replaced one after another, as by SIGHUP; the log and /metrics show the outcome."""
    if not request.headers.get("content-type", "").lower().startswith("application/json"):  # which no page can send
        raise RefusedError(415, "send the request with Content-Type: application/json")
    if parent := multiprocessing.parent_process():
        os.kill(parent.pid or 0, signal.SIGHUP)
    return JsonResponse({"reload": "begun", "bundle": request.scope["jingyin"].service.deployment.bundle_id}, 202)


def _own_file(name: str) -> str:
    return files("jingyin.serve.http").joinpath(name).read_text(encoding="utf-8")


OPENAPI = _own_file("openapi.json")
_SIGNS = {sign.id: {"zh": sign.chinese, "en": sign.english, "definition": sign.definition} for sign in SIGNS}
_LABELS = {label.id: {"zh": label.chinese, "en": label.english} for label in TABLE}
PAGE = (
    _own_file("page.html")
    .replace('"LABELS"', json.dumps(_LABELS, ensure_ascii=False))
    .replace('"SIGNS"', json.dumps(_SIGNS, ensure_ascii=False))
)
"""The page for people, which loads nothing else."""
ADMIN_PAGE = _own_file("admin.html")
"""The page for the analyst, which holds no data and asks for a key."""


def page_response(page: str) -> Response:
    """Return a page as a response: only its own inline elements may run, whatever a message manages to inject."""

    def sources(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found)

    policy = (
        f"default-src 'none'; script-src {sources('script')}; style-src {sources('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache"}
    return Response(page, 200, {"content-security-policy": policy, **headers}, "text/html; charset=utf-8")


# ---- the application

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[Mapping[str, Any]]]


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, Any]]:
    """Load the bundle, and hand the service to the connections."""
    service: Service = app.state.service
    service.start()
    yield {"service": service}
    service.stop()
    await service.memory.close()


def create_app(settings: Settings, load: Load, lifespan: Lifespan = lifespan, shared: Path | None = None) -> Starlette:
    """Make the ASGI application; at its start `load` loads the bundle and the shadow.

    `shared` is the folder of memory.shared_state; without it the application remembers by itself.
    """
    make_cases, case_routes = None, list[Route]()
    if settings.cases:  # else SQLAlchemy would take a quarter of a second of each worker's start, and 20 MB
        from jingyin.serve.cases.writer import make_writer
        from jingyin.serve.http.cases import CASE_ROUTES

        make_cases, case_routes = partial(make_writer, settings, settings.cases, shared), CASE_ROUTES
    service = Service(settings, load, partial(make_memory, settings, shared), make_cases)
    routes = [
        Route("/v1/score", score, methods=["POST"]),
        Route("/v1/parts", share, methods=["POST"]),
        Route("/admin/reload", reload, methods=["POST"]),
        Route("/healthz", JsonResponse({"live": True}), methods=["GET"]),  # the event loop runs
        Route("/readyz", ready),
        Route("/metrics", metrics),
        Route("/openapi.json", Response(OPENAPI, media_type="application/json"), methods=["GET"]),
        Route("/admin/", page_response(ADMIN_PAGE), methods=["GET"]),
        *ADMIN_ROUTES,
        *case_routes,
    ]
    if settings.page:
        routes.append(Route("/", page_response(PAGE), methods=["GET"]))
    app = Starlette(
        routes=routes,
        middleware=[Middleware(RequestMiddleware, service=service)],
        exception_handlers={JingyinError: on_jingyin_error, HTTPException: on_http_error},
        lifespan=lifespan,
    )
    app.state.service = service
    return app
