"""Toy bundles, whose network adds up weights of known words; they need onnx to be written."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from jingyin import Scorer
from jingyin.model.bundle import (
    Calibration,
    Fusion,
    Missed,
    Network,
    Point,
    Prefilter,
    PrefilterExit,
    SignScale,
    Threshold,
    write_bundle,
)
from jingyin.model.labels import LABELS
from jingyin.model.prefilter import BUCKETS
from jingyin.model.tokenizer import START, SmsTokenizer

MakeBundle = Callable[..., Path]

WORDS = {
    "lawful_collection": ("账单", "缴费", "利息", "征信"),
    "debt_threat": ("曝光", "全村", "坐牢", "单位"),
    "pay_to_stop": ("轰炸", "封口", "赎金", "差评"),
    "other_threat": ("小心", "等着", "弄死", "报复"),
}
FILLER = "今明后天早上午晚我你他们去吃饭看书电影公园学校买菜回家一起走吧好的"

_ALONE, _WORD = -4.0, 9.0  # a sign's logit without its words, and what each of them adds


def write_toy_bundle(
    path: Path,
    *,
    unknown: tuple[str, ...] = (),
    alarms: Mapping[str, str] | None = None,
    labels: tuple[str, ...] = LABELS,
    signs: Mapping[str, str] | None = None,
    padding: int = 0,
    provenance: Mapping[str, object] | None = None,
    curve: Sequence[Point] = (),
) -> Path:
    """Write a bundle to the folder `path`, and return it.

    It knows WORDS but the `unknown` ones, and takes `alarms` (word -> label) for threats. `signs` (word -> sign) gives
    it these signs, in this order: each of confidence 0.993 with one of its words, and a reason from 0.5 on.
    """
    lexicon = [word for words in WORDS.values() for word in words] + sorted(set(FILLER))
    text = "".join(f"{word} {100 if len(word) > 1 else 10} n\n" for word in lexicon)
    tokenizer = SmsTokenizer.from_lexicon(text)
    tokenizer.backend.save(str(path / "tokenizer.json"))
    (path / "lexicon.txt").write_text(text, encoding="utf-8")
    named = tuple(dict.fromkeys((signs or {}).values()))
    weights = np.zeros((tokenizer.size, len(labels) + len(named)), np.float32)
    weights[START, 0], weights[START, len(labels) :] = 4, _ALONE
    meant = {word: label for label, words in WORDS.items() for word in words if word not in unknown} | dict(
        alarms or {}
    )
    for word, label in meant.items():
        if label in labels:
            weights[tokenizer.backend.token_to_id(word), labels.index(label)] = 9
    for word, sign in (signs or {}).items():
        weights[tokenizer.backend.token_to_id(word), len(labels) + named.index(sign)] = _WORD
    _write_network(path / "model.onnx", weights)
    np.savez_compressed(path / "prefilter.npz", weights=np.zeros((2, BUCKETS), np.float16))
    golden = {"file": "model.onnx", "ids": [START], "logits": weights[START].tolist()}
    (path / "golden.json").write_text(json.dumps([golden]), encoding="utf-8")
    (path / "card.md").write_text("toy" + " " * padding, encoding="utf-8")
    threshold = Threshold(risk=0.5, target=0.01, bound=0.01, rows=300, false_positives=0)
    fusion = Fusion(scores=(0.0, 0.0), weights=(1.0,), bias=0.0)
    exit_ = PrefilterExit(threshold=-1.0, probabilities=(1 / len(labels),) * len(labels))
    scale = SignScale(slope=1.0, bias=0.0, threshold=0.5, precision=1.0, found=10)
    write_bundle(path, {
        "labels": labels, "review": threshold, "block": threshold.model_copy(update={"risk": 0.9}),
        "calibration": Calibration(ece_before=0.02, ece_after=0.01, rows=300),
        # The prefilter's scores are 0: it stops nothing.
        "prefilter": Prefilter(ordinary=exit_, lawful=exit_),
        "discount": 1.0, "provisional": Fusion(scores=(0.0, 0.0), weights=(), bias=-3.0),
        "networks": (Network(file="model.onnx", vocabulary="lexicon", max_tokens=64, fusion=fusion),),
        "passed": (1.0,), "signs": dict.fromkeys(named, scale),
        "loss": {"in corpus": Missed(lost=0, flagged=1, bound=1.0)},
        "provenance": provenance or {}, "curve": curve,
    })  # fmt: skip
    return path


def set_exits(scorer: Scorer, ordinary: float, lawful: float) -> None:
    """Set the thresholds of the prefilter of a loaded scorer."""
    manifest = scorer.bundle.manifest
    exits = Prefilter(
        ordinary=manifest.prefilter.ordinary.model_copy(update={"threshold": ordinary}),
        lawful=manifest.prefilter.lawful.model_copy(update={"threshold": lawful}),
    )
    scorer.bundle = replace(scorer.bundle, manifest=manifest.model_copy(update={"prefilter": exits}))


def _write_network(path: Path, weights: np.ndarray) -> None:
    """Write a network whose logits for a unit are the sums over its tokens, and START, which counts in each unit."""
    nodes = [
        helper.make_node("Gather", ["weights", "input_ids"], ["each"]),
        helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
        helper.make_node("Squeeze", ["length"], ["count"]),
        helper.make_node("Range", ["zero", "count", "one"], ["places"]),
        helper.make_node("Split", ["spans"], ["start", "end"], axis=1, num_outputs=2),
        helper.make_node("GreaterOrEqual", ["places", "start"], ["after"]),
        helper.make_node("Less", ["places", "end"], ["before"]),
        helper.make_node("And", ["after", "before"], ["inside"]),
        helper.make_node("Equal", ["places", "zero"], ["first"]),
        helper.make_node("Or", ["inside", "first"], ["own"]),
        helper.make_node("Cast", ["own"], ["within"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["within", "each"], ["sums"]),
        helper.make_node("Squeeze", ["sums", "axis"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "length"]),
            helper.make_tensor_value_info("spans", TensorProto.INT64, ["units", 2]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["units", weights.shape[1]])],
        [
            numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([0], np.int64), "axis"),
            *(numpy_helper.from_array(np.array(i, np.int64), name) for i, name in enumerate(("zero", "one"))),
        ],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
