"""A gateway in a test: it has a memory, and a scorer that takes risks from the text, as in "[0.4] 你好"."""

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from jingyin.model.cascade import Decision
from jingyin.model.labels import LABELS, Action
from jingyin.model.text import CleanString, clean
from jingyin.serve.answer import Answer, Context, Origin
from jingyin.serve.memory.memory import Memory
from jingyin.serve.memory.secret import Secret
from jingyin.serve.memory.state import Local, Op, State
from jingyin.serve.observe import Metrics
from jingyin.serve.scorer import Scored
from jingyin.serve.settings import Settings

KEY = bytes(range(32))


def scored(text: str, risk: float, *, final: bool = True) -> Scored:
    action: Action = "block" if risk >= 0.9 else "review" if risk >= 0.5 else "pass"
    rest = dict.fromkeys(LABELS, (1 - risk) / 4) | {"debt_threat": risk}
    return Scored(clean(text), Decision("debt_threat", rest, risk, action, "network"), 0.0, False, final)


class Slow:
    """A state that answers after so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.local = seconds, Local()

    async def run(self, ops: Sequence[Op]) -> list[Any]:
        await asyncio.sleep(self.seconds)
        return self.local.run_now(ops)


class MemoryUser:
    """Sends messages with a `risk`; joined texts and parts have the risk of the first word of `risks` in them."""

    def __init__(self, state: State | None = None, *, encrypts: bool = False, **settings: Any) -> None:
        self.metrics = Metrics()
        self.state = Local() if state is None else state
        self.secret = Secret(KEY, encrypts=encrypts)
        self.memory = Memory(Settings(**settings), self.metrics, self.secret, self.state)
        self.risks: dict[str, float] = {}
        self.read: list[str] = []

    async def send(
        self, text: str, risk: float = 0.0, *, sender: str | None = None, receiver: str | None = None, key: str = "gw",
        route: str | None = None, final: bool = True, on_deadline: Action = "pass",
    ) -> Answer:  # fmt: skip
        async def read(other: str) -> Scored | None:
            assert isinstance(other, CleanString)
            self.read.append(other)
            found = next((risk for word, risk in self.risks.items() if re.search(word, other)), 0.0)
            return scored(other, found)

        found = scored(text, risk, final=final)
        action = found.decision.action if final else on_deadline
        answer = Answer(found, action, "scored" if final else "deadline")
        origin = Origin(key, key, sender, receiver, asyncio.get_running_loop().time() + 1, route)
        return await self.memory.judge(Context(origin, 0.0, read), answer)

    async def reason(self, *args: Any, **options: Any) -> str:
        """Return action and reason in one, as in "review sender"."""
        answer = await self.send(*args, **options)
        return f"{answer.action} {answer.reason}"
