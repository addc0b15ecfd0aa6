"""POST /v1/score."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jingyin.model.labels import Span
from jingyin.serve.explain import Explanation
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
    outcomes = await service.score(texts, scope["jingyin.arrival"], ask.deadline_ms, _conversations(ask))
    results = [service.result(outcome) for outcome in outcomes]
    if not ask.reasons:
        for result in results:
            result["reasons"] = []
    if ask.explain:
        for result, found in zip(results, await service.explainer.explain(texts), strict=True):
            _add_evidence(result, found)
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


def _conversations(ask: ScoreText | ScoreTexts | ScorePayload | ScoreParts) -> list[str | None] | None:
    if isinstance(ask, ScoreTexts):
        return ask.conversations
    return None if ask.conversation is None else [ask.conversation]


def _count(service: Service, sms: Message) -> None:
    counter = service.metrics.sms
    if sms.partial:
        counter("partial").inc()
    if sms.damaged:
        counter("damaged_header").inc(sms.damaged)
    if sms.undecodable:
        counter("undecodable_byte").inc(sms.undecodable)


def _add_evidence(result: dict[str, Any], found: Explanation | None) -> None:
    """Add the evidence of the risk, and to each reason its own; null where there is none."""
    result["evidence"] = None if found is None else _plain(found.risk)
    for reason in result["reasons"]:
        reason["spans"] = None if found is None else _plain(found.reasons.get(reason["sign"], []))


def _plain(spans: list[Span]) -> list[dict[str, Any]]:
    return [{"start": span.start, "end": span.end, "text": span.text, "weight": span.weight} for span in spans]
