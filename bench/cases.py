"""The review queue: many cases, and what it costs the verdict.

python bench/cases.py [CASES]              writing, listing, opening again; 100,000 by default, two minutes
python bench/cases.py load RATE [FILE...]  latency at RATE messages/s next to two services without the queue; a minute

For `load` the services run at once and take turns: the same messages, all different (traffic.py), go to each. How far
the two without the queue differ is the noise. All flagged messages are kept.
"""

import random
import sqlite3
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import traffic
from load import Server
from load_client import LoadRun, render

from jingyin.serve.cases.cases import Cases, Filter, Message
from jingyin.serve.cases.store import Store
from jingyin.serve.memory.secret import Secret
from jingyin.serve.settings import CaseSettings

SECONDS = 4
WAYS = ("without", "again", "queue")


def load(rate: int, files: list[Path]) -> None:
    """Print p50, p99 and CPU time of each round, then their medians; the first round warms up and isn't counted."""
    messages, size = traffic.distinct(files, 60_000, seed=1), rate * SECONDS
    found: list[dict[str, list[float]]] = []
    with TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {}
        for way in WAYS:
            queue = {"JINGYIN_SERVE_CASES": '{"block_share": 1}'} if way == "queue" else {}
            servers[way] = stack.enter_context(Server("jingyin", STATE_DIRECTORY=f"{folder}/{way}", **queue))
        for number in range(len(messages) // size):
            requests = [render({"text": text}) for text in messages[number * size : (number + 1) * size]]
            found.append({})
            for way in random.Random(number).sample(WAYS, len(WAYS)):
                before = servers[way].cpu_seconds()
                run = LoadRun(iter(requests), servers[way].port, 512, SECONDS, rate)
                time.sleep(1)  # what is queued is written
                spent = 1e3 * (servers[way].cpu_seconds() - before) / size
                found[-1][way] = [run.milliseconds(0.5), run.milliseconds(0.99), spent]
                print(f"{way:8}{run.row()}   CPU {spent:.3f} ms a message", flush=True)
        with closing(sqlite3.connect(f"{folder}/queue/cases.sqlite")) as database:
            kept = database.execute("SELECT sum(count) FROM cases").fetchone()[0]
    print(f"kept: {kept:,} of {len(found) * size:,}")
    for i, name in enumerate(("p50", "p99", "CPU")):
        for way in WAYS[1:]:
            changes = sorted(each[way][i] / each["without"][i] - 1 for each in found[1:])
            print(f"{name} {way}: {median(each[way][i] for each in found[1:]):.3f} ms, without "
                  f"{median(each['without'][i] for each in found[1:]):.3f}; next to that of its round "
                  f"{changes[0]:+.1%} to {changes[-1]:+.1%}, median {median(changes):+.1%}")  # fmt: skip


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
        cases.listed(Filter(limit=1))
        print(f"opened again, and the first case read: {1e3 * (time.perf_counter() - start):.0f} ms")
        for name, wanted in (
            ("50", Filter()),
            ("1,000", Filter(limit=1_000)),
            ("50 of a reason", Filter(reason="deadline")),
            ("a text that none has", Filter(text="无此文本")),
        ):
            start = time.perf_counter()
            cases.listed(wanted)
            print(f"listed, {name}: {1e3 * (time.perf_counter() - start):.0f} ms")
        start = time.perf_counter()
        cases.expire()
        print(f"expired: {1e3 * (time.perf_counter() - start):.0f} ms")
        cases.store.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["load"]:
        load(int(sys.argv[2]), [Path(each) for each in sys.argv[3:]])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
