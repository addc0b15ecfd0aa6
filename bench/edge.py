"""Measures the overhead of the filters.

Compares round trips through each protocol's proxy with those through a proxy that only copies bytes, and through
Kannel's.

    python bench/edge.py                               authored messages, the default bundle, all filters, 3 minutes
    python bench/edge.py FILE... --only cmpp2 kannel    ordinary messages of your own, some filters

Clients, gateway and smsbox are in this process and do nothing else; the filter, the copying proxy and `jingyin serve`
are one process each. A closed loop: WINDOW requests are unanswered at any time, to as many receivers. Rounds: copy,
filter, copy, ...; the best of each counts. The last rows: memory of the SMPP proxy while eight sessions send 64 KiB
payloads.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parents[1]))
import traffic
from tests.serve.gateways.dialects import ALL, SMPP, Dialect, tlv

ROUNDS = 3
COPY = """
import asyncio, json, sys
async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
async def accept(reader, writer):
    up = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
    await asyncio.gather(pump(reader, up[1]), pump(up[0], writer))
async def main():
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), file=sys.stderr, flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


async def read(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(4)
    return head + await reader.readexactly(int.from_bytes(head) - 4)


class Loop:
    """A closed loop over one connection: SUBMIT frames, or sendsms calls."""

    def __init__(self, dialect: Dialect | None, window: int) -> None:
        self.dialect, self.window = dialect, window

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer as a gateway, or as smsbox."""
        try:
            while True:
                if self.dialect:
                    writer.write(self.dialect.answer(await read(reader)))
                else:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 24\r\n\r\n0: Accepted for delivery")
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            writer.close()

    async def measure(self, port: int, messages: Sequence[str]) -> tuple[list[float], float, int]:
        """Return the milliseconds of each round trip, messages a second, and how many were refused."""
        if self.dialect is None:
            return await self._calls(port, messages)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(self.dialect.login())
        await read(reader)
        sent: dict[int, float] = {}
        times, refused, start = [], 0, time.perf_counter()
        for i, text in enumerate([*messages, *[""] * self.window]):
            while len(sent) >= min(self.window, len(messages) + self.window - i):
                _, status, sequence = self.dialect.read(await read(reader))
                times.append((time.perf_counter() - sent.pop(sequence)) * 1000)
                refused += status != 0
            if i < len(messages):
                sent[i] = time.perf_counter()
                content = text.encode("utf-16-be", "ignore")[:140]
                writer.write(self.dialect.submit(content, i, to=(str(13_000_000_000 + i),)))
        writer.close()
        return times, len(times) / (time.perf_counter() - start), refused

    async def _calls(self, port: int, messages: Sequence[str]) -> tuple[list[float], float, int]:
        times, refused, left, start = [], 0, iter(enumerate(messages)), time.perf_counter()

        async def application() -> None:
            nonlocal refused
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for i, text in left:
                begun = time.perf_counter()
                query = (
                    f"from=100&to={13_000_000_000 + i}&coding=2&charset=UTF-8&text={quote(text[:70], errors='ignore')}"
                )
                writer.write(f"GET /cgi-bin/sendsms?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                times.append((time.perf_counter() - begun) * 1000)
                refused += not head.startswith(b"HTTP/1.1 202")
            writer.close()

        await asyncio.gather(*(application() for _ in range(self.window)))
        return times, len(times) / (time.perf_counter() - start), refused


def seconds(process: subprocess.Popen[bytes]) -> float:
    """Return the processor time of a process."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def compare(
    name: str, loop: Loop, messages: Sequence[str], copy: int, through: int, process: subprocess.Popen[bytes]
) -> None:
    """Print both ways and the difference of their medians; each round has messages of its own."""
    share, before = len(messages) // (2 * ROUNDS), seconds(process)
    runs: dict[str, list[tuple[list[float], float, int]]] = {"copy": [], "filter": []}
    for i in range(2 * ROUNDS):
        way, port = ("copy", copy) if i % 2 == 0 else ("filter", through)
        runs[way].append(await loop.measure(port, messages[i * share : (i + 1) * share]))
    best = {way: min(each, key=lambda run: statistics.median(run[0])) for way, each in runs.items()}
    for way, (times, rate, refused) in best.items():
        cut = statistics.quantiles(times, n=100)
        print(f"{name:10} {loop.window:6} {way:7} {cut[49]:8.2f} {cut[98]:8.2f} {rate:10,.0f} {refused:8}", flush=True)
    added = statistics.median(best["filter"][0]) - statistics.median(best["copy"][0])
    spent = (seconds(process) - before) / (ROUNDS * share) * 1e6
    print(f"{name}: adds {added:.2f} ms to the median; {spent:.0f} us of a core a message", flush=True)


@contextmanager
def started(*command: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a program that says on its first lines where it listens; yield it and its port, and stop it in the end."""
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        for said in map(json.loads, process.stderr):
            if port := said.get("port") or said.get("address"):
                yield process, int(str(port).rpartition(":")[2])
                return
        raise SystemExit(f"{command[1]} did not start")
    finally:
        process.terminate()
        process.communicate(timeout=30)


async def memory(messages: int, gateway: int, jingyin: str) -> None:
    """Print the most memory of the SMPP proxy while eight sessions send payloads of 64 KiB."""
    payload = tlv(0x424, "早".encode("utf-16-be") * 32_000)
    proxy = ("-m", "jingyin.serve.gateways.smpp", "--port", "0", "--smsc", f"127.0.0.1:{gateway}", *jingyin.split())
    with started(*proxy) as (process, port):

        async def flood(number: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(SMPP.login())
            await read(reader)

            async def send() -> None:
                for i in range(messages):
                    writer.write(SMPP.submit(b"", i, tlvs=payload, to=(str(13_000_000_000 + number * messages + i),)))
                    await writer.drain()

            sending = asyncio.create_task(send())
            for _ in range(messages):
                await read(reader)
            await sending
            writer.close()

        def kilobytes(field: str) -> int:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(field))

        before = kilobytes("VmRSS")
        await asyncio.gather(*(flood(i) for i in range(8)))
        print(f"memory of the SMPP proxy: {before / 1024:.0f} MiB before, at most {kilobytes('VmHWM') / 1024:.0f} MiB")


async def run(files: Sequence[Path], count: int, only: Sequence[str], more: list[str]) -> None:
    serve = ["-c", "from jingyin.cli import main; main()", "serve", "--port", "0", *more]
    with started(*serve) as (_, port):
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/readyz").close()
                break
            except OSError:
                await asyncio.sleep(0.1)
        jingyin = f"--jingyin http://127.0.0.1:{port}"
        messages = traffic.distinct(files, count, seed=1)
        print(f"{'ms':10} window way          p50      p99   messages/s  refused")
        for dialect in [*ALL, None]:
            name = dialect.name if dialect else "kannel"
            if only and name not in only:
                continue
            for window in (1, 6, 16):
                loop = Loop(dialect, window)
                server = await asyncio.start_server(loop.serve, "127.0.0.1", 0)
                target = server.sockets[0].getsockname()[1]
                option = {"smpp": "--smsc", "kannel": "--smsbox"}.get(name, "--gateway")
                address = f"http://127.0.0.1:{target}" if name == "kannel" else f"127.0.0.1:{target}"
                module = f"jingyin.serve.gateways.{name.rstrip('23')}"
                with (
                    started("-c", COPY, str(target)) as (_, copy),
                    started("-m", module, "--port", "0", option, address, *jingyin.split()) as (process, through),
                ):
                    await compare(name, loop, messages, copy, through, process)
                server.close()
        if not only or "memory" in only:
            server = await asyncio.start_server(Loop(SMPP, 1).serve, "127.0.0.1", 0)
            await memory(40, server.sockets[0].getsockname()[1], jingyin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--bundle", help="by default the one in the package")
    parser.add_argument("--count", type=int, default=6_000, help="messages of each row")
    parser.add_argument("--only", nargs="*", default=[], help="smpp, cmpp2, cmpp3, smgp, sgip, kannel, memory")
    options = parser.parse_args()
    more = ["--bundle", options.bundle] if options.bundle else []
    asyncio.run(run(options.files, options.count, options.only, more))


if __name__ == "__main__":
    main()
