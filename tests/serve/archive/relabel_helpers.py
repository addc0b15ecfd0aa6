import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from jingyin.serve.archive.relabel import RelabelResult

THREAT = "有人出钱让我每天拨你的号，想清静就转两百到这个微信"
TEXTS = (
    "明天下午三点老地方见，记得带伞",
    THREAT,
    "您的验证码是482913，请勿告诉他人",
    "",
    "再不还钱就把事情发给你通讯录所有人",
)

TEXT_VALUES = st.text(max_size=12) | st.sampled_from(
    ["", "你好，还钱", 'a"b', "x\ny", "\r\n", "，;\t", "\x00", "\u2028", "😀"]
)
VALUES = st.none() | st.integers() | st.floats(allow_nan=False) | st.booleans() | TEXT_VALUES \
    | st.lists(st.integers(), max_size=2) \
    | st.dictionaries(st.sampled_from("ab"), st.integers() | TEXT_VALUES, max_size=2)  # fmt: skip
"""Whatever a column of JSON lines may hold."""

Here = Callable[..., RelabelResult]


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"id": n, "text": TEXTS[n % len(TEXTS)] + "啊" * (n % 3), "old": "ordinary", "family": f"f{n % 2}"}
        for n in range(count)
    ]


class KilledError(BaseException):
    """Ends a run where it stands; not an Exception, so that nobody handles it."""


def stop_at(patch: pytest.MonkeyPatch, number: int, error: BaseException) -> list[int]:
    """Raise at the so-manieth step that touches the disk: an fsync or a rename."""
    steps = [0]

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object) -> object:
            steps[0] += 1
            if steps[0] == number:
                raise error
            return real(*arguments)

        return step

    patch.setattr(os, "fsync", counted(os.fsync))
    patch.setattr(Path, "replace", counted(Path.replace))
    return steps


def kill_at(number: int, run: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Run up to the so-manieth step that touches the disk, and end there."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):  # noqa: PT012  match: it says nothing
        stop_at(patch, number, KilledError())
        run(*arguments, **options)


def contents(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.iterdir())}
