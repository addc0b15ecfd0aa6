"""POST /v1/score."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jingyin.model.labels import Span
from jingyin.serve.http.schema import ScoreParts, ScorePayload, ScoreText, ScoreTexts, parse, segments
from jingyin.serve.http.service import MAX_EXPLAINED, Service, TooLargeError, json_response, read_body
from jingyin.serve.sms import Message, reassemble


async def score(request: Request) -> Response:
    """Score one message, several, or one as a gateway holds it; always answers with an action.

    The request is read by hand: FastAPI's own parsing would validate in Python objects and echo input in its errors.
    """
    service: Service = request.app.state.service
    scope = request.scope
    ask = parse(await read_body(request, service))
    if ask.request_id is not None:
        scope["jingyin.id"] = ask.request_id
    texts, sms = _texts(ask)
    if ask.explain and len(texts) > MAX_EXPLAINED:
        raise TooLargeError(f"{len(texts)} messages came with explain, at most {MAX_EXPLAINED} were wanted; send fewer")
    if sms:
        _count(service, sms)
    outcomes = await service.score(texts, scope["jingyin.arrival"], ask.deadline_ms)
    results = [service.result(outcome) for outcome in outcomes]
    if ask.explain:
        for result, spans in zip(results, await service.explainer.explain(texts), strict=True):
            result["evidence"] = _evidence(spans)
    request_id = scope["jingyin.id"]
    if isinstance(ask, ScoreTexts):
        return json_response({"request_id": request_id, "results": results})
    if sms:
        results[0]["sms"] = {"partial": sms.partial, "undecodable": sms.undecodable, "damaged": sms.damaged}
    return json_response({"request_id": request_id, **results[0]})


def _texts(ask: ScoreText | ScoreTexts | ScorePayload | ScoreParts) -> tuple[list[str], Message | None]:
    if isinstance(ask, ScoreText):
        return [ask.text], None
    if isinstance(ask, ScoreTexts):
        return ask.texts, None
    message = reassemble(segments(ask), ask.coding)
    return [message.text], message


def _count(service: Service, sms: Message) -> None:
    counter = service.metrics.sms
    if sms.partial:
        counter("partial").inc()
    if sms.damaged:
        counter("damaged_header").inc(sms.damaged)
    if sms.undecodable:
        counter("undecodable_byte").inc(sms.undecodable)


def _evidence(spans: list[Span] | None) -> list[dict[str, Any]] | None:
    if spans is None:
        return None
    return [{"start": span.start, "end": span.end, "text": span.text, "weight": span.weight} for span in spans]
