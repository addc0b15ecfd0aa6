"""The application: its routes, their description, and the page for people at /."""

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Request, Response
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException

from jingyin.model.errors import JingyinError
from jingyin.model.signs import SIGNS
from jingyin.serve.http import open_inference, schema
from jingyin.serve.http.deployment import Deployment, Load
from jingyin.serve.http.errors import on_fault, on_http_error, on_jingyin_error
from jingyin.serve.http.guard import Guard
from jingyin.serve.http.keys import Keys
from jingyin.serve.http.metrics import Metrics
from jingyin.serve.http.openapi import document, error_responses, score_responses
from jingyin.serve.http.score import score
from jingyin.serve.http.service import Service
from jingyin.serve.http.settings import Settings

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
