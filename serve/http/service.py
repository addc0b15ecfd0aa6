"""The parts of a running service, and what every route does with a request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from jingyin.model.errors import JingyinError
from jingyin.model.labels import Verdict
from jingyin.serve.http.admission import Admission
from jingyin.serve.http.batcher import Batcher, Outcome
from jingyin.serve.http.deployment import Deployment
from jingyin.serve.http.evidence import Explainer
from jingyin.serve.http.keys import Keys
from jingyin.serve.http.metrics import Metrics
from jingyin.serve.http.settings import Settings


@dataclass
class Service:
    """One for each application; the routes find it at app.state.service."""

    settings: Settings
    deployment: Deployment
    metrics: Metrics
    keys: Keys | None
    draining: bool = False
    admission: Admission = field(init=False)
    batcher: Batcher = field(init=False)
    explainer: Explainer = field(init=False)

    def __post_init__(self) -> None:
        self.admission = Admission(self.settings.max_requests)

    def start(self) -> None:
        """Start the threads; needs the running event loop."""
        self.batcher = Batcher(self.deployment, self.metrics, queue=self.settings.queue, wait_ms=self.settings.wait_ms)
        self.explainer = Explainer(self.deployment)

    def stop(self) -> None:
        """End the threads; every request must have been answered."""
        self.batcher.close()
        self.explainer.close()

    async def score(self, texts: list[str], arrival: float, deadline_ms: int | None) -> list[Outcome]:
        """Score until the deadline, counted from `arrival`, a time of the event loop."""
        limit = self.settings.max_texts
        if len(texts) > limit:
            raise TooLargeError(
                f"{len(texts)} messages came, at most {limit} were wanted; send them in several requests"
            )
        late = True
        try:
            outcomes = await self.batcher.score(texts, arrival + (deadline_ms or self.settings.deadline_ms) / 1000)
            late = "deadline" in outcomes
            return outcomes
        finally:
            if len(texts) == 1 and deadline_ms is None:  # others say more about themselves than about the load
                self.admission.note(late=late)

    def result(self, outcome: Outcome) -> dict[str, Any]:
        """Return an outcome as plain JSON types; see schema.Result."""
        if isinstance(outcome, Verdict):
            return {
                "action": outcome.action,
                "reason": "scored",
                "label": outcome.label,
                "risk": outcome.risk,
                "probabilities": outcome.probabilities,
                "stage": outcome.stage,
                "edits": outcome.edits,
                "bundle": outcome.bundle,
            }
        nothing = dict.fromkeys(("label", "risk", "probabilities", "stage"))
        return {
            "action": self.settings.on_deadline,
            "reason": outcome,
            **nothing,
            "edits": {},
            "bundle": self.deployment.bundle_id,
        }


class TooLargeError(JingyinError):
    """The body, or the number of messages in it, is above the limit."""


class SlowError(JingyinError):
    """The client did not send the whole of its body."""


class MediaTypeError(JingyinError):
    """The body is of another type than the route reads."""


async def read_body(request: Request, service: Service) -> bytes:
    """Read a JSON body within the limit of size; protocol.py sees to the time."""
    kind = request.headers.get("content-type", "application/json")
    if not kind.startswith(("application/json", "application/octet-stream")):
        raise MediaTypeError("the body must be JSON; send it with Content-Type: application/json")
    chunks, size, more = [], 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise SlowError("the client went away, or took too long, before its body had come")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > service.settings.max_body:
            raise TooLargeError(
                f"the body is larger than {service.settings.max_body} bytes; send fewer messages at a time"
            )
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


class _Json(Response):
    """JSON, whose headers take starlette as long as all of its body."""

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """Set the headers."""
        own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(self.body))]
        self.raw_headers = own + [(name.encode(), value.encode()) for name, value in (headers or {}).items()]


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return _Json(orjson.dumps(content), status, headers)
