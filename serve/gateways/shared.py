"""Parts of long messages, shared among filters: each hands its own to the service, and gets those of the others.

A carrier with several filters may send one part through each. The service keeps them in its state, sealed, and joins
nothing itself: which parts a phone joins is the filters' business (assembly.py).
"""

import asyncio
import json
from base64 import b64decode, b64encode
from typing import Any, NamedTuple

from prometheus_client import Counter

from jingyin.serve.gateways.assembly import HeldPart, PartKey
from jingyin.serve.gateways.client import REGISTRY, Http
from jingyin.serve.gateways.codec import Message, digits
from jingyin.serve.sms import Part, Segment

SHARE_SECONDS = 0.25
"""Longest wait for the parts of other filters; without an answer a part is judged with those of its own filter."""
MAX_SECONDS = 7 * 86_400
"""Longest time for which the service keeps a part."""
_QUESTIONS = 64  # at most, at once, of all sessions
_MOST_KEYS = 64  # of a part that are shared; a client with more receivers has one filter

NOT_SHARED = Counter("jingyin_gateway_parts_not_shared", "Parts that could not be shared.", registry=REGISTRY)


class Shared(NamedTuple):
    """Parts by key, the oldest first, and the keys of which the service has forgotten some for lack of room."""

    parts: dict[PartKey, list[Message]]
    lost: list[PartKey]


class SharedParts:
    """The parts of all filters that ask one service, or one state, by one API key; they are kept for `seconds`."""

    def __init__(self, http: Http, seconds: float) -> None:
        self._http = http
        self._seconds = min(max(1, round(seconds)), MAX_SECONDS)
        self._places = asyncio.Semaphore(_QUESTIONS)

    async def exchange(self, part: HeldPart, *, again: bool) -> Shared:
        """Hand over a part, unless `again`, and return those with its keys, itself perhaps among them; never raises."""
        keys = part.keys[:_MOST_KEYS]
        try:
            answer = await self._ask(part, None if again else _text(part))
            parts = {key: [_message(text) for text in each["parts"]] for key, each in zip(keys, answer, strict=True)}
            return Shared(parts, [key for key, each in zip(keys, answer, strict=True) if each["lost"]])
        except Exception:  # whatever the error, the part must not be lost
            NOT_SHARED.inc()
            return Shared({}, [])

    async def forget(self, part: HeldPart) -> None:
        """Take back a part that was refused; never raises."""
        try:
            await self._ask(part, _text(part), forget=True)
        except Exception:  # it expires
            NOT_SHARED.inc()

    async def _ask(self, part: HeldPart, text: str | None, *, forget: bool = False) -> list[dict[str, Any]]:
        named = [json.dumps(key) for key in part.keys[:_MOST_KEYS]]
        body = json.dumps({"keys": named, "part": text, "seconds": self._seconds, "forget": forget}).encode()
        async with part.owner.places, self._places:  # a flood of parts waits, and the parts of others don't fail
            async with asyncio.timeout(SHARE_SECONDS):
                status, answer = await self._http.request("POST", "/v1/parts", body, again=True)
        if status != 200:
            raise ValueError(status)
        found: list[dict[str, Any]] = json.loads(answer)["keys"]
        return found


def _text(part: HeldPart) -> str:
    """Return a part as text: what judging it takes, and the same for equal ones."""
    message, (source, total) = part.message, part.kin
    texts = [[b64encode(each).decode() for each in text] for text in message.texts]
    return json.dumps([part.number, total, source, message.coding, texts, message.lone])


def _message(text: str) -> Message:
    number, total, source, coding, texts, lone = json.loads(text)
    segments = [Segment(b64decode(payload), b64decode(udh)) for payload, udh in texts]
    return Message(segments, coding, Part(0, total, number), digits(source), [], lone=lone)
