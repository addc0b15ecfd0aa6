"""A small made-up corpus, the run of configs/tiny.yaml on it, and rows that toy bundles can be judged on."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from tests import json_lines
from tests.command import run_command
from tests.toy_bundle import FILLER, WORDS, MakeBundle

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


@contextmanager
def few_checkpoints() -> Iterator[None]:
    """Two checkpoints a run: the usual twenty, of which each writes all weights, take as long as a toy's training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jingyin.train.loop._CHECKPOINTS", 2)
        yield


@pytest.fixture(scope="session")
def tiny_run(write_recipe: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder that `jingyin train tiny.yaml` leaves; for looking at, not to be changed."""
    out = tmp_path_factory.mktemp("reference")
    with few_checkpoints():
        assert run_command("train", write_recipe("tiny"), "--out", out) == 0
    return out / "tiny"


# ---- rows that toy bundles can be judged on

ROWS = {"ordinary": 200, "lawful_collection": 120, "debt_threat": 60, "pay_to_stop": 60, "other_threat": 30}


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


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled rows as JSON lines, with the same rows as train.jsonl beside."""
    return json_lines.write(tmp_path_factory.mktemp("data") / "test.jsonl", toy_rows())


@pytest.fixture(scope="session")
def bundle(make_bundle: MakeBundle) -> Path:
    return make_bundle()
