"""The review queue with many cases: writing, listing, opening again.

python bench/cases.py [CASES]     100,000 by default, a minute for 25,000
"""

import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from jingyin.serve.cases.cases import Cases, Filter, Message
from jingyin.serve.cases.settings import CaseSettings
from jingyin.serve.cases.store import Store
from jingyin.serve.memory.secret import Secret


def main(number: int) -> None:
    secret, settings, chance = Secret(bytes(32), encrypts=True), CaseSettings(cases=2 * number), random.Random(1)
    with TemporaryDirectory() as folder:

        def opened() -> Cases:
            return Cases(Store(Path(folder) / "cases.sqlite", secret), secret, settings, lambda *_: None)

        def text() -> str:
            return "".join(chr(0x4E00 + chance.randrange(3_000)) for _ in range(40))

        cases, start = opened(), time.perf_counter()
        for _ in range(0, number, 500):
            now = time.time()
            cases.keep([
                Message(now, each, each, "review", "debt_threat", chance.random(), ("deadline",), "gw", "a", each, each)
                for each in (text() for _ in range(500))
            ])  # fmt: skip
        print(f"written: {number:,} cases, {1e3 * (time.perf_counter() - start) / number:.2f} ms each")
        cases.store.close()
        start = time.perf_counter()
        cases = opened()
        cases.listed(Filter(), 1)
        print(f"opened again, and the first case read: {1e3 * (time.perf_counter() - start):.0f} ms")
        for name, wanted, limit in (
            ("50", Filter(), 50),
            ("1,000", Filter(), 1_000),
            ("50 of a reason", Filter(reason="deadline"), 50),
            ("a text that none has", Filter(text="无此文本"), 50),
        ):
            start = time.perf_counter()
            cases.listed(wanted, limit)
            print(f"listed, {name}: {1e3 * (time.perf_counter() - start):.0f} ms")
        start = time.perf_counter()
        cases.expire()
        print(f"expired: {1e3 * (time.perf_counter() - start):.0f} ms")
        cases.store.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
