"""Load test of `jingyin serve` over loopback, beside an endpoint that does nothing and a naive service.

    python bench/load.py                          authored messages, about two minutes
    python bench/load.py FILE... --seconds 10     ordinary messages of your own

Traffic is described in traffic.py. Server and client (load_client.py) are one process each on this machine. Every
server starts with an empty cache; the share of answers from it is printed. Batches of 64 are measured against
score_many in this process: the same messages once each, in the same order, both from an empty cache.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import traffic
from load_client import LoadRun, render

BASELINE = (
    "import uvicorn, load_baselines; uvicorn.run(load_baselines.{}(), port=PORT, access_log=False, log_level='error')"
)
SERVERS = {
    "jingyin": "from jingyin.serve.http.process import run_server; "
    "from jingyin.serve.settings import load_settings; run_server(load_settings(port=PORT))",
    "floor": BASELINE.format("floor"),
    "naive": BASELINE.format("naive"),
}
BATCH = 64
HOUR = 3600.0


class Server:
    """A server process on a free port, ended by SIGTERM."""

    def __init__(self, name: str, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-c", SERVERS[name].replace("PORT", str(self.port))]
        self._process = subprocess.Popen(
            command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
        )

    def __enter__(self) -> "Server":
        for _ in range(600):
            try:  # a worker answers once its networks are warm
                urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=60).close()
                return self
            except HTTPError:  # the baselines have no such route
                return self
            except OSError:
                time.sleep(0.1)
        raise SystemExit("the server did not start")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)

    def megabytes(self) -> float:
        parent = psutil.Process(self._process.pid)
        return sum(each.memory_info().rss for each in (parent, *parent.children(recursive=True))) / 1e6

    def cpu_seconds(self) -> float:
        parent = psutil.Process(self._process.pid)
        times = [each.cpu_times() for each in (parent, *parent.children(recursive=True))]
        return sum(each.user + each.system for each in times)

    def from_cache(self) -> float:
        """Return the share of messages so far that the cache answered."""
        with urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            lines = [line.decode() for line in answer if line.startswith(b"jingyin_messages_total")]
        counts = [(float(line.split()[1]), 'stage="cache"' in line) for line in lines]
        return sum(count for count, cache in counts if cache) / sum(count for count, _ in counts)


def singles(name: str, server: Server, messages: Sequence[str], seconds: float) -> tuple[float, LoadRun, LoadRun]:
    """Print closed loops; open loops at half and at three times the best rate of those; return that and the latter."""
    requests = cycle([render({"text": text}) for text in messages])

    def show(way: str, connections: int, rate: float = 0) -> LoadRun:
        run = LoadRun(requests, server.port, connections, seconds, rate)
        print(f"{name:10} {way} {run.row()}", flush=True)
        return run

    best = max(show(f"closed, {n:2} connections ", n).scored for n in (1, 8, 32))
    half, flood = (show(f"open, {best * share:7,.0f}/s offered", 512, best * share) for share in (0.5, 3))
    return best, half, flood


def batches(messages: Sequence[str], seconds: float) -> float:
    """Print and return the rate of HTTP batches as a share of score_many's, on the messages it scores in `seconds`."""
    from jingyin import Scorer

    scorer = Scorer.load()
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds and count < len(messages):
        count += len(list(scorer.score_many(messages[count : count + BATCH])))
    bodies = [{"texts": messages[i : i + BATCH], "deadline_ms": 60_000} for i in range(0, count, BATCH)]
    with Server("jingyin") as server:
        run = LoadRun(map(render, bodies), server.port, 2, HOUR)
    print(f"score_many {count / spent:,.0f} messages/s, batches of {BATCH} {count / run.seconds:,.0f}/s; {run.row()}")
    return spent / run.seconds


def measure(kind: str, messages: Sequence[str], seconds: float, floor: float) -> None:
    """Print jingyin's results on one kind of traffic, next to the targets."""
    with Server("jingyin") as server:
        before = server.megabytes()
        best, half, flood = singles(kind, server, messages, seconds)
        after = server.megabytes()
        print(f"{server.from_cache():.0%} from the cache; resident {before:.0f} MB, after the flood {after:.0f} MB")
    print(
        f"{kind}: {best / floor:.2f} of the floor (wanted 0.5), p99 at half {half.milliseconds(0.99):.1f} ms (10), "
        f"at three times {flood.scored / best:.2f} of the best (0.8), "
        f"batches {batches(messages, seconds):.2f} of score_many (0.6)\n",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=5, help="for each line of the table")
    parser.add_argument("--count", type=int, default=60_000, help="messages made; more are answered by the cache")
    parser.add_argument("--naive", action="store_true", help="also the naive service; needs torch and transformers")
    options = parser.parse_args()
    messages = {
        "distinct": traffic.distinct(options.files, options.count, seed=1),
        "templated": traffic.templated(options.count, seed=1),
    }
    print(f"{'milliseconds':34}  scored       p50     p99   p99.9")
    if options.naive:
        with Server("naive") as server:
            singles("naive", server, messages["distinct"], options.seconds)
    with Server("floor") as server:
        floor, *_ = singles("floor", server, messages["distinct"], options.seconds)
    for kind, texts in messages.items():
        measure(kind, texts, options.seconds, floor)


if __name__ == "__main__":
    main()
