"""The application: its routes and their description."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

import anyio.to_thread
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from jingyin.model.errors import JingyinError
from jingyin.serve.http import open_inference
from jingyin.serve.http.deployment import Deployment
from jingyin.serve.http.errors import on_fault, on_http_error, on_jingyin_error
from jingyin.serve.http.guard import Guard
from jingyin.serve.http.keys import Keys
from jingyin.serve.http.metrics import Metrics
from jingyin.serve.http.openapi import answers, document, problems
from jingyin.serve.http.page import PAGE, PAGE_HEADERS
from jingyin.serve.http.schema import ScoreMany, ScoreOne
from jingyin.serve.http.score import score
from jingyin.serve.http.service import Service
from jingyin.serve.http.settings import Settings
from jingyin.serve.scorer import Scorer

Load = Callable[[], tuple[Scorer, Scorer | None]]


def create_app(settings: Settings, load: Load) -> tuple[Guard, Service]:
    """Make the ASGI application and its parts; `load` loads the live bundle and the shadow, also on reload."""
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
    app.add_api_route("/v1/score", score, methods=["POST"], responses=answers(ScoreOne | ScoreMany))
    app.include_router(open_inference.router)
    _add_operations(app)
    if settings.page:
        app.add_api_route("/", _page, include_in_schema=False)
    app.add_exception_handler(JingyinError, on_jingyin_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_fault)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    direct = {"/v1/score": score, "/v2/models/jingyin/infer": open_inference.infer}
    return Guard(app, service, direct), service


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.service.start()
    yield
    app.state.service.stop()


def _add_operations(app: FastAPI) -> None:
    app.add_api_route("/healthz", open_inference.live)
    app.add_api_route("/readyz", open_inference.ready, responses={503: {"description": "draining"}})
    app.add_api_route("/metrics", _metrics, response_class=Response)
    app.add_api_route("/admin/reload", _reload, methods=["POST"], responses=problems(401, 403, 409, 500))


async def _metrics(request: Request) -> Response:
    """Return metrics in Prometheus' text format."""
    service: Service = request.app.state.service
    cache = service.deployment.scorer.cache
    for what in ("cache_hits", "cache_misses", "used", "budget"):
        service.metrics.cache.labels(what).set(getattr(cache, what))
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _reload(request: Request) -> dict[str, str]:
    """Load the bundle anew: it is checked first, and the old one stays if it fails."""
    service: Service = request.app.state.service
    return {"bundle": await anyio.to_thread.run_sync(service.deployment.reload)}


async def _page(request: Request) -> Response:
    return Response(PAGE, headers=PAGE_HEADERS, media_type="text/html; charset=utf-8")
