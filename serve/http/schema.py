"""The bodies of POST /v1/score and /v1/parts; openapi.json describes them, and the answers, for clients."""

import json
from base64 import b64decode
from contextlib import suppress
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

from jingyin.model.errors import InputError, JingyinError
from jingyin.serve.answer import RefusedError
from jingyin.serve.encodings import replaced
from jingyin.serve.sms import CODINGS, Segment

Coding = Literal[
    "gsm7", "gsm7-packed", "ascii", "latin1", "ucs2", "gbk", "ksc5601", "jis", "euc-jp", "shift-jis", "big5",
    "ucs2-le", "utf8",
]  # fmt: skip
if set(get_args(Coding)) != set(CODINGS):
    raise ImportError("schema.Coding and sms.CODINGS differ")

REQUEST_ID = r"^[A-Za-z0-9._-]{1,64}$"
MAX_DEADLINE_MS = 5_000
"""A longer deadline counts as this."""
_BASE64 = r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"

WHOLE = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
"""Accepts integers as JSON Schema defines them: 50.0 is one."""

Payload = Annotated[str, Field(pattern=_BASE64, max_length=87_380)]
Header = Annotated[str, Field(pattern=_BASE64, max_length=344)]
Address = Annotated[str, Field(max_length=256)]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ScoreBody(_In):
    """Fields common to all four bodies."""

    sender: Address | None = Field(None, repr=False)
    receiver: Address | None = Field(None, repr=False)
    route: Address | None = Field(None, repr=False)
    explain: bool = False
    reasons: bool = True
    request_id: str | None = Field(None, pattern=REQUEST_ID)
    deadline_ms: Annotated[int, Field(ge=1, le=60_000), WHOLE] | None = None


class ScoreText(ScoreBody):
    """One message."""

    text: str


class ScoreTexts(ScoreBody):
    """Several messages; the answer holds `results` in the same order."""

    texts: list[str]


class SmsPart(_In):
    """One short message on the wire: user data, and its header with the length octet."""

    payload: Payload
    udh: Header = ""


class _Coded(ScoreBody):
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
    """The parts of one concatenated message, in any order; some may be missing."""

    parts: list[SmsPart] = Field(min_length=1, max_length=255)

    @property
    def segments(self) -> list[Segment]:
        """The parts as bytes."""
        return [Segment(b64decode(part.payload), b64decode(part.udh)) for part in self.parts]


AnyBody = ScoreText | ScoreTexts | ScorePayload | ScoreParts
_KINDS = ("text", "texts", "payload", "parts")


def _kind(body: Any) -> str | None:  # noqa: ANN401  any JSON
    found = [kind for kind in _KINDS if kind in body] if isinstance(body, dict) else []
    return found[0] if len(found) == 1 else None


BODY: TypeAdapter[AnyBody] = TypeAdapter(
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


class SharedPart(_In):
    """The body of POST /v1/parts: keys of messages, and a part that may belong to them, as the filter writes it.

    Without a part nothing is kept. With `forget` the part is no longer kept.
    """

    keys: list[Annotated[str, Field(max_length=1_000)]] = Field(min_length=1, max_length=64, repr=False)
    part: str | None = Field(None, min_length=1, repr=False)
    seconds: Annotated[int, Field(ge=1, le=604_800), WHOLE]
    forget: bool = False


def parse(body: bytes) -> AnyBody:
    """Validate the body of /v1/score; raises RefusedError for no JSON, or InputError with all errors.

    Lone surrogates, which pydantic refuses, become U+FFFD: any sender can put one into a message, and a refusal would
    be a way past the filter. Folding drops both.
    """
    try:
        return BODY.validate_json(body)
    except ValidationError as first:
        error = first
    if b"\\ud" in body.lower():
        with suppress(ValueError, RecursionError):
            body = replaced(json.dumps(json.loads(body), ensure_ascii=False))[0].encode()
            try:
                return BODY.validate_json(body)
            except ValidationError as second:
                error = second
    raise explain_errors(error)


def explain_errors(error: ValidationError, skip: int = 1) -> JingyinError:
    """Put validation errors into words, without input: pydantic quotes it by default.

    `skip` is the number of leading items of an error's location that name a kind of body rather than a field.
    """
    errors = error.errors(include_input=False, include_url=False, include_context=False)
    if errors[0]["type"] == "json_invalid":
        return RefusedError(400, f"the body is no JSON: {errors[0]['msg']}")
    words = []
    for each in errors[:5]:
        place, message = each["loc"][skip:], each["msg"]
        if each["type"] == "extra_forbidden":  # the name comes from the client and could hold anything
            place, message = place[:-1], "a field is unknown; see /openapi.json"
        words.append(": ".join(filter(None, (".".join(map(str, place)), message))))
    return InputError("; ".join(words))
