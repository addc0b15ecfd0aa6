"""The bodies of POST /v1/score; openapi.json describes them, and the answers, for clients."""

import json
import re
from base64 import b64decode
from typing import Annotated, Any, Literal, Self, get_args

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
from jingyin.serve.sms import CODINGS, Segment

Coding = Literal["gsm7", "gsm7-packed", "ascii", "latin1", "ucs2", "gbk", "ucs2-le", "utf8"]
if set(get_args(Coding)) != set(CODINGS):
    raise ImportError("schema.Coding and sms.CODINGS differ")

REQUEST_ID = r"^[A-Za-z0-9._-]{1,64}$"
MAX_DEADLINE_MS = 5_000
"""A longer deadline counts as this."""
_BASE64 = r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_SURROGATE = re.compile("[\ud800-\udfff]")


def _whole(value: Any) -> Any:  # noqa: ANN401  any JSON
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""Takes integers as JSON Schema has them: 50.0 is one."""

Payload = Annotated[str, Field(pattern=_BASE64, max_length=87_380)]
Header = Annotated[str, Field(pattern=_BASE64, max_length=344)]
Address = Annotated[str, Field(max_length=256)]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Ask(_In):
    """What all four bodies may hold."""

    sender: Address | None = Field(None, repr=False)
    receiver: Address | None = Field(None, repr=False)
    route: Address | None = Field(None, repr=False)
    explain: bool = False
    reasons: bool = True
    request_id: str | None = Field(None, pattern=REQUEST_ID)
    deadline_ms: Annotated[int, Field(ge=1, le=60_000), WHOLE] | None = None


class ScoreText(Ask):
    """One message."""

    text: str


class ScoreTexts(Ask):
    """Several messages; the answer holds `results` in the same order."""

    texts: list[str]


class SmsPart(_In):
    """One short message on the wire: user data, and its header with the length octet."""

    payload: Payload
    udh: Header = ""


class _Coded(Ask):
    # None stands for a field that is absent; null is refused
    coding: Coding = None  # type: ignore[assignment]
    data_coding: Annotated[int, Field(ge=0, le=255), WHOLE] = None  # type: ignore[assignment]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.coding is None) == (self.data_coding is None):
            raise PydanticCustomError("coding", "wanted exactly one of coding and data_coding")
        return self

    @property
    def declared(self) -> str | int:
        """The coding, as sms.readings takes it."""
        return self.data_coding if self.coding is None else self.coding


class ScorePayload(_Coded, SmsPart):
    """One short message as a gateway holds it."""

    @property
    def segments(self) -> list[Segment]:
        """The message as bytes."""
        return [Segment(b64decode(self.payload), b64decode(self.udh))]


class ScoreParts(_Coded):
    """The parts of one concatenated message, in any order; missing ones are done without."""

    parts: list[SmsPart] = Field(min_length=1, max_length=255)

    @property
    def segments(self) -> list[Segment]:
        """The parts as bytes."""
        return [Segment(b64decode(part.payload), b64decode(part.udh)) for part in self.parts]


Request = ScoreText | ScoreTexts | ScorePayload | ScoreParts
_KINDS = ("text", "texts", "payload", "parts")


def _kind(body: Any) -> str | None:  # noqa: ANN401  any JSON
    found = [kind for kind in _KINDS if kind in body] if isinstance(body, dict) else []
    return found[0] if len(found) == 1 else None


REQUEST: TypeAdapter[Request] = TypeAdapter(
    Annotated[
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
)


class MalformedError(InputError):
    """The body is not JSON."""


def parse(body: bytes) -> Request:
    """Validate the body of /v1/score; raises MalformedError or InputError with all errors."""
    try:
        return REQUEST.validate_json(body)
    except ValidationError as error:
        first = error
    repaired = _without_lone_surrogates(body)
    if repaired is None:
        raise explain_errors(first) from None
    try:
        return REQUEST.validate_json(repaired)
    except ValidationError as error:
        raise explain_errors(error) from None


def _without_lone_surrogates(body: bytes) -> bytes | None:
    """Return the body with U+FFFD for lone surrogates, which pydantic refuses, or None if it has none.

    Anyone who writes a message can put one in, and a refusal would be a way past the filter. Folding drops both alike.
    """
    if b"\\ud" not in body.lower():
        return None
    try:
        return _SURROGATE.sub("\ufffd", json.dumps(json.loads(body), ensure_ascii=False)).encode()
    except (ValueError, RecursionError):
        return None


def explain_errors(error: ValidationError, skip: int = 1) -> InputError:
    """Put validation errors into words, without input: pydantic quotes it by default.

    `skip` is the number of leading steps of an error's place that name a kind of body and no field.
    """
    errors = error.errors(include_input=False, include_url=False, include_context=False)
    if errors[0]["type"] == "json_invalid":
        return MalformedError(f"the body is no JSON: {errors[0]['msg']}")
    return InputError("; ".join(_in_words(each["loc"][skip:], each["type"], each["msg"]) for each in errors[:5]))


def _in_words(place: tuple[int | str, ...], kind: str, message: str) -> str:
    # The name of an unknown field comes from the client and could hold anything, so only its parents are named.
    named = ".".join(map(str, place[:-1] if kind == "extra_forbidden" else place))
    if kind == "extra_forbidden":
        message = "a field is unknown; see /openapi.json"
    return f"{named}: {message}" if named else message
