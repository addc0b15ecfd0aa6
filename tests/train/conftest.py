"""A small made-up corpus, the run of configs/tiny.yaml on it, and toy bundles that add up weights of known words."""

import json
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from jingyin.cli import main
from jingyin.model.bundle import Calibration, Fusion, Loss, Network, Prefilter, Threshold, write_bundle
from jingyin.model.labels import LABELS
from jingyin.model.prefilter import BUCKETS
from jingyin.model.tokenizer import START, SmsTokenizer
from jingyin.train.corpus import store
from jingyin.train.corpus.store import Row

CONFIGS = Path(__file__).parents[2] / "configs"
SIZES = {"train": 320, "validation": 60, "calibration": 150, "test": 30}
PHRASES = {
    "ordinary": (
        ("周末", "明早", "下班后", "国庆", "放学以后"),
        ("一起去爬山", "给你带包子", "在校门口等你", "把伞还给阿姨", "去看新开的书店"),
        ("好不好", "记得穿厚点", "不见不散", "孩子也来", "我请客"),
    ),
    "lawful_collection": (
        ("尊敬的用户", "您好张先生", "李女士您好", "温馨提示", "客户您好"),
        ("您本期账单已出", "您的水费尚未缴纳", "您的分期今日到期", "物业费还有一期未交", "话费已欠费"),
        ("请按时还款", "如已缴纳请忽略", "逾期将计收利息", "可在网点办理", "感谢配合"),
    ),
    "debt_threat": (
        ("再不还钱", "欠债不还", "老赖听着", "今晚六点前不还", "拖了一个月"),
        ("就把你的事发给全村", "马上给你单位领导打电话", "让你孩子上不了学", "叫警察上门抓你", "把你照片贴到小区"),
        ("看你怎么做人", "全家跟着丢脸", "后果自负", "别怪我们不客气", "等着坐牢"),
    ),
    "pay_to_stop": (
        ("想让手机安静", "要我们停手", "不想天天被打扰", "要删掉那些照片", "网站不想再瘫"),
        ("转三百到这个号", "交八百保护费", "打五百块过来", "付两千赎金", "拿一千来换"),
        ("不转接着打", "钱到就停", "晚一天翻倍", "加微信谈", "过了今天不止这个价"),
    ),
    "other_threat": (
        ("走夜路", "下次碰面", "你家门口", "放学路上", "别以为搬家"),
        ("我拿刀等你", "非打断你的腿", "小心你的车", "我放火烧了它", "见一次揍一次"),
        ("你等着", "我说到做到", "谁也救不了你", "这是命", "恨你一辈子"),
    ),
}


def made_up(split: str) -> list[Row]:
    """Return rows of a split, labels in turn."""
    rng, rows = Random(split), []
    for number in range(SIZES[split]):
        label = list(PHRASES)[number % len(PHRASES)]
        text = "，".join(rng.choice(part) for part in PHRASES[label])
        rows.append(Row(text, label, f"{label}_family", "plain", "authored", f"{split}{number}", text, "", 1.0))
    return rows


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus folder as `jingyin corpus build` leaves it."""
    folder = tmp_path_factory.mktemp("corpus") / "built"
    store.write({split: made_up(split) for split in store.SPLITS}, {}, "made up", folder)
    return folder


Write = Callable[..., Path]


@pytest.fixture(scope="session")
def write_recipe(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Write configs/tiny.yaml, on the made-up corpus and with changes, under a name of its own."""
    folder = tmp_path_factory.mktemp("recipes")

    def write(name: str, without: Collection[str] = (), **changes: Any) -> Path:
        recipe = yaml.safe_load((CONFIGS / "tiny.yaml").read_text(encoding="utf-8"))
        recipe |= {"corpus": str(corpus), "rows": None, **changes}
        path = folder / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({key: value for key, value in recipe.items() if key not in without}))
        return path

    return write


@pytest.fixture(scope="session")
def tiny_run(write_recipe: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder that `jingyin train tiny.yaml` leaves; for looking at, not to be changed."""
    out = tmp_path_factory.mktemp("reference")
    command = ["jingyin", "train", str(write_recipe("tiny")), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
    return out / "tiny"


# ---- toy bundles, and rows that they can be judged on

WORDS = {
    "lawful_collection": ("账单", "缴费", "利息", "征信"),
    "debt_threat": ("曝光", "全村", "坐牢", "单位"),
    "pay_to_stop": ("轰炸", "封口", "赎金", "差评"),
    "other_threat": ("小心", "等着", "弄死", "报复"),
}
FILLER = "今明后天早上午晚我你他们去吃饭看书电影公园学校买菜回家一起走吧好的"
ROWS = {"ordinary": 200, "lawful_collection": 120, "debt_threat": 60, "pay_to_stop": 60, "other_threat": 30}

MakeBundle = Callable[..., Path]


def toy_message(label: str, number: int) -> str:
    """Return a made-up message with a word of its label, if it has any, between others."""
    rng = Random(f"{label}{number}")
    before, after = ("".join(rng.choices(FILLER, k=rng.randint(4, 30))) for _ in range(2))
    return before + (rng.choice(WORDS[label]) if label in WORDS else "") + after


def toy_rows() -> list[dict[str, str]]:
    """Return labelled rows; the first 40 threats and lawful rows are minimal pairs."""
    out = []
    for label, count in ROWS.items():
        for number in range(count):
            pair = f"p{number}" if label in ("debt_threat", "lawful_collection") and number < 40 else ""
            out.append(
                {"text": toy_message(label, number), "label": label, "family": f"{label}_{number % 3}", "pair": pair}
            )
    return out


def write_rows(path: Path, content: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled rows as JSON lines, with the same rows as train.jsonl beside."""
    return write_rows(tmp_path_factory.mktemp("data") / "test.jsonl", toy_rows())


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Write a bundle that adds up word weights: it knows WORDS but the `unknown` ones, and takes `alarms` for threats."""

    def make(
        *,
        unknown: tuple[str, ...] = (),
        alarms: Mapping[str, str] | None = None,
        labels: tuple[str, ...] = LABELS,
        padding: int = 0,
        provenance: Mapping[str, object] | None = None,
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
        golden = {"file": "model.onnx", "ids": [START], "logits": logits}
        (path / "golden.json").write_text(json.dumps([golden]), encoding="utf-8")
        (path / "card.md").write_text("toy" + " " * padding, encoding="utf-8")
        threshold = Threshold(risk=0.5, target=0.01, bound=0.01, rows=300, false_positives=0)
        fusion = Fusion(score=0.0, weights=(1.0,), bias=0.0)
        write_bundle(path, {
            "labels": labels, "review": threshold, "block": threshold.model_copy(update={"risk": 0.9}),
            "calibration": Calibration(ece_before=0.02, ece_after=0.01, rows=300),
            "prefilter": Prefilter(threshold=-1.0, probabilities=(0.2,) * 5),
            "networks": (Network(file="model.onnx", vocabulary="lexicon", max_tokens=64, fusion=fusion),),
            "passed": (1.0,), "loss": {"in corpus": Loss(lost=0, flagged=1, bound=1.0)}, "provenance": provenance or {},
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
