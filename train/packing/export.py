"""Exports a trained classifier: torch -> ONNX fp32 -> ONNX int8, each step checked against the one before."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization import QuantType, quantize_dynamic

from jingyin.model.bundle import Golden
from jingyin.model.errors import BundleError
from jingyin.model.labels import LABELS
from jingyin.model.network import ExportedClassifier, SmsClassifier
from jingyin.serve.networks import open_session
from jingyin.train.packing.graph import classifier_graph

FP32_TOLERANCE = 1e-4
MIN_AGREEMENT = 0.97
"""Smallest share of messages on which int8 and fp32 must give the same label. Fusion and thresholds are fitted on int8,
so what is lost here is not lost unseen; below this the graph is broken rather than rounded."""


def export_fp32(classifier: SmsClassifier, path: Path, samples: Sequence[list[int]]) -> None:
    """Write the classifier as ONNX: input_ids (batch, length) int64 -> logits (batch, labels + signs) float32.

    Raises BundleError if it differs from torch by more than FP32_TOLERANCE on `samples`, lists of token ids.
    """
    exported = ExportedClassifier(classifier).eval()
    onnx.save(classifier_graph(exported), str(path))
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
        op_types_to_quantize=["MatMul", "Gather"],
        # Shape inference knows nothing of onnxruntime's own operators.
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
    )  # fmt: skip
    labels = [run(open_session(path), samples)[:, : len(LABELS)].argmax(1) for path in (fp32, int8)]
    agreement = float((labels[0] == labels[1]).mean())
    if agreement < MIN_AGREEMENT:
        raise BundleError(
            f"int8 and fp32 agree on {agreement:.1%} of {len(samples)} messages, wanted at least {MIN_AGREEMENT:.0%}; "
            "train longer, or with more layers"
        )
    return agreement


def run(session: ort.InferenceSession, messages: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Return the logits (n, labels + signs) of messages, one at a time as the scorer runs them."""
    rows: list[Any] = [session.run(None, {"input_ids": np.array([ids], np.int64)})[0] for ids in messages]
    return np.concatenate(rows)


def golden(file: Path, session: ort.InferenceSession, messages: Sequence[Sequence[int]]) -> list[Golden]:
    """Return the token ids of `messages` and the logits that the network in `file` gives them on this machine."""
    return [
        Golden(file=file.name, ids=list(ids), logits=[round(float(x), 5) for x in logits])
        for ids, logits in zip(messages, run(session, messages), strict=True)
    ]
