"""The Open Inference Protocol v2 over HTTP, with its binary tensor extension, for KServe and Triton clients.

In: one BYTES tensor of n messages. Out, n rows each: `action`, `label`, `reason`, `reasons` (BYTES), `risk` (FP32) and
`probabilities` (FP32, n x labels). `reasons` are ids of signs, surest first, with commas between them. A row with a
verdict has the reason "scored", "burst" or "conversation"; one without has "deadline" or "error", label and reasons "",
risk and probabilities 0.
"""

import struct
from importlib.metadata import version
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from jingyin.model.errors import InputError
from jingyin.model.labels import LABELS
from jingyin.serve.http.openapi import score_responses
from jingyin.serve.http.schema import WHOLE, MalformedError, read_json
from jingyin.serve.http.service import Service, json_response, read_body

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
_BINARY = "binary_tensor_data"
_LENGTH = "inference-header-content-length"
Output = Literal["action", "label", "reason", "reasons", "risk", "probabilities"]
_OUTPUTS: dict[Output, str] = {
    "action": "BYTES",
    "label": "BYTES",
    "reason": "BYTES",
    "reasons": "BYTES",
    "risk": "FP32",
    "probabilities": "FP32",
}
Name = dict[str, Any]


class _In(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)  # the protocol lets clients add parameters


class InputTensor(_In):
    """The messages; with the binary extension `data` is missing and `binary_data_size` set."""

    name: str
    shape: list[Annotated[int, Field(ge=0), WHOLE]] = Field(
        min_length=1, description="its product is the number of messages"
    )
    datatype: Literal["BYTES"]
    data: list[str] | list[list[str]] | None = None
    parameters: dict[str, Any] = {}


class OutputRequest(_In):
    """A wanted output."""

    name: Output
    parameters: dict[str, Any] = {}


class InferRequest(_In):
    """The body of an infer request, or its JSON header with the binary extension; described in openapi.py."""

    id: str | None = Field(None, max_length=64)
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[OutputRequest] | None = None
    parameters: dict[str, Any] = {}


REQUEST = TypeAdapter(InferRequest)


@router.get("")
async def server_metadata() -> Name:
    """Name the server."""
    return {"name": "jingyin", "version": version("jingyin"), "extensions": [_BINARY]}


@router.get("/health/live")
async def liveness() -> dict[str, bool]:
    """Say that the process answers."""
    return {"live": True}


@router.get("/health/ready", responses={503: {"description": "draining"}})
@router.get("/models/jingyin/ready", responses={503: {"description": "draining"}})
async def readiness(request: Request) -> Response:
    """Say whether requests are welcome: the golden check was passed before the socket opened."""
    service: Service = request.app.state.service
    return json_response({"ready": not service.draining}, 503 if service.draining else 200)


@router.get("/models/jingyin")
async def model_metadata(request: Request) -> Name:
    """Describe the tensors."""
    service: Service = request.app.state.service
    shapes = {"probabilities": [-1, len(LABELS)]}
    return {
        "name": "jingyin",
        "versions": [service.deployment.bundle_id],
        "platform": "onnxruntime",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": n, "datatype": kind, "shape": shapes.get(n, [-1])} for n, kind in _OUTPUTS.items()],
    }


@router.post("/models/jingyin/infer", responses=score_responses(dict[str, Any]))
async def infer(request: Request) -> Response:
    """Score a BYTES tensor of messages."""
    service: Service = request.app.state.service
    body = await read_body(request, service)
    header, binary = _split(body, request.headers.get(_LENGTH))
    ask = read_json(REQUEST, header)
    texts = _texts(ask.inputs[0], binary)
    wanted = _wanted(ask)
    outcomes = await service.score(texts, request.scope["jingyin.arrival"], None)
    results = [service.result(outcome) for outcome in outcomes]
    return _response(ask, service, results, wanted)


def _split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    if length is None:
        return body, b""
    if not length.isascii() or not length.isdigit() or int(length) > len(body):
        raise MalformedError("Inference-Header-Content-Length must be a number of bytes within the body")
    return body[: int(length)], body[int(length) :]


def _texts(tensor: InputTensor, binary: bytes) -> list[str]:
    if "binary_data_size" in tensor.parameters:
        if tensor.parameters["binary_data_size"] != len(binary):
            raise InputError("binary_data_size differs from the bytes after the header")
        texts = _read_binary(binary)
    else:
        texts = [text for row in tensor.data or [] for text in ([row] if isinstance(row, str) else row)]
    if prod(tensor.shape) != len(texts):
        raise InputError(f"{len(texts)} messages came, the shape says otherwise")
    return texts


def _read_binary(binary: bytes) -> list[str]:
    """Each element is its length (uint32, little-endian) and its bytes; bytes that are no UTF-8 become U+FFFD."""
    texts, at = [], 0
    while at < len(binary):
        if at + 4 > len(binary):
            raise InputError("the binary tensor ends within a length")
        (size,) = struct.unpack_from("<I", binary, at)
        at += 4 + size
        if at > len(binary):
            raise InputError("the binary tensor ends within a message")
        texts.append(binary[at - size : at].decode("utf-8", "replace"))
    return texts


def _wanted(ask: InferRequest) -> dict[Output, bool]:
    """Return output name -> whether in binary."""
    everywhere = ask.parameters.get("binary_data_output") is True
    if ask.outputs is None:
        return dict.fromkeys(_OUTPUTS, everywhere)
    return {output.name: output.parameters.get("binary_data", everywhere) is True for output in ask.outputs}


def _response(ask: InferRequest, service: Service, results: list[Name], wanted: dict[Output, bool]) -> Response:
    tail, outputs = [], []
    for name, binary in wanted.items():
        values = _values(name, results)
        shape = [len(results), len(LABELS)] if name == "probabilities" else [len(results)]
        output: Name = {"name": name, "datatype": _OUTPUTS[name], "shape": shape}
        if binary:
            tail.append(_write_binary(values, _OUTPUTS[name]))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = values
        outputs.append(output)
    content = {"model_name": "jingyin", "model_version": service.deployment.bundle_id, "outputs": outputs}
    head = orjson.dumps({"id": ask.id, **content} if ask.id is not None else content)
    if not tail:
        return Response(head, media_type="application/json")
    return Response(head + b"".join(tail), 200, {_LENGTH: str(len(head))}, "application/octet-stream")


def _values(name: str, results: list[Name]) -> list[Any]:
    if name == "probabilities":
        return [p for result in results for p in ((result[name] or {}).values() or [0.0] * len(LABELS))]
    if name == "reasons":
        return [",".join(reason["sign"] for reason in result[name]) for result in results]
    nothing: Any = 0.0 if name == "risk" else ""
    return [nothing if result[name] is None else result[name] for result in results]


def _write_binary(values: list[Any], datatype: str) -> bytes:
    if datatype == "FP32":
        return np.array(values, "<f4").tobytes()
    encoded = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(value)) + value for value in encoded)
