"""The OpenAPI document, with the bodies of routes that read them by hand."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from jingyin.serve.http.schema import ErrorBody

Responses = dict[int | str, dict[str, Any]]

_ERRORS = {
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


def error_responses(*statuses: int) -> Responses:
    """Describe the errors of a route."""
    return {status: {"model": ErrorBody, "description": _ERRORS[status]} for status in statuses}


def score_responses(model: Any) -> Responses:  # noqa: ANN401  a type, as pydantic takes it
    """Describe the responses of a route that scores."""
    return {200: {"model": model}, **error_responses(400, 401, 408, 413, 415, 422, 503)}


def document(app: FastAPI, bodies: Mapping[str, TypeAdapter[Any]]) -> dict[str, Any]:
    """Return the OpenAPI document of the application; `bodies` are the request bodies of POST routes, by path."""
    if app.openapi_schema is None:
        whole = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path, body in bodies.items():
            schema = body.json_schema(ref_template="#/components/schemas/{model}")
            whole["components"]["schemas"].update(schema.pop("$defs", {}))
            content = {"application/json": {"schema": schema}}
            whole["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        app.openapi_schema = whole
    return app.openapi_schema
