"""Routes of the review queue: cases under /admin/cases, and subscribers' reports."""

import asyncio
import contextlib
import json
import math
import time
from concurrent.futures import Future
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jingyin.model.errors import InputError, JingyinError
from jingyin.model.labels import BENIGN, FLAGGED
from jingyin.model.near_copies import CHARACTERS
from jingyin.model.text import clean
from jingyin.serve.cases.cases import TEXT, Decision, Filter, Message, ReportKind
from jingyin.serve.cases.store import StoreError
from jingyin.serve.cases.writer import Writer
from jingyin.serve.http.batcher import BusyError
from jingyin.serve.http.call import Call, body_as, of_state
from jingyin.serve.http.schema import Address, explain_errors
from jingyin.serve.memory.known import KnownAction, NewWording
from jingyin.serve.observe import log

REPORT_SECONDS = 10.0
"""Longest wait of a report for the database."""
UNREAD = ("review", "ordinary", 0.5)
"""Action, label and risk of a reported message that could not be scored."""
LABELS_OF: dict[str, tuple[str, ...]] = {"threat": (*FLAGGED, "other_threat"), "innocent": (*BENIGN, "other_threat")}
"""Decision -> labels that don't contradict it."""
_YEAR_10000 = 253_402_300_800  # in Unix seconds


class NewDecision(BaseModel):
    """The body of POST /admin/cases/ID; with the `version` that was listed, a case changed since is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    decision: Decision
    label: str | None = None
    version: int | None = None


class Report(BaseModel):
    """The body of POST /v1/report; `time` is when the subscriber received the message, in Unix seconds or ISO 8601."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = Field(repr=False)
    sender: Address | None = Field(None, repr=False)
    receiver: Address | None = Field(None, repr=False)
    time: float | str | None = None
    kind: ReportKind = "unwanted"


def _writer(request: Request) -> Writer:
    writer: Writer | None = request.scope["jingyin"].service.cases
    assert writer is not None  # else there are no such routes
    return writer


def _moment(given: float | str, name: str) -> float:
    """Return Unix seconds; raises InputError."""
    try:
        seconds = float(given)
    except ValueError:
        try:
            seconds = datetime.fromisoformat(str(given)).timestamp()
        except (ValueError, OverflowError):
            seconds = math.nan
    if not 0 <= seconds < _YEAR_10000:
        raise InputError(f"{name}: wanted Unix seconds from 0, or a time such as 2026-12-01T08:00:00+08:00")
    return seconds


async def listed(request: Request) -> Response:
    """List cases, most harmful first."""
    try:
        wanted = Filter.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise explain_errors(error, skip=0) from None
    return JSONResponse({"cases": await asyncio.to_thread(_writer(request).cases.listed, wanted)})


async def one(request: Request) -> Response:
    """Return a case with its messages and their evidence, as the bundle in use gives it."""
    case = await asyncio.to_thread(_writer(request).cases.one, request.path_params["id"])
    evidence = await request.scope["jingyin"].service.explain(case["texts"])
    for example, found in zip(case["examples"], evidence, strict=True):
        spans = found.risk if found else []
        example["evidence"] = [{"start": span.start, "end": span.end, "weight": span.weight} for span in spans]
    return JSONResponse(case)


async def decide(request: Request) -> Response:
    """Decide a case: a known wording at once, and a labelled row."""
    call: Call = request.scope["jingyin"]
    cases, memory = _writer(request).cases, call.service.memory
    body = await body_as(request, NewDecision)
    case = await asyncio.to_thread(cases.checked, request.path_params["id"], "open", body.version)
    label = label_of(case, body.decision, body.label)
    if not case["texts"]:
        raise StoreError("the texts of this case can't be read: was state_secret replaced? nothing was changed")
    # First the wording: should this process die between the two, the case is still open, and is decided again.
    known = None
    action: KnownAction = "block" if body.decision == "threat" else "pass"
    wording = NewWording(action=action, text=case["texts"][0], template=None, note=f"case {case['id']}")
    with contextlib.suppress(InputError):  # too short for a wording, but not for a row
        known = await of_state(memory.known.add(wording, call.key, case["examples"][0]["risk"]))
    try:
        await asyncio.to_thread(cases.decide, case, body.decision, label, known, call.key)
    except JingyinError:
        if known:
            await of_state(memory.known.remove(known))
        raise
    log("case_decided", request=call.id, case=case["id"], decision=body.decision, label=label, key=call.key)
    return JSONResponse({"id": case["id"], "state": "decided", "known": known, "label": label})


def label_of(case: dict[str, Any], decision: Decision, label: str | None) -> str:
    """Return the label of a decision; raises InputError for one that contradicts it.

    Without one, a threat has the label that the bundle gave, if that is flagged, else just "flagged", as `jingyin
    finetune` reads it; an innocent is ordinary.
    """
    if label is None:
        return "ordinary" if decision == "innocent" else case["label"] if case["label"] in FLAGGED else "flagged"
    if label not in LABELS_OF[decision]:
        raise InputError(f"label: wanted one of {', '.join(LABELS_OF[decision])} for the decision {decision}")
    return label


async def undo(request: Request) -> Response:
    """Open a decided case again, and forget its wording."""
    call: Call = request.scope["jingyin"]
    cases = _writer(request).cases
    version = request.query_params.get("version", "")
    if version and not version.isdecimal():
        raise InputError("version: wanted the number that the case was listed with")
    case = await asyncio.to_thread(
        cases.checked, request.path_params["id"], "decided", int(version) if version else None
    )
    if case["known"]:
        await of_state(call.service.memory.known.remove(case["known"]))
    await asyncio.to_thread(cases.undo, case)
    log("case_opened", request=call.id, case=case["id"], key=call.key)
    return JSONResponse({"id": case["id"], "state": "open"})


async def export(request: Request) -> Response:
    """Return decisions as JSON lines, which `jingyin finetune` reads."""
    since = _moment(request.query_params.get("since", "0"), "since")
    rows = await asyncio.to_thread(lambda: list(_writer(request).cases.export(since)))
    lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    return Response(lines.encode(errors="replace"), media_type="application/x-ndjson")


async def report(request: Request) -> Response:
    """Let a subscriber's report join its case; the answer comes once it is written."""
    call: Call = request.scope["jingyin"]
    body = await body_as(request, Report)
    text = body.text[:TEXT]
    cleaned = clean(text).text[:CHARACTERS]
    if not cleaned:
        raise InputError("text: the message is empty; send the text that the subscriber received")
    now = time.time()
    sent = None if body.time is None else min(now, _moment(body.time, "time"))
    try:
        reading = (await call.service.trial(text, call.key, body.sender, body.receiver, None)).scored
    except BusyError:
        reading = None
    kept: Future[None] = Future()
    verdict = (reading.decision.action, reading.decision.label, reading.decision.risk) if reading else UNREAD
    _writer(request).put(
        Message(now, text, cleaned, *verdict, (), call.key, None, body.sender, body.receiver, body.kind, sent, kept)
    )
    try:
        async with asyncio.timeout(REPORT_SECONDS):
            await asyncio.wrap_future(kept)
    except TimeoutError:
        raise StoreError("the database of cases does not answer; send the report again") from None
    return JSONResponse({"request_id": call.id, "reported": True}, 202)


CASE_ROUTES = [
    Route("/admin/cases", listed, methods=["GET"]),
    Route("/admin/cases/export", export, methods=["GET"]),
    Route("/admin/cases/{id}", one, methods=["GET"]),
    Route("/admin/cases/{id}", decide, methods=["POST"]),
    Route("/admin/cases/{id}", undo, methods=["DELETE"]),
    Route("/v1/report", report, methods=["POST"]),
]
