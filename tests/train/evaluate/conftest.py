import json
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from jingyin.model.bundle import Calibration, Fusion, Prefilter, Threshold, write_bundle
from jingyin.model.labels import LABELS
from jingyin.model.prefilter import BUCKETS
from jingyin.model.tokenizer import START, SmsTokenizer

WORDS = {
    "lawful_collection": ("账单", "缴费", "利息", "征信"),
    "debt_threat": ("曝光", "全村", "坐牢", "单位"),
    "pay_to_stop": ("轰炸", "封口", "赎金", "差评"),
    "other_threat": ("小心", "等着", "弄死", "报复"),
}
FILLER = "今明后天早上午晚我你他们去吃饭看书电影公园学校买菜回家一起走吧好的"
ROWS = {"ordinary": 200, "lawful_collection": 120, "debt_threat": 60, "pay_to_stop": 60, "other_threat": 30}

MakeBundle = Callable[..., Path]


def message(label: str, number: int) -> str:
    """Return a made-up message with a word of its label, if it has any, between others."""
    rng = Random(f"{label}{number}")
    before, after = ("".join(rng.choices(FILLER, k=rng.randint(4, 30))) for _ in range(2))
    return before + (rng.choice(WORDS[label]) if label in WORDS else "") + after


def rows() -> list[dict[str, str]]:
    """Return labelled rows; the first 40 threats and lawful rows are minimal pairs."""
    out = []
    for label, count in ROWS.items():
        for number in range(count):
            pair = f"p{number}" if label in ("debt_threat", "lawful_collection") and number < 40 else ""
            out.append(
                {"text": message(label, number), "label": label, "family": f"{label}_{number % 3}", "pair": pair}
            )
    return out


def write_rows(path: Path, content: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled rows as JSON lines, with the same rows as train.jsonl beside."""
    return write_rows(tmp_path_factory.mktemp("data") / "test.jsonl", rows())


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Write a bundle that adds up word weights: it knows all WORDS but the `unknown` ones, and takes `alarms` for threats."""

    def make(
        *,
        unknown: tuple[str, ...] = (),
        alarms: Mapping[str, str] | None = None,
        labels: tuple[str, ...] = LABELS,
        padding: int = 0,
    ) -> Path:
        path = tmp_path_factory.mktemp("bundle")
        lexicon = [word for words in WORDS.values() for word in words] + sorted(set(FILLER))
        meant = {word: label for label, words in WORDS.items() for word in words if word not in unknown} | dict(
            alarms or {}
        )
        text = "".join(f"{word} {100 if len(word) > 1 else 10} n\n" for word in lexicon)
        tokenizer = SmsTokenizer.from_lexicon(text)
        tokenizer.backend.save(str(path / "tokenizer.json"))
        (path / "lexicon.txt").write_text(text, encoding="utf-8")
        weights = np.zeros((tokenizer.size, len(labels)), np.float32)
        weights[START, 0] = 4
        for word, label in meant.items():
            weights[tokenizer.backend.token_to_id(word), LABELS.index(label)] = 9
        _write_network(path / "model.onnx", weights)
        np.savez_compressed(path / "prefilter.npz", weights=np.zeros(BUCKETS, np.float16))
        logits = [0.0] * len(labels)
        logits[0] = 4.0
        (path / "golden.json").write_text(json.dumps([{"ids": [START], "logits": logits}]), encoding="utf-8")
        (path / "card.md").write_text("toy" + " " * padding, encoding="utf-8")
        threshold = Threshold(risk=0.5, target=0.01, bound=0.01, rows=300, false_positives=0)
        write_bundle(path, {
            "labels": labels, "max_tokens": 64, "review": threshold, "block": threshold.model_copy(update={"risk": 0.9}),
            "calibration": Calibration(temperature=1.0, ece_before=0.02, ece_after=0.01, rows=300),
            "join": Fusion(cap=50.0, slope=1.0, bias=0.0),
            "prefilter": Prefilter(threshold=-1.0, lost=0, flagged=1, loss_bound=1.0, passed_share=1.0, probabilities=(0.2,) * 5),
            "provenance": {},
        })  # fmt: skip
        return path

    return make


@pytest.fixture(scope="session")
def bundle(make_bundle: MakeBundle) -> Path:
    return make_bundle()


def _write_network(path: Path, weights: np.ndarray) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["weights", "input_ids"], ["each"]),
            helper.make_node("ReduceSum", ["each", "axis"], ["logits"], keepdims=0),
        ],
        "toy",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1], np.int64), "axis")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
