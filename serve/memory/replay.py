"""Tries a policy, a list of wordings or a bundle on recorded messages, before it is switched on."""

from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from jingyin.model.errors import InputError, faults_of
from jingyin.model.labels import Action
from jingyin.serve.answer import Answer, Context, Origin
from jingyin.serve.memory.known import NewWording
from jingyin.serve.memory.memory import Memory
from jingyin.serve.memory.secret import Secret
from jingyin.serve.memory.state import Local
from jingyin.serve.observe import Metrics
from jingyin.serve.scorer import Scored, Scorer
from jingyin.serve.settings import Settings

M = TypeVar("M", bound=BaseModel)


def _seconds(value: object) -> object:
    return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else value


class Recorded(BaseModel):
    """A line of recorded traffic; `time` in seconds or ISO 8601, `action` as it was taken, by default the bundle's."""

    model_config = ConfigDict(extra="ignore")

    text: str
    sender: str | None = None
    receiver: str | None = None
    route: str | None = None
    key: str = ""
    time: Annotated[float | None, BeforeValidator(_seconds)] = None
    action: Action | None = None


class Replayed(NamedTuple):
    """A recorded message, the action that it got then, and the answer that it would get now."""

    message: Recorded
    was: Action
    answer: Answer


def read_lines(file: Path, kind: type[M]) -> Iterator[M]:
    """Yield the JSON lines of a file; raises an InputError that names an invalid line, never its content."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield kind.model_validate_json(line)
            except ValidationError as error:
                raise InputError(f"line {number} of {file} can't be read: {faults_of(error)}") from None


async def replay(
    settings: Settings, scorer: Scorer, traffic: Path, wordings: Path | None = None
) -> AsyncIterator[Replayed]:
    """Yield each message of `traffic` with its answer under these settings, and with `wordings` known (JSON lines)."""
    now = 0.0
    memory = Memory(settings, Metrics(), Secret(bytes(32), encrypts=False), Local(clock=lambda: now))

    async def read(text: str) -> Scored:
        return next(scorer.scored([text]))

    for new in read_lines(wordings, NewWording) if wordings else ():
        risk = (await read(new.text or new.template or "")).decision.risk
        await memory.known.add(new, "replay", risk)
    for message in read_lines(traffic, Recorded):
        now = now if message.time is None else message.time
        scored = await read(message.text)
        alone = scored.decision.action
        origin = Origin(message.key, message.key, message.sender, message.receiver, float("inf"), message.route)
        answer = await memory.judge(Context(origin, now, read), Answer(scored, alone, "scored"))
        yield Replayed(message, message.action or alone, answer)
