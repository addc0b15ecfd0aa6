"""Errors in words: every answer that is not the one asked for says what came, what was wanted, what to do."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from jingyin.model.errors import InputError, JingyinError
from jingyin.serve.http.batcher import BusyError
from jingyin.serve.http.deployment import ReloadBusyError
from jingyin.serve.http.schema import MalformedError
from jingyin.serve.http.service import MediaTypeError, Service, SlowError, TooLargeError, json_response

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
