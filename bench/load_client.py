"""The client of load.py: keep-alive connections in one thread, and how long each kind of outcome took."""

import asyncio
import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator

import uvloop

PATIENCE = 1.0
"""Seconds that answers are waited for at the end of a run."""


def render(body: object) -> bytes:
    content = json.dumps(body, ensure_ascii=False).encode()
    head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return head.encode() + b"\r\n" + content


class LoadConnection(asyncio.Protocol):
    """Calls `done(connection, outcome)` at each answer, with its status, "too late", or "lost"."""

    def __init__(self, done: Callable[["LoadConnection", str], None]) -> None:
        self._done = done
        self._data = b""
        self.due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def send(self, request: bytes, due: float) -> None:
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0]):
            self._data = b""
            self._done(self, "too late" if b'"reason":"deadline"' in body else head[9:12].decode())

    def connection_lost(self, error: Exception | None) -> None:
        self._done(self, "lost")


class LoadRun:
    """Sends `requests` over a number of connections, until they end or for some seconds.

    Closed loop: each connection sends its next request as soon as the last is answered. Open loop, with a `rate`:
    requests are due at a steady rate, whatever the server does, and wait for a free connection; latency counts from
    the moment a request was due, so that a server that stalls can't hide the requests that it kept from being sent.
    """

    def __init__(self, requests: Iterator[bytes], port: int, connections: int, seconds: float, rate: float = 0) -> None:
        self._requests = requests
        self._rate = rate
        self._idle: list[LoadConnection] = []
        self._due: deque[float] = deque()
        self.times: defaultdict[str, list[float]] = defaultdict(list)
        uvloop.run(self._run(port, connections, seconds))

    @property
    def scored(self) -> float:
        """Requests a second that were answered in time."""
        return len(self.times["200"]) / self.seconds

    def milliseconds(self, share: float, outcome: str = "200") -> float:
        times = sorted(self.times[outcome])
        return times[min(len(times) - 1, int(share * len(times)))] * 1000 if times else float("nan")

    def row(self) -> str:
        """The rate and latency of messages scored in time, then the other outcomes."""
        row = f"{self.scored:9,.0f}/s " + "".join(f"{self.milliseconds(share):8.2f}" for share in (0.5, 0.99, 0.999))
        for outcome in sorted(self.times.keys() - {"200"}):
            row += f"   {outcome}: {len(self.times[outcome]):,}, p99 {self.milliseconds(0.99, outcome):.2f}"
        return row + f"   never sent: {len(self._due):,}" * bool(self._due)

    async def _run(self, port: int, connections: int, seconds: float) -> None:
        connect = asyncio.get_running_loop().create_connection
        opened = [(await connect(lambda: LoadConnection(self._note), "127.0.0.1", port))[1] for _ in range(connections)]
        self._idle = list(opened)
        start, made = time.perf_counter(), 0
        end = start + seconds
        while (now := time.perf_counter()) < end:
            offered = int((now - start) * self._rate)
            self._due.extend(start + i / self._rate for i in range(made, offered))
            made = offered
            self._send()
            if len(self._idle) == connections and not self._rate:  # the requests have come to an end
                break
            await asyncio.sleep(0.001)
        self._requests = iter(())
        while len(self._idle) < connections and time.perf_counter() < end + PATIENCE:
            await asyncio.sleep(0.001)
        self.seconds = seconds if self._rate else time.perf_counter() - start
        for connection in opened:
            connection.transport.close()

    def _send(self) -> None:
        while self._idle and (self._due or not self._rate) and (request := next(self._requests, None)):
            self._idle.pop().send(request, self._due.popleft() if self._rate else time.perf_counter())

    def _note(self, connection: LoadConnection, outcome: str) -> None:
        if connection.due:  # it waited for an answer
            self.times[outcome].append(time.perf_counter() - connection.due)
            connection.due = 0.0
            if outcome != "lost":
                self._idle.append(connection)
                self._send()
        elif outcome == "lost" and connection in self._idle:  # uvloop refuses to write to a closed transport
            self._idle.remove(connection)
