"""The OpenAPI document, with the bodies of routes that read them by hand."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from jingyin.serve.http.schema import REQUEST, Problem

Responses = dict[int | str, dict[str, Any]]

_PROBLEMS = {
    400: "no JSON",
    401: "no known API key",
    403: "no admin key",
    408: "the body came too slowly",
    409: "a reload is under way",
    413: "too large, or too many messages",
    415: "no JSON by its media type",
    422: "JSON of another form",
    500: "the bundle failed its checks, the old one stays",
    503: "the queue is full; try again after Retry-After",
}


def problems(*statuses: int) -> Responses:
    """Describe the problems that a route can answer."""
    return {status: {"model": Problem, "description": _PROBLEMS[status]} for status in statuses}


def answers(model: Any) -> Responses:  # noqa: ANN401  a type, as pydantic takes it
    """Describe what a route that scores can answer."""
    return {200: {"model": model}, **problems(400, 401, 408, 413, 415, 422, 503)}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of the application."""
    from jingyin.serve.http import open_inference  # its routes are described by this module

    if app.openapi_schema is None:
        whole = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        bodies: dict[str, TypeAdapter[Any]] = {"/v1/score": REQUEST, "/v2/models/jingyin/infer": open_inference.REQUEST}
        for path, body in bodies.items():
            schema = body.json_schema(ref_template="#/components/schemas/{model}")
            whole["components"]["schemas"].update(schema.pop("$defs", {}))
            content = {"application/json": {"schema": schema}}
            whole["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        app.openapi_schema = whole
    return app.openapi_schema
