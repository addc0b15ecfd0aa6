from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq

from jingyin.serve.archive.campaigns import CampaignResult

Run = Callable[..., CampaignResult]

THREAT = "{}，再不还{}元我们就把你欠钱不还的事告诉通讯录里的{}，后果自负"
CODE = "您的验证码是{}，十分钟内有效，请勿告诉他人"
NAMES = ("王强", "李雪梅", "赵一", "陈建国", "司马青")
OTHERS = ("明天下午三点老地方见，记得带伞", "晚上吃火锅吗", "[照片]", "妈我到学校了别担心")
START = datetime(2018, 3, 1, 8)


def rows() -> list[dict[str, Any]]:
    """40 threats by one template, from three senders in 40 hours; 20 codes by another; four messages like no other."""
    rng = Random(4)
    threats = [
        {"text": THREAT.format(rng.choice(NAMES), 1700 + n, rng.choice(("亲友", "同事", "领导"))), "from": f"s{n % 3}",
         "to": f"r{n}", "at": (START + timedelta(hours=n)).isoformat(sep=" "), "kind": "threat"}
        for n in range(40)
    ]  # fmt: skip
    codes = [
        {"text": CODE.format(rng.randrange(100_000, 999_999)), "from": "bank", "to": f"r{n % 5}",
         "at": (START + timedelta(days=n)).isoformat(sep=" "), "kind": "code"}
        for n in range(20)
    ]  # fmt: skip
    others = [{"text": text, "from": "x", "to": None, "at": None, "kind": text} for text in OTHERS]
    return [*threats, *codes, *others]


def table(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "campaigns.parquet").to_pylist()


def members(out: Path) -> dict[str, list[int]]:
    """Return the rows of each campaign."""
    found: dict[str, list[int]] = defaultdict(list)
    for row in pq.read_table(out / "members.parquet").to_pylist():
        found[row["campaign"]].append(row["row"])
    return found
