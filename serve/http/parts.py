"""The route by which filters share parts of long messages (gateways/shared.py)."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jingyin.serve.http.admin import body_as, of_state
from jingyin.serve.http.call import Call
from jingyin.serve.http.schema import WHOLE


class SharedPart(BaseModel):
    """The body of POST /v1/parts: keys of messages, and a part that may belong to them, as the filter writes it.

    Without a part nothing is kept. With `forget` the part is no longer kept.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    keys: list[Annotated[str, Field(max_length=1_000)]] = Field(min_length=1, max_length=64, repr=False)
    part: str | None = Field(None, min_length=1, repr=False)
    seconds: Annotated[int, Field(ge=1, le=604_800), WHOLE]
    forget: bool = False


async def share(request: Request) -> Response:
    """Keep a part, or forget it; answer with the parts that each key had before."""
    call: Call = request.scope["jingyin"]
    body, memory = await body_as(request, SharedPart), call.service.memory
    if body.forget and body.part:
        await of_state(memory.forget_part(call.key, body.keys, body.part))
        return JSONResponse({"request_id": call.id, "keys": []})
    found = await of_state(memory.share_part(call.key, body.keys, body.part, body.seconds))
    return JSONResponse({"request_id": call.id, "keys": [{"parts": parts, "lost": lost} for parts, lost in found]})
