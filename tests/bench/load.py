"""Load test of `jingyin serve` over loopback, beside an endpoint that does nothing and a naive service.

    python tests/bench/load.py                                  the table, about two minutes
    python tests/bench/load.py --messages FILE --seconds 10     with messages of your own, one a line

Traffic is "distinct" (every message once, 1% threats) and "templated" (200 templates, Zipf, slots filled anew).
Server and client run on this machine: one server process, one client process. Open loop counts latency from the
moment a request was due, so that a server that stalls can't hide the requests that it kept from being sent.
"""

import argparse
import asyncio
import json
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from urllib.request import urlopen

import uvloop

HERE = Path(__file__).parent
SERVERS = {
    "jingyin": "from jingyin.serve.http import *; run_server(load_settings(port={port}, deadline_ms={deadline}))",
    "floor": "import uvicorn, load_peers as p; uvicorn.run(p.floor(), port={port}, access_log=False, log_level='error')",
    "naive": "import uvicorn, load_peers as p; uvicorn.run(p.naive(), port={port}, access_log=False, log_level='error')",
}


class Connection(asyncio.Protocol):
    """One keep-alive connection; `done(connection, status)` is called at each answer, status 0 when it was lost."""

    def __init__(self, done) -> None:
        self.done = done
        self.waiting = False
        self.data = b""

    def connection_made(self, transport) -> None:
        self.transport = transport

    def send(self, request: bytes, due: float) -> None:
        self.due, self.waiting = due, True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.data += data
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.data[:end].lower()
        at = head.index(b"content-length: ") + 16
        size = int(head[at:].split(b"\r\n", 1)[0])
        if len(self.data) < end + 4 + size:
            return
        self.body, self.data, self.waiting = self.data[end + 4 :], b"", False
        self.done(self, int(head[9:12]))

    def connection_lost(self, error) -> None:
        if self.waiting:
            self.waiting = False
            self.done(self, 0)


class Run:
    """Sends requests from `requests` for some seconds and keeps what came back."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self.requests = requests
        self.statuses: Counter[str] = Counter()
        self.times: list[float] = []

    def note(self, connection: Connection, status: int) -> None:
        missed = status == 200 and b'"reason":"deadline"' in connection.body
        self.statuses["too late" if missed else str(status) if status else "lost"] += 1
        if status == 200 and not missed:
            self.times.append(time.perf_counter() - connection.due)

    async def closed(self, port: int, seconds: float, connections: int) -> None:
        """Each connection sends its next request as soon as the last is answered."""
        end = time.perf_counter() + seconds
        left = connections
        finished = asyncio.get_running_loop().create_future()

        def done(connection: Connection, status: int) -> None:
            nonlocal left
            self.note(connection, status)
            if status and time.perf_counter() < end:
                connection.send(next(self.requests), time.perf_counter())
                return
            left -= 1
            if not left:
                finished.set_result(None)

        opened = await _connect(port, connections, done)
        for connection in opened:
            connection.send(next(self.requests), time.perf_counter())
        await finished
        self._close(opened)

    async def open(self, port: int, seconds: float, connections: int, rate: float) -> None:
        """Requests are due at a steady rate, whatever the server does; they wait for a free connection."""
        due: deque[float] = deque()
        idle: deque[Connection] = deque()

        def done(connection: Connection, status: int) -> None:
            self.note(connection, status)
            if status and due:
                connection.send(next(self.requests), due.popleft())
            elif status:
                idle.append(connection)

        opened = await _connect(port, connections, done)
        idle.extend(opened)
        start, sent = time.perf_counter(), 0
        while (now := time.perf_counter()) < start + seconds:
            for number in range(sent, int((now - start) * rate)):
                due.append(start + number / rate)
                sent += 1
            while due and idle:
                idle.popleft().send(next(self.requests), due.popleft())
            await asyncio.sleep(0.001)
        self.statuses["not sent for want of a free connection"] = len(due)
        due.clear()
        await asyncio.sleep(0.5)
        self._close(opened)

    def _close(self, opened: Sequence[Connection]) -> None:
        for connection in opened:
            if connection.waiting:
                connection.waiting = False
                self.statuses["open at the end"] += 1
            connection.transport.close()

    def row(self, seconds: float) -> str:
        """What was scored in time: rate and latency; then all other answers by kind."""
        times = sorted(self.times) or [0.0]
        p50, p99, p999 = (times[min(len(times) - 1, int(share * len(times)))] * 1000 for share in (0.5, 0.99, 0.999))
        rest = {key: count for key, count in sorted(self.statuses.items()) if key != "200" and count}
        others = ", ".join(f"{key} {count}" for key, count in rest.items())
        return f"{len(self.times) / seconds:9,.0f}/s  {p50:7.2f} {p99:7.2f} {p999:7.2f} ms   {others}"


async def _connect(port: int, count: int, done) -> list[Connection]:
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(lambda: Connection(done), "127.0.0.1", port))[1] for _ in range(count)]


class Server:
    """A server process on a free port, ended by SIGTERM."""

    def __init__(self, name: str, deadline: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = SERVERS[name].format(port=self.port, deadline=deadline)
        self.process = subprocess.Popen([sys.executable, "-c", command], cwd=HERE, stderr=subprocess.DEVNULL)

    def __enter__(self) -> "Server":
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return self
            except OSError:
                time.sleep(0.1)
        raise SystemExit("the server did not start")

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)

    def megabytes(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6


def render(body: object) -> bytes:
    content = json.dumps(body, ensure_ascii=False).encode()
    head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def traffic(path: Path | None, kind: str, count: int) -> list[str]:
    """Messages of a file, or the authored corpus with its slots filled; seeded, so every run sends the same."""
    from jingyin.model.labels import FLAGGED
    from jingyin.train.corpus.authored import default_folder, load
    from jingyin.train.corpus.expand import expand

    rng = random.Random(1)
    records = load(default_folder())
    threats = [record.text for record in records if record.label in FLAGGED]
    usual = path.read_text("utf-8").splitlines() if path else [r.text for r in records if r.label not in FLAGGED]
    rng.shuffle(usual)
    if kind == "templated":
        usual = rng.choices(usual[:200], [1 / rank for rank in range(1, min(200, len(usual)) + 1)], k=count)
    mixed = [
        rng.choice(threats) if rng.random() < 0.01 else text for text in (usual * (count // len(usual) + 1))[:count]
    ]
    return [expand(text, rng) for text in mixed] if not path else mixed


def measure(name: str, messages: Sequence[str], args: argparse.Namespace) -> float:
    """Print closed loop, then open loop at half of what that reached, and for jingyin at three times; return it."""
    singles = cycle([render({"text": text}) for text in messages])
    with Server(name, args.deadline) as server:
        best = 0.0
        for connections in (1, 8, 32):
            run = Run(singles)
            asyncio.run(run.closed(server.port, args.seconds, connections))
            best = max(best, len(run.times) / args.seconds)
            print(f"{name:8} closed, {connections:3} connections {run.row(args.seconds)}", flush=True)
        for share in (0.5, 3) if name == "jingyin" else (0.5,):
            run = Run(singles)
            asyncio.run(run.open(server.port, args.seconds, 64 if share < 1 else 512, best * share))
            print(f"{name:8} open, {best * share:7,.0f}/s offered  {run.row(args.seconds)}", flush=True)
        if name == "jingyin":
            measure_batches(server, messages, args)
            print(f"{name:8} resident after all: {server.megabytes():.0f} MB")
    return best


def measure_batches(server: Server, messages: Sequence[str], args: argparse.Namespace) -> None:
    batches = [messages[i : i + 64] for i in range(0, len(messages) - 63, 64)]
    run = Run(cycle([render({"texts": batch, "deadline_ms": 5000}) for batch in batches]))
    asyncio.run(run.closed(server.port, args.seconds, 2))
    print(
        f"jingyin  batches of 64, messages: {len(run.times) * 64 / args.seconds:,.0f}/s   calls {run.row(args.seconds)}",
        flush=True,
    )
    with urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("jingyin_messages_total")]
    print("         " + "  ".join(line.removeprefix("jingyin_messages_total") for line in lines))


def measure_in_process(messages: Sequence[str], seconds: float) -> float:
    from jingyin import Scorer

    scorer = Scorer.load()
    end, count, start = time.perf_counter() + seconds, 0, time.perf_counter()
    for _ in scorer.score_many(cycle(messages)):
        count += 1
        if time.perf_counter() > end:
            break
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="for each line of the table")
    parser.add_argument("--messages", type=Path, help="ordinary messages, one a line, instead of the authored corpus")
    parser.add_argument(
        "--count", type=int, default=100_000, help="messages made; fewer come round again and hit the memo"
    )
    parser.add_argument("--deadline", type=int, default=50, help="milliseconds")
    parser.add_argument("--kinds", nargs="+", default=["distinct", "templated"])
    parser.add_argument("--naive", action="store_true", help="also the naive service; needs torch and transformers")
    args = parser.parse_args()
    uvloop.install()
    print(f"{'':32}  scored      p50     p99   p99.9")
    messages = traffic(args.messages, "distinct", args.count)
    floor = measure("floor", messages, args)
    if args.naive:
        measure("naive", messages, args)
    for kind in args.kinds:
        messages = traffic(args.messages, kind, args.count)
        print(
            f"-- {kind}: {len(set(messages)):,} different of {len(messages):,}; in process, score_many: {measure_in_process(messages, args.seconds):,.0f}/s"
        )
        best = measure("jingyin", messages, args)
        print(f"-- {kind}: {best / floor:.2f} of the endpoint that does nothing")


if __name__ == "__main__":
    main()
