"""One call of a client, and its body."""

from dataclasses import dataclass

from starlette.requests import Request

from jingyin.model.errors import JingyinError
from jingyin.serve.http.batcher import BusyError
from jingyin.serve.http.connection import Connection
from jingyin.serve.http.service import Service

MAX_BODY = 1 << 20
"""Most bytes of a body."""


class RefusedError(JingyinError):
    """A request that is refused with `status`."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


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
