"""Operations on a state, with their results."""

import time
from typing import Any

import pytest

from jingyin.serve.memory.state import PUSHED, Op

MARK, MARKED = Op("mark", "s:a", 60.0, 60.0), Op("marked", "s:a")
EVERY = [
    (Op("tally", "t", 1, 600.0), 0.0),
    (Op("tally", "t", 16, 600.0), 1.0),
    (Op("tally", "t", 0, 600.0), 17.0),
    (Op("marked", "s:a"), 0),
    (Op("mark", "s:a", 5.0, 2.0), None),
    (Op("mark", "s:a", 5.0, 2.0), None),
    (Op("mark", "s:a", 1.0, 2.0), None),
    (Op("mark", "s:b", 1.0, 2.0), None),
    (Op("marked", "s:a"), 1),
    (Op("marks", "s:"), [("s:a", pytest.approx(5, abs=0.2)), ("s:b", pytest.approx(2, abs=0.2))]),
    (Op("drop", "s:a"), None),
    (Op("marks", "s:"), [("s:b", pytest.approx(2, abs=0.2))]),
    (Op("shift", "v", b"1", 5.0), []),
    (Op("shift", "v", b"\0\xff", 5.0), [b"1"]),
    (Op("shift", "v", b"3", 5.0), [b"\0\xff", b"1"]),
    (Op("shift", "v", b"4", 5.0), [b"3", b"\0\xff", b"1"]),
    (Op("shift", "v", b"", 5.0), [b"4", b"3", b"\0\xff"]),
    (Op("unshift", "v", b"4"), None),
    (Op("shift", "v", b"5", 5.0), [b"3", b"\0\xff"]),
    (Op("unshift", "v", b"3"), None),
    (Op("unshift", "v", b"4"), None),
    (Op("shift", "v", b"6", 5.0), [b"5", b"\0\xff"]),
    (Op("shift", "v", b"", 5.0), [b"6", b"5", b"\0\xff"]),
    (Op("push", "p", b"1", 5.0), ([], False)),
    (Op("push", "p", b"1", 5.0), ([b"1"], False)),
    (Op("push", "p", b"\0\xff", 5.0), ([b"1"], False)),
    (Op("push", "p", b"", 5.0), ([b"\0\xff", b"1"], False)),
    (Op("pull", "p", b"1"), None),
    (Op("pull", "none", b"1"), None),
    (Op("push", "p", b"", 5.0), ([b"\0\xff"], False)),
    *((Op("push", "q", b"%d" % i, 5.0), None) for i in range(PUSHED + 1)),
    (Op("push", "q", b"", 5.0), ([b"%d" % i for i in range(PUSHED, 0, -1)], True)),
    (Op("evicted", ""), 0),
    (Op("put", "known", (b"x", b"\0")), None),
    (Op("put", "known", (b"x", b"\1")), None),
    (Op("fields", "known"), [b"x"]),
    (Op("field", "known", b"x"), b"\1"),
    (Op("field", "known", b"y"), None),
    (Op("add", "hits", b"x"), None),
    (Op("add", "hits", b"x"), None),
    (Op("field", "hits", b"x"), b"2"),
    (Op("remove", "known", b"x"), None),
    (Op("fields", "known"), []),
    (Op("now", ""), pytest.approx(time.time(), abs=600)),
]
"""Every operation, and its result in this order."""


def check(found: list[Any]) -> None:
    for (op, wanted), result in zip(EVERY, found, strict=True):
        # Results that Op does not name are None or anything that the caller is not to look at.
        if wanted is not None or op.name == "field":
            assert result == wanted, op
