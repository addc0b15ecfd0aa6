"""Routes for the analyst under /admin/: known wordings, senders under suspicion, trial messages, and a page.

No text is kept, so none is shown: messages appear only as counts, hashes and the analyst's own notes.
"""

from typing import Annotated

from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jingyin.serve.http.call import Call, body_as, of_state
from jingyin.serve.http.schema import Address
from jingyin.serve.memory.known import NewWording
from jingyin.serve.memory.senders import SENDER
from jingyin.serve.memory.state import Op


class Trial(BaseModel):
    """A message that an analyst tries, to see its verdict."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = Field(repr=False)
    sender: Address | None = Field(None, repr=False)
    receiver: Address | None = Field(None, repr=False)
    route: Address | None = None
    key: Annotated[str, Field(max_length=128)] = ""


async def known(request: Request) -> Response:
    """List the known wordings, or add one."""
    call: Call = request.scope["jingyin"]
    memory = call.service.memory
    if request.method == "GET":
        return JSONResponse({"known": await of_state(memory.known.list())})
    new = await body_as(request, NewWording)
    read = await call.service.trial(new.text or new.template or "", "", None, None, None)
    risk = read.scored.decision.risk if read.scored else 0.5
    return JSONResponse({"id": await of_state(memory.known.add(new, call.key, risk))})


async def forget(request: Request) -> Response:
    """Remove a known wording."""
    call: Call = request.scope["jingyin"]
    if await of_state(call.service.memory.known.remove(request.path_params["id"])):
        return JSONResponse({"removed": request.path_params["id"]})
    return JSONResponse({"error": "there is no known wording with this id", "request_id": call.id}, 404)


async def clear(request: Request) -> Response:
    """Clear a sender of suspicion, by the hash that `overview` and `trial` give."""
    call: Call = request.scope["jingyin"]
    sender = SENDER + request.path_params["id"]
    marked, _ = await of_state(call.service.memory.known.state.run([Op("marked", sender), Op("drop", sender)]))
    if marked:
        return JSONResponse({"cleared": request.path_params["id"]})
    return JSONResponse({"error": "no sender with this id is under suspicion", "request_id": call.id}, 404)


async def overview(request: Request) -> Response:
    """Return messages by reason and action since the start, and the senders under suspicion."""
    call: Call = request.scope["jingyin"]
    service = call.service
    (marks,) = await of_state(service.memory.known.state.run([Op("marks", SENDER)]))
    families = text_string_to_metric_families(service.metrics.render().decode())
    counts = [
        {**sample.labels, "messages": round(sample.value)}
        for family in families
        if family.name in ("jingyin_changed", "jingyin_policy", "jingyin_state_events")
        for sample in family.samples
        if sample.name.endswith("_total")
    ]
    senders = [{"id": mark.removeprefix(SENDER), "seconds": round(left)} for mark, left in marks]
    found = {"counts": counts, "senders": senders, "bundle": service.deployment.bundle_id}
    return JSONResponse({**found, "cases": service.cases is not None})


async def trial(request: Request) -> Response:
    """Return the verdict that a message would get now, and the reason; nothing is counted or kept."""
    call: Call = request.scope["jingyin"]
    asked = await body_as(request, Trial)
    answer = await call.service.trial(asked.text, asked.key, asked.sender, asked.receiver, asked.route)
    result = call.service.result(answer)
    if asked.sender and (suspects := call.service.memory.suspects):
        result["sender_id"] = suspects.sender(asked.key, asked.sender).removeprefix(SENDER)
    return JSONResponse(result)


ADMIN_ROUTES = [
    Route("/admin/known", known, methods=["GET", "POST"]),
    Route("/admin/known/{id}", forget, methods=["DELETE"]),
    Route("/admin/overview", overview),
    Route("/admin/senders/{id}", clear, methods=["DELETE"]),
    Route("/admin/trial", trial, methods=["POST"]),
]
