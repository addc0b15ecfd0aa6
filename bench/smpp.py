"""What the SMPP proxy adds: submit_sm round trips to an SMSC directly and through the proxy, interleaved.

    python bench/smpp.py                       authored messages, the default bundle, about a minute
    python bench/smpp.py FILE... --bundle B    ordinary messages and a bundle of your own

The SMSC and the ESMEs are in this process and do nothing else, the proxy and `jingyin serve` are one each. Each row is
a closed loop: WINDOW requests are unanswered at any time. Rounds: direct, proxy, direct, ...; the best of each counts.
"""

import argparse
import asyncio
import json
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import traffic

ROUNDS = 3
HEADER = struct.Struct(">4I")
BIND = HEADER.pack(16 + 8, 9, 0, 1) + b"\0\0\0\x34\0\0\0\0"
SUBMIT, RESPONSE = 4, 0x80000000


def submit(text: str, sequence: int) -> bytes:
    payload = text.encode("utf-16-be", "surrogatepass")[:65_534]
    fields = b"\0\1\x01100\0\1\x01200\0\0\0\0\0\0\0\0\x08\0\0\x04\x24" + struct.pack(">H", len(payload))
    return HEADER.pack(16 + len(fields) + len(payload), SUBMIT, 0, sequence) + fields + payload


async def read(reader: asyncio.StreamReader) -> tuple[int, int, int]:
    """Read one PDU; return command, status and sequence number."""
    length, *head = HEADER.unpack(await reader.readexactly(16))
    await reader.readexactly(length - 16)
    return head[0], head[1], head[2]


async def smsc(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            command, _, sequence = await read(reader)
            writer.write(HEADER.pack(19, command | RESPONSE, 0, sequence) + b"id\0")
    except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
        writer.close()


async def measure(port: int, messages: Sequence[str], window: int) -> tuple[list[float], float, int]:
    """Return the milliseconds of each round trip, messages a second, and how many were refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(BIND)
    await read(reader)
    sent, times, refused, start = {}, [], 0, time.perf_counter()
    for i, text in enumerate(messages):
        while len(sent) >= window:
            _, status, sequence = await read(reader)
            times.append((time.perf_counter() - sent.pop(sequence)) * 1000)
            refused += status != 0
        sent[i] = time.perf_counter()
        writer.write(submit(text, i))
    rate = len(times) / (time.perf_counter() - start)
    for _ in sent:
        await read(reader)
    writer.close()
    return times, rate, refused


def row(name: str, window: int, times: list[float], rate: float, refused: int) -> None:
    cut = statistics.quantiles(times, n=1000)
    print(f"{name:26} {window:6} {cut[499]:8.2f} {cut[989]:8.2f} {rate:10,.0f} {refused:8}", flush=True)


async def compare(kind: str, messages: Sequence[str], window: int, direct: int, proxy: int) -> None:
    """Print both ways and the difference of their medians; each round has messages of its own."""
    share = len(messages) // (2 * ROUNDS)
    runs: dict[str, list[tuple[list[float], float, int]]] = {"direct": [], "proxy": []}
    for i in range(2 * ROUNDS):
        name, port = ("direct", direct) if i % 2 == 0 else ("proxy", proxy)
        runs[name].append(await measure(port, messages[i * share : (i + 1) * share], window))
    best = {name: min(each, key=lambda run: statistics.median(run[0])) for name, each in runs.items()}
    for name, run in best.items():
        row(f"{kind}, {name}", window, *run)
    added = statistics.median(best["proxy"][0]) - statistics.median(best["direct"][0])
    print(f"{kind}: the proxy adds {added:.2f} ms to the median (wanted at most 3)", flush=True)


@contextmanager
def started(command: Sequence[str], field: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a program that says on its first lines where it listens; yield it and its port, and stop it in the end."""
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        said = next((line for each in process.stderr if field in (line := json.loads(each))), None)
        if said is None:
            raise SystemExit(f"{command[1]} did not start")
        yield process, int(str(said[field]).rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(30)


async def run(files: Sequence[Path], count: int, bundle: list[str]) -> None:
    listener = await asyncio.start_server(smsc, "127.0.0.1", 0)
    direct = listener.sockets[0].getsockname()[1]
    serve = ["-c", "from jingyin.cli import main; main()", "serve", "--port", "0", *bundle]
    with started(serve, "address") as (jingyin, port):
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/healthz").close()
                break
            except OSError:
                await asyncio.sleep(0.1)
        addresses = ["--smsc", f"127.0.0.1:{direct}", "--jingyin", f"http://127.0.0.1:{port}"]
        with started(["-m", "jingyin.serve.gateways.smpp", "--port", "0", *addresses], "port") as (_, through):
            kinds = {"distinct": traffic.distinct(files, count, seed=1), "templated": traffic.templated(count, seed=1)}
            print(f"{'milliseconds':26} window      p50      p99   messages/s  refused")
            for kind, messages in kinds.items():
                for window in (1, 10):
                    await compare(kind, messages, window, direct, through)
            jingyin.terminate()
            jingyin.wait(30)
            await compare("jingyin is down", kinds["distinct"], 10, direct, through)
    listener.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--bundle", help="by default the one in the package")
    parser.add_argument("--count", type=int, default=12_000, help="messages of each kind")
    given = parser.parse_args()
    asyncio.run(run(given.files, given.count, ["--bundle", given.bundle] if given.bundle else []))


if __name__ == "__main__":
    main()
