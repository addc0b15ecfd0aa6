"""Exports a trained classifier: torch -> ONNX fp32 -> ONNX int8, each step checked against the one before."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

from jingyin.model.errors import BundleError
from jingyin.model.network import ExportedClassifier, SmsClassifier

FP32_TOLERANCE = 1e-4
MIN_AGREEMENT = 0.99
"""Smallest share of messages on which int8 and fp32 must give the same label."""


def export_fp32(classifier: SmsClassifier, path: Path, samples: Sequence[list[int]]) -> None:
    """Write the classifier as ONNX: input_ids (batch, length) int64 -> logits (batch, labels) float32.

    Raises BundleError if it differs from torch by more than FP32_TOLERANCE on `samples`, lists of token ids.
    """
    exported = ExportedClassifier(classifier).eval()
    exported.encoder.config._attn_implementation = "eager"
    example = torch.tensor([samples[0]])
    with warnings.catch_warnings():
        # The exporter that works for transformers 5 is announced as legacy and traces shape checks.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            exported, (example,), str(path), dynamo=False, opset_version=17, input_names=["input_ids"],
            output_names=["logits"], dynamic_axes={"input_ids": {0: "batch", 1: "length"}, "logits": {0: "batch"}},
        )  # fmt: skip
    session = open_session(path)
    with torch.no_grad():
        wanted = np.concatenate([exported(torch.tensor([ids])).numpy() for ids in samples])
    distance = float(np.abs(run(session, samples) - wanted).max())
    if distance > FP32_TOLERANCE:
        raise BundleError(
            f"the exported network differs from torch by {distance:.2g}, wanted at most {FP32_TOLERANCE:g}; "
            "try another version of torch or onnxruntime"
        )


def quantize(fp32: Path, int8: Path, samples: Sequence[list[int]]) -> float:
    """Write the int8 network and return the share of `samples` on which its label is that of fp32.

    Raises BundleError below MIN_AGREEMENT. Weights take 7 bits (reduce_range), since CPUs without VNNI saturate on 8:
    that is what keeps verdicts alike between machines (onnxruntime issues 14642, 5849).
    """
    quantize_dynamic(
        fp32, int8, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
        op_types_to_quantize=["MatMul", "Gather", "Gemm"],
        extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip
    labels = [run(open_session(path), samples).argmax(1) for path in (fp32, int8)]
    agreement = float((labels[0] == labels[1]).mean())
    if agreement < MIN_AGREEMENT:
        raise BundleError(
            f"int8 and fp32 agree on {agreement:.1%} of {len(samples)} messages, wanted at least {MIN_AGREEMENT:.0%}; "
            "train longer, or with more layers"
        )
    return agreement


def open_session(path: Path) -> ort.InferenceSession:
    """Open a network on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, messages: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Return the logits (n, labels) of messages, one at a time as the scorer runs them."""
    rows: list[Any] = [session.run(None, {"input_ids": np.array([ids], np.int64)})[0] for ids in messages]
    return np.concatenate(rows)


def write_golden(path: Path, session: ort.InferenceSession, messages: Sequence[Sequence[int]]) -> None:
    """Write the token ids of `messages` and the logits that this machine gives them."""
    rows = [
        {"ids": list(ids), "logits": [round(float(x), 5) for x in logits]}
        for ids, logits in zip(messages, run(session, messages), strict=True)
    ]
    path.write_text(json.dumps(rows) + "\n", encoding="utf-8")
