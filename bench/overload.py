"""Blatant threats that go on while somebody keeps `jingyin serve` busy, beside the same on a quiet service.

    python bench/overload.py                      every attack, 10 s each
    python bench/overload.py costly --seconds 20

A gateway asks about RATE messages a second, half of them plain threats that a quiet service holds or blocks, half plain
innocents. The attackers are senders of the same gateway (costly), or clients of an address of their own.

    costly     long messages, no two alike, each of which all networks read as much as they may
    batches    requests of 1,024 texts for the networks, with deadline_ms 60000
    flood      256 connections that ask again as soon as they are answered
    payloads   64 KiB of nonsense in 255 parts, in 16 requests at a time
    slow       500 connections that send a byte a second
    idle       2,000 connections that send nothing

A row has the threats that go on, the answers that were not whole (reason deadline) and not 200, p99 of the gateway's
questions, and memory of all processes, in MB.
"""

import argparse
import asyncio
import json
import random
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from multiprocessing import get_context

from load import Server
from load_client import render

RATE = 40
ATTACKER = ("127.0.0.2", 0)

Attack = Callable[[int, random.Random], Awaitable[None]]


class KeptConnection:
    """One kept connection."""

    async def open(self, port: int, source: tuple[str, int] | None = None) -> "KeptConnection":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port, local_addr=source)
        return self

    async def ask(self, body: dict[str, object]) -> tuple[int, dict[str, object]]:
        self.writer.write(render(body))
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        content = await self.reader.readexactly(size)
        return int(head[9:12]), json.loads(content) if content else {}


def plain(rng: random.Random) -> list[tuple[str, bool]]:
    rows = files("jingyin.train.evaluate").joinpath("plain_threats.jsonl").read_text(encoding="utf-8").splitlines()
    found = [(row["text"], row["label"] in ("debt_threat", "pay_to_stop")) for row in map(json.loads, rows)]
    rng.shuffle(found)
    return found


def long_text(rng: random.Random, length: int = 1_500) -> str:
    """Return sentences of plain messages, mixed: no cache and no prefilter answers."""
    sentences = [text for text, _ in plain(rng)]
    text = ""
    while len(text) < length:
        text += rng.choice(sentences) + "。" + chr(0x4E00 + rng.randrange(5_000))
    return text


async def again(port: int, source: tuple[str, int] | None, body: Callable[[], dict[str, object]]) -> None:
    """Ask without end."""
    while True:
        with suppress(OSError, asyncio.IncompleteReadError):
            client = await KeptConnection().open(port, source)
            while True:
                await client.ask(body())


async def costly(port: int, rng: random.Random) -> None:
    made = [long_text(rng) for _ in range(100)]
    await asyncio.gather(
        *(again(port, None, lambda: {"text": rng.choice(made) + str(rng.random()), "sender": "bad"}) for _ in range(8))
    )


async def batches(port: int, rng: random.Random) -> None:
    made = [long_text(rng, 60) for _ in range(1_024)]
    bodies = [{"texts": [f"{text}{chr(0x4E00 + i)}" for text in made], "deadline_ms": 60_000} for i in range(50)]
    await asyncio.gather(*(again(port, ATTACKER, lambda: rng.choice(bodies)) for _ in range(4)))


async def flood(port: int, rng: random.Random) -> None:
    made = [long_text(rng, 30) for _ in range(1_000)]
    await asyncio.gather(
        *(again(port, ATTACKER, lambda: {"text": rng.choice(made) + str(rng.random())}) for _ in range(256))
    )


async def payloads(port: int, rng: random.Random) -> None:
    parts = [{"payload": b64encode(rng.randbytes(255)).decode()} for _ in range(255)]
    await asyncio.gather(*(again(port, ATTACKER, lambda: {"parts": parts, "data_coding": 0}) for _ in range(16)))


async def drip(port: int, seconds: float) -> None:
    """Send a byte every so many seconds, none at the first, until sent away; begin again."""
    while True:
        with suppress(OSError):
            client = await KeptConnection().open(port, ATTACKER)
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(client.reader.read(), seconds)
                    break
                client.writer.write(b"P")
            client.writer.close()


async def slow(port: int, rng: random.Random) -> None:
    await asyncio.gather(*(drip(port, 1) for _ in range(500)))


async def idle(port: int, rng: random.Random) -> None:
    await asyncio.gather(*(drip(port, 600) for _ in range(2_000)))


ATTACKS: dict[str, Attack] = {each.__name__: each for each in (costly, batches, flood, payloads, slow, idle)}


async def gateway(port: int, seconds: float, rng: random.Random) -> tuple[Counter[str], list[float]]:
    """Ask at a steady rate, each question on one of 64 connections; return the counts and the response times."""
    counts: Counter[str] = Counter()
    times: list[float] = []
    free = [await KeptConnection().open(port) for _ in range(64)]
    messages = plain(rng)

    async def one(text: str, threat: bool, number: int) -> None:
        client = free.pop(0)  # in turn: an idle one would be closed
        start = time.perf_counter()
        status, answer = await client.ask({"text": f"{text}，{number}", "sender": str(number)})
        times.append(time.perf_counter() - start)
        free.append(client)
        counts["asked"] += 1
        counts["threats"] += threat
        counts["not 200"] += status != 200
        counts["on"] += threat and answer.get("action", "pass") == "pass"
        counts["deadline"] += answer.get("reason") == "deadline"

    tasks, begin = [], time.perf_counter()
    while (now := time.perf_counter() - begin) < seconds:
        if free:
            text, threat = messages[len(tasks) % len(messages)]
            tasks.append(asyncio.create_task(one(text, threat, len(tasks))))
        await asyncio.sleep(max(0, len(tasks) / RATE - now))
    await asyncio.wait_for(asyncio.gather(*tasks), 30)
    return counts, times


def attack(name: str, port: int) -> None:
    asyncio.run(ATTACKS[name](port, random.Random(1)))


def measure(name: str, seconds: float, server: Server) -> None:
    attacker = get_context("spawn").Process(target=attack, args=[name, server.port], daemon=True)
    if name in ATTACKS:
        attacker.start()
        time.sleep(2)
    counts, times = asyncio.run(gateway(server.port, seconds, random.Random(2)))
    if name in ATTACKS:
        attacker.kill()
    p99 = sorted(times)[int(0.99 * len(times))] * 1000
    on, whole = counts["on"] / max(1, counts["threats"]), counts["asked"]
    print(
        f"{name:10}{on:10.1%}{counts['deadline'] / whole:12.1%}{counts['not 200'] / whole:10.1%}"
        f"{p99:9.1f}{server.megabytes():9.0f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", choices=[*ATTACKS, []], help="by default all")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    print(f"{'':10}{'threats on':>10}{'deadline':>12}{'not 200':>10}{'p99 ms':>9}{'MB':>9}")
    for name in ("quiet", *(options.attacks or ATTACKS)):
        with Server("jingyin") as server:
            measure(name, options.seconds, server)


if __name__ == "__main__":
    main()
