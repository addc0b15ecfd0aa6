"""The application: its routes, their description, and the page for people at /."""

import asyncio
import hashlib
import itertools
import json
import re
import secrets
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message as AsgiMessage
from starlette.types import Receive, Scope, Send

from jingyin.model.errors import InputError, JingyinError
from jingyin.model.labels import Span
from jingyin.model.signs import SIGNS
from jingyin.serve.explain import Explanation
from jingyin.serve.http import open_inference, schema
from jingyin.serve.http.batcher import BusyError, Outcome
from jingyin.serve.http.deployment import Deployment, Load, ReloadBusyError
from jingyin.serve.http.keys import Keys
from jingyin.serve.http.observe import Metrics, log, where
from jingyin.serve.http.openapi import document, error_responses, score_responses
from jingyin.serve.http.schema import (
    REQUEST_ID,
    MalformedError,
    ScoreParts,
    ScorePayload,
    ScoreText,
    ScoreTexts,
    parse,
    segments,
)
from jingyin.serve.http.service import (
    MAX_EXPLAINED,
    MediaTypeError,
    Service,
    SlowError,
    TooLargeError,
    json_response,
    read_body,
)
from jingyin.serve.http.settings import Settings
from jingyin.serve.sms import Message, readings

# Errors in words: every answer that is not the one asked for says what came, what was wanted, what to do.


_STATUS: dict[type[JingyinError], int] = {
    MalformedError: 400,
    SlowError: 408,
    ReloadBusyError: 409,
    TooLargeError: 413,
    MediaTypeError: 415,
    InputError: 422,
    JingyinError: 500,
    BusyError: 503,
}
_HEADERS = {401: {"www-authenticate": "Bearer"}, 408: {"connection": "close"}, 503: {"retry-after": "1"}}
_WORDS = {404: "there is no such route; see /openapi.json", 405: "the route has another method; see /openapi.json"}


def error_response(status: int, error: str, request_id: str) -> Response:
    """Return an error as JSON; see schema.ErrorBody."""
    return json_response({"error": error, "request_id": request_id}, status, _HEADERS.get(status))


async def on_jingyin_error(request: Request, error: Exception) -> Response:
    """Answer an error raised on purpose; its words hold no text of a message."""
    status = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    if status == 503:
        service: Service = request.app.state.service
        service.metrics.refused("queue").inc()
    return error_response(status, str(error), request.scope["jingyin.id"])


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer what the router raises: no such route, another method."""
    status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (500, None)
    response = error_response(status, _WORDS.get(status, "the request can't be answered"), request.scope["jingyin.id"])
    response.headers.update(headers or {})
    return response


async def on_fault(request: Request, error: Exception) -> Response:
    """Answer an error that nobody meant; guard.py logs where it was."""
    return error_response(500, "an internal fault; its place is in the log under this id", request.scope["jingyin.id"])


# What surrounds every route: request id, API key, metrics, log; and a short way to the routes that score.
#
# FastAPI's layers take twice as long as a cache answer, so a POST to a route in `direct` goes past them. The same
# functions are FastAPI routes too, which describes them in the OpenAPI document and answers other methods.


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

        async def answer(message: AsgiMessage) -> None:
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


# POST /v1/score.


async def score(request: Request) -> Response:
    """Score one message, several, or one as a gateway holds it; always answers with an action.

    The request is read by hand: FastAPI's own parsing would validate in Python objects and echo input in its errors.
    """
    service: Service = request.app.state.service
    scope = request.scope
    ask = parse(await read_body(request, service))
    if ask.request_id is not None:
        scope["jingyin.id"] = ask.request_id
    texts, sms = _texts(ask)
    if ask.explain and len(texts) > MAX_EXPLAINED:
        raise TooLargeError(f"{len(texts)} messages came with explain, at most {MAX_EXPLAINED} were wanted; send fewer")
    _count(service, sms)
    outcomes = await service.score(texts, scope["jingyin.arrival"], ask.deadline_ms, _conversations(ask, len(texts)))
    if sms:
        texts, outcomes = _riskiest(texts, outcomes)
    results = [service.result(outcome) for outcome in outcomes]
    if not ask.reasons:
        for result in results:
            result["reasons"] = []
    if ask.explain:
        for result, found in zip(results, await service.explainer.explain(texts), strict=True):
            _add_evidence(result, found)
    request_id = scope["jingyin.id"]
    if isinstance(ask, ScoreTexts):
        return json_response({"request_id": request_id, "results": results})
    if sms:
        results[0]["sms"] = {"partial": sms.partial, "undecodable": sms.undecodable, "damaged": sms.damaged}
    return json_response({"request_id": request_id, **results[0]})


def _texts(ask: ScoreText | ScoreTexts | ScorePayload | ScoreParts) -> tuple[list[str], Message | None]:
    if isinstance(ask, ScoreText):
        return [ask.text], None
    if isinstance(ask, ScoreTexts):
        return ask.texts, None
    read = readings(segments(ask), ask.data_coding if ask.coding is None else ask.coding)
    return [message.text for message in read], read[0]


def _riskiest(texts: list[str], outcomes: list[Outcome]) -> tuple[list[str], list[Outcome]]:
    """Return the riskiest of several readings of one message, with its outcome."""
    i = max(range(len(texts)), key=lambda i: getattr(outcomes[i], "risk", -1.0))
    return [texts[i]], [outcomes[i]]


def _conversations(ask: ScoreText | ScoreTexts | ScorePayload | ScoreParts, count: int) -> Sequence[str | None] | None:
    if isinstance(ask, ScoreTexts):
        return ask.conversations
    return None if ask.conversation is None else [ask.conversation] * count


def _count(service: Service, sms: Message | None) -> None:
    counter = service.metrics.sms
    if sms is None:
        return
    if sms.partial:
        counter("partial").inc()
    if sms.damaged:
        counter("damaged_header").inc(sms.damaged)
    if sms.undecodable:
        counter("undecodable_byte").inc(sms.undecodable)


def _add_evidence(result: dict[str, Any], found: Explanation | None) -> None:
    """Add the evidence of the risk, and to each reason its own; null where there is none."""
    result["evidence"] = None if found is None else _plain(found.risk)
    for reason in result["reasons"]:
        reason["spans"] = None if found is None else _plain(found.reasons.get(reason["sign"], []))


def _plain(spans: list[Span]) -> list[dict[str, Any]]:
    return [{"start": span.start, "end": span.end, "text": span.text, "weight": span.weight} for span in spans]


_SCORE, _INFER = "/v1/score", "/v2/models/jingyin/infer"


def create_app(settings: Settings, load: Load) -> tuple[Guard, Service]:
    """Make the ASGI application and its parts; `load` loads the deployed bundle and the shadow, also on reload."""
    metrics = Metrics()
    keys = Keys(settings.keys) if settings.keys else None
    service = Service(settings, Deployment(load, metrics), metrics, keys)
    app = FastAPI(
        title="jingyin",
        version=version("jingyin"),
        description="Flags pay-to-stop extortion and debt-collection threats in Chinese SMS.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.service = service
    responses = score_responses(schema.ScoreOne | schema.ScoreMany)
    app.add_api_route(_SCORE, score, methods=["POST"], responses=responses)
    app.include_router(open_inference.router)
    _add_operations(app)
    if settings.page:
        app.add_api_route("/", _page, include_in_schema=False)
    app.add_exception_handler(JingyinError, on_jingyin_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_fault)
    bodies: dict[str, TypeAdapter[Any]] = {_SCORE: schema.REQUEST, _INFER: open_inference.REQUEST}
    app.openapi = lambda: document(app, bodies)  # type: ignore[method-assign]
    return Guard(app, service, {_SCORE: score, _INFER: open_inference.infer}), service


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.service.start()
    yield
    app.state.service.stop()


def _add_operations(app: FastAPI) -> None:
    app.add_api_route("/healthz", open_inference.liveness)
    app.add_api_route("/readyz", open_inference.readiness, responses={503: {"description": "draining"}})
    app.add_api_route("/metrics", _metrics, response_class=Response, responses=error_responses(401))
    app.add_api_route("/admin/reload", _reload, methods=["POST"], responses=error_responses(401, 403, 409, 500))


async def _metrics(request: Request) -> Response:
    """Return metrics in Prometheus' text format."""
    service: Service = request.app.state.service
    service.note_cache()
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _reload(request: Request) -> dict[str, str]:
    """Load the bundle anew: it is checked first, and the old one stays if it fails."""
    service: Service = request.app.state.service
    return {"bundle": await anyio.to_thread.run_sync(service.reload)}


def _with_signs(page: str) -> str:
    known = {sign.id: {"zh": sign.chinese, "en": sign.english, "definition": sign.definition} for sign in SIGNS}
    return page.replace('"SIGNS"', json.dumps(known, ensure_ascii=False))


PAGE = _with_signs(files("jingyin.serve.http").joinpath("page.html").read_text(encoding="utf-8"))
"""The page for people: one file, nothing from elsewhere."""


def _hashes(tag: str) -> str:
    """Return the CSP sources of the inline elements: only they may run, whatever a message manages to inject."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found)


PAGE_HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


async def _page(request: Request) -> Response:
    return Response(PAGE, headers=PAGE_HEADERS, media_type="text/html; charset=utf-8")
