"""What comes in and goes out of /v1/score, as pydantic models: for validation and for the OpenAPI document."""

import json
import re
from base64 import b64decode
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from jingyin.model.errors import InputError
from jingyin.model.labels import Action, Stage
from jingyin.serve.sms import CODINGS, Segment

Coding = Literal["gsm7", "gsm7-packed", "ascii", "latin1", "ucs2", "ucs2-le", "gbk", "utf8"]
if set(get_args(Coding)) != set(CODINGS):
    raise ImportError("schema.Coding and sms.CODINGS differ")

_BASE64 = r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
Payload = Annotated[str, Field(pattern=_BASE64, max_length=87_380, description="user data without its header, base64")]
Header = Annotated[
    str, Field(pattern=_BASE64, max_length=344, description="user data header with its length octet, base64")
]
REQUEST_ID = r"^[A-Za-z0-9._-]{1,64}$"
Conversation = Annotated[
    str, Field(min_length=1, max_length=128, description="the gateway's own name for sender and receiver together")
]

T = TypeVar("T")
_SURROGATE = re.compile("[\ud800-\udfff]")


def _whole(value: Any) -> Any:  # noqa: ANN401  any JSON
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""Takes integers as JSON Schema has them: 50.0 is one."""


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Ask(_In):
    explain: bool = Field(False, description="add evidence, of the risk and of each reason; slow, at most 16 messages")
    reasons: bool = Field(True, description="name the signs of what is not let pass; false leaves them out")
    request_id: str | None = Field(
        None, pattern=REQUEST_ID, description="echoed and logged; else the header X-Request-Id"
    )
    deadline_ms: Annotated[int, Field(ge=1, le=60_000), WHOLE] | None = Field(
        None, description="from arrival to answer, instead of the default"
    )


class _AskOne(_Ask):
    conversation: Conversation | None = Field(
        None, repr=False, description="used if the service keeps conversations, else ignored"
    )
    sender: str | None = Field(None, repr=False, max_length=256, description="its number, as the gateway has it")
    receiver: str | None = Field(None, repr=False, max_length=256, description="the same")


class ScoreText(_AskOne):
    """One message."""

    text: str


class ScoreTexts(_Ask):
    """Several messages; the answer holds `results` in the same order."""

    texts: list[str]
    conversations: list[Conversation | None] | None = Field(
        None, repr=False, description="one for each of the texts, null for a message without"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.conversations is not None and len(self.conversations) != len(self.texts):
            raise PydanticCustomError("conversations", "conversations must be as many as texts; give null for none")
        return self


class SmsPart(_In):
    """One short message on the wire."""

    payload: Payload
    udh: Header = ""


class _AskBytes(_AskOne):
    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["coding"]}, {"required": ["data_coding"]}]})

    # None stands for a field that is absent; null is refused
    coding: Coding = Field(None, description="this or data_coding")  # type: ignore[arg-type]
    data_coding: Annotated[int, WHOLE] = Field(None, ge=0, le=255, description="as SMPP has it; this or coding")  # type: ignore[assignment]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.coding is None) == (self.data_coding is None):
            raise PydanticCustomError("coding", "wanted exactly one of coding and data_coding")
        return self


class ScorePayload(_AskBytes, SmsPart):
    """One short message as a gateway holds it."""


class ScoreParts(_AskBytes):
    """The parts of one concatenated message, in any order; missing ones are done without."""

    parts: list[SmsPart] = Field(min_length=1, max_length=255)


_KINDS = ("text", "texts", "payload", "parts")


def _kind(body: Any) -> str | None:  # noqa: ANN401  any JSON
    found = [kind for kind in _KINDS if kind in body] if isinstance(body, dict) else []
    return found[0] if len(found) == 1 else None


ScoreRequest = Annotated[
    Annotated[ScoreText, Tag("text")]
    | Annotated[ScoreTexts, Tag("texts")]
    | Annotated[ScorePayload, Tag("payload")]
    | Annotated[ScoreParts, Tag("parts")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message=f"wanted a JSON object with exactly one of {', '.join(_KINDS)}",
    ),
]
REQUEST: TypeAdapter[ScoreText | ScoreTexts | ScorePayload | ScoreParts] = TypeAdapter(ScoreRequest)
"""Validates the body of /v1/score."""


class Evidence(BaseModel):
    """`text` is message[start:end], in Unicode characters; `weight` is the share of the odds that goes without it.

    They are the odds of the risk, or those of a reason.
    """

    start: int
    end: int
    text: str
    weight: float


class Reason(BaseModel):
    """A sign that the message shows, and how surely; `spans` come with `explain`, and are null where `evidence` is."""

    sign: str = Field(description="an id of train/corpus/LABELS.md, say exposure")
    confidence: float = Field(description="0 to 1")
    spans: list[Evidence] | None = None


class SmsReading(BaseModel):
    """How a payload could be read; see jingyin.serve.sms.Message."""

    partial: bool
    undecodable: int
    damaged: int


class Result(BaseModel):
    """A verdict, or, when `reason` is "deadline" or "error", the action that was set for such cases and nothing else.

    "burst" holds for review what the model alone lets pass; `near_duplicates` came before it. With "conversation" the
    verdict is that on the message behind those before it, which has a stronger action than its own. `reasons` are those
    of a verdict that the model itself does not let pass, surest first; none where the bundle has no signs. `evidence`
    is null when it was not ready in time, found no place among what waits for it, or failed.
    """

    action: Action
    reason: Literal["scored", "burst", "conversation", "deadline", "error"]
    label: str | None
    risk: float | None
    probabilities: dict[str, float] | None
    stage: Stage | None
    edits: dict[str, int]
    bundle: str
    reasons: list[Reason]
    evidence: list[Evidence] | None = None
    sms: SmsReading | None = None
    near_duplicates: int | None = None


class ScoreOne(Result):
    """The answer to one message."""

    request_id: str


class ScoreMany(BaseModel):
    """The answer to several messages."""

    request_id: str
    results: list[Result]


class ErrorBody(BaseModel):
    """What came, what was wanted, what to do; never a word of the message."""

    error: str
    request_id: str | None = None


class MalformedError(InputError):
    """The body is no JSON."""


def parse(body: bytes) -> ScoreText | ScoreTexts | ScorePayload | ScoreParts:
    """Validate the body of /v1/score; raises MalformedError or InputError with all errors."""
    return read_json(REQUEST, body, skip=1)


def read_json(kind: TypeAdapter[T], body: bytes, *, skip: int = 0) -> T:
    """Validate a body; raises MalformedError or InputError with all errors.

    `skip` is the number of leading steps of an error's place that name a kind of request and no field.
    """
    try:
        return kind.validate_json(body)
    except ValidationError as error:
        first = error
    repaired = _without_lone_surrogates(body)
    if repaired is None:
        raise explain_errors(first, skip) from None
    try:
        return kind.validate_json(repaired)
    except ValidationError as error:
        raise explain_errors(error, skip) from None


def _without_lone_surrogates(body: bytes) -> bytes | None:
    """Return the body with U+FFFD for lone surrogates, no JSON for pydantic, or None if they aren't what is wrong.

    Whoever writes a message can put one in, and a refusal would be a way past the filter. Folding drops both alike.
    """
    if b"\\ud" not in body.lower():
        return None
    try:
        return _SURROGATE.sub("\ufffd", json.dumps(json.loads(body), ensure_ascii=False)).encode()
    except (ValueError, RecursionError):
        return None


def explain_errors(error: ValidationError, skip: int) -> InputError:
    """Put validation errors into words, without input: pydantic quotes it by default."""
    errors = error.errors(include_input=False, include_url=False, include_context=False)
    if errors[0]["type"] == "json_invalid":
        return MalformedError(f"the body is no JSON: {errors[0]['msg']}")
    return InputError("; ".join(_in_words(each["loc"][skip:], each["type"], each["msg"]) for each in errors[:5]))


def _in_words(place: tuple[int | str, ...], kind: str, message: str) -> str:
    # The name of an unknown field comes from the client and could hold anything, so only its parents are named.
    known = place[:-1] if kind == "extra_forbidden" else place
    named = ".".join(map(str, known))
    if kind == "extra_forbidden":
        message = "a field is unknown; see /openapi.json"
    return f"{named}: {message}" if named else message


def segments(ask: ScorePayload | ScoreParts) -> list[Segment]:
    """Return the parts of a request as bytes."""
    parts = ask.parts if isinstance(ask, ScoreParts) else [ask]
    return [Segment(b64decode(part.payload), b64decode(part.udh)) for part in parts]
