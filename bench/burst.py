"""300 different blatant threats, and 60 ordinary messages, sent at once through the SMPP proxy, on defaults.

    python bench/burst.py                     one session, then 30 sessions, `jingyin serve` with two workers
    python bench/burst.py --seconds 0.075     the same with a deadline of 50 ms, as the filters once asked

A row has threats forwarded, blocked and refused for now, ordinary messages forwarded, and the seconds until the last
answer.
"""

import argparse
import asyncio
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from edge import Loop, read, started
from load import Server
from tests.serve.gateways.dialects import SMPP
from tests.serve.gateways.threats import ORDINARY, THREATS


async def burst(port: int, sessions: int) -> tuple[Counter[str], float]:
    """Send all messages at once, shared among sessions; return the counts and the seconds that it took."""
    messages = [text for pair in zip(*[iter(THREATS)] * 5, ORDINARY, strict=True) for text in pair]
    counts: Counter[str] = Counter()
    ordinary, start = set(ORDINARY), time.perf_counter()

    async def session(number: int) -> None:
        own = list(enumerate(messages))[number::sessions]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(SMPP.login())
        await read(reader)
        writer.write(b"".join(SMPP.submit(text, i, to=(str(13_000_000_000 + i),)) for i, text in own))
        for _ in own:
            _, status, sequence = SMPP.read(await read(reader))
            outcome = {0: "forwarded", SMPP.blocked: "blocked"}.get(status, "refused for now")
            counts[f"{'ordinary' if messages[sequence] in ordinary else 'threats'} {outcome}"] += 1
        writer.close()

    await asyncio.gather(*(session(number) for number in range(sessions)))
    return counts, time.perf_counter() - start


async def through_proxy(port: int, sessions: int, *options: str) -> tuple[Counter[str], float]:
    """Send a burst through a proxy in front of a gateway of its own; `port` is that of the service."""
    server = await asyncio.start_server(Loop(SMPP, 1).serve, "127.0.0.1", 0)
    smsc = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    command = ("-m", "jingyin.serve.gateways.smpp", "--port", "0", "--smsc", smsc)
    with started(*command, "--jingyin", f"http://127.0.0.1:{port}", *options) as (_, proxy):
        result = await burst(proxy, sessions)
    server.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", help="option of the proxy, by default its own")
    parser.add_argument("--unread", help="option of the proxy, by default its own")
    given = {name: value for name, value in vars(parser.parse_args()).items() if value}
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    for sessions in (1, 30):
        with Server("jingyin") as server:  # each with an empty cache
            counts, seconds = asyncio.run(through_proxy(server.port, sessions, *options))
        row = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        print(f"{sessions} sessions: {row}; {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
