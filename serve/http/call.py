"""One call of a client: its body, and the state that it asks or changes."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from jingyin.model.errors import InputError, JingyinError
from jingyin.serve.answer import RefusedError
from jingyin.serve.http.batcher import BusyError
from jingyin.serve.http.connection import Connection
from jingyin.serve.http.schema import explain_errors
from jingyin.serve.http.service import Service

MAX_BODY, MAX_SMALL_BODY = 1 << 20, 64 << 10
"""Most bytes of a body; of one that names a single thing, as an analyst's does."""

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R")


@dataclass(slots=True)
class Call:
    """One request: `arrival` is a time of the event loop, `client` the key's name or the address, `body` in bytes."""

    service: Service
    id: str
    arrival: float
    client: str
    key: str = ""
    place: int = 0  # 1 if it counts among the requests under way
    body: int = 0
    connection: Connection | None = None


async def read_body(request: Request) -> bytes:
    """Read a JSON body.

    Raises RefusedError if it has another type, is too large, or does not arrive in time (connection.py); BusyError if
    the client's bodies under way take more than its share of memory.
    """
    call: Call = request.scope["jingyin"]
    kind = request.headers.get("content-type", "application/json").lower()
    if not kind.startswith(("application/json", "application/octet-stream")):
        raise RefusedError(415, "the body must be JSON; send it with Content-Type: application/json")
    chunks, more = [], True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise RefusedError(408, "the client went away, or took too long, before its body had arrived")
        chunk = message.get("body", b"")
        if call.body + len(chunk) > MAX_BODY:
            raise RefusedError(413, f"the body is larger than {MAX_BODY} bytes; send fewer messages at a time")
        if not call.service.bodies.take(call.client, len(chunk)):
            raise BusyError("more bytes of yours are under way than your share; try again in a second")
        call.body += len(chunk)
        chunks.append(chunk)
        more = message.get("more_body", False)
    if call.connection:
        call.connection.whole()
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def body_as(request: Request, kind: type[M]) -> M:
    """Read a small body; raises InputError for a wrong one, RefusedError for one that is no JSON."""
    if not request.headers.get("content-type", "").lower().startswith("application/json"):
        raise InputError("send the body with Content-Type: application/json")  # which no other site's page can
    if len(data := await read_body(request)) > MAX_SMALL_BODY:
        raise InputError(f"the body is larger than {MAX_SMALL_BODY} bytes")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise explain_errors(error, skip=0) from None


async def of_state(work: Awaitable[R]) -> R:
    """Wait for the state; raises RefusedError if it can't be reached."""
    try:
        return await work
    except JingyinError:
        raise
    except Exception as error:
        kind = type(error).__name__
        raise RefusedError(503, f"the state can't be reached ({kind}); nothing was changed") from None
