"""The client of soak.py: requests of several kinds, a bounded number of connections, the outcome of each request."""

import asyncio
import json
import time
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from random import Random

PATIENCE = 20.0
"""Seconds after which a request without an answer is given up; it is in no column then, and sums differ."""
KEPT_SECONDS = 3.0
"""Idle connections older than this are not used again: the service closes them after 5 s, perhaps as we send."""
PART = 67
"""Characters of one part of a long message in UCS-2."""

Verdicts = Mapping[str, tuple[str, str]]
"""Label and action of each message, scored in this process."""


@dataclass(frozen=True)
class SoakRequest:
    """One request: its bytes, the expected response, and the parts that must not appear in a log."""

    kind: str
    data: bytes
    texts: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    status: int = 200


def render(body: object, key: str, path: str = "/v1/score") -> bytes:
    content = json.dumps(body, ensure_ascii=False).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


class Mix:
    """Makes the requests; single messages have the service's own deadline, the others a second."""

    def __init__(self, messages: Iterator[str], key: str) -> None:
        self._messages = messages
        self._key = key
        self._rng = Random(3)

    def __iter__(self) -> Iterator[SoakRequest]:
        makers = [self.single, self.batch, self.payload, self.parts, self.mistake]
        while True:
            yield self._rng.choices(makers, (70, 10, 10, 8, 2))[0]()

    def single(self, kind: str = "single") -> SoakRequest:
        text = next(self._messages)
        return SoakRequest(kind, render({"text": text}, self._key), (text,), (text,))

    def batch(self, kind: str = "batch", size: int | None = None) -> SoakRequest:
        texts = tuple(next(self._messages) for _ in range(size or self._rng.randint(2, 8)))
        return SoakRequest(kind, render({"texts": texts, "deadline_ms": 1_000}, self._key), texts, texts)

    def payload(self) -> SoakRequest:
        text = next(self._messages)
        payload = _base64(text.encode("utf-16-be"))
        body = {"payload": payload, "coding": "ucs2", "deadline_ms": 1_000}
        return SoakRequest("payload", render(body, self._key), (text,), (text, payload))

    def parts(self) -> SoakRequest:
        text = next(self._messages)
        pieces = [text[i : i + PART] for i in range(0, len(text), PART)]
        headers = [_base64(bytes((5, 0, 3, 7, len(pieces), number))) for number in range(1, len(pieces) + 1)]
        payloads = [_base64(piece.encode("utf-16-be")) for piece in pieces]
        parts = [{"payload": payload, "udh": udh} for payload, udh in zip(payloads, headers, strict=True)]
        self._rng.shuffle(parts)
        body = {"parts": parts, "coding": "ucs2", "deadline_ms": 1_000}
        return SoakRequest("parts", render(body, self._key), (text,), (text, *pieces, *payloads))

    def mistake(self) -> SoakRequest:
        """Make a request that is refused with 422 and logged: its message must not be."""
        text = next(self._messages)
        body = self._rng.choice([{"text": [text]}, {text: text}, {"text": text, text: 1}, {"texts": text}])
        return SoakRequest("mistake", render(body, self._key), (), (text,), 422)

    def slow(self) -> SoakRequest:
        return SoakRequest("slow", self.single().data, status=408)

    def reload(self) -> SoakRequest:
        return SoakRequest("reload", render({}, self._key, "/admin/reload"), status=202)


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


class Tally:
    """Counts by phase and kind; `times` are the milliseconds of single messages by phase."""

    OUTCOMES = ("200", "other", "refused", "broken")

    def __init__(self) -> None:
        self.phase = "steady"
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.times: defaultdict[str, list[float]] = defaultdict(list)
        self.surprises: Counter[str] = Counter()
        self.secrets: set[str] = set()

    def total(self, what: str, phase: str | None = None, kind: str | None = None) -> int:
        return sum(n for (p, k, w), n in self.counts.items() if w == what and phase in (None, p) and kind in (None, k))

    def adds_up(self, phase: str | None = None, kind: str | None = None) -> bool:
        return self.total("sent", phase, kind) == sum(self.total(what, phase, kind) for what in self.OUTCOMES)


@dataclass
class _OpenConnection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    port: int
    used: float = 0.0

    @property
    def is_usable(self) -> bool:
        closed = self.reader.at_eof() or self.reader.exception() is not None or self.writer.is_closing()
        return not closed and time.monotonic() - self.used < KEPT_SECONDS


class SoakClient:
    """Sends to one port of 127.0.0.1 and counts; `ending` says that refused connections are the end, not a fault."""

    def __init__(self, port: int, bundle: str, verdicts: Verdicts, tally: Tally) -> None:
        self.port = port
        self.bundle = bundle
        self.ending = False
        self.ended = asyncio.Event()
        self._verdicts = verdicts
        self._tally = tally
        self._idle: list[_OpenConnection] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def steady(self, asks: Iterator[SoakRequest], rate: float, connections: int) -> None:
        """Send at a steady rate until `ended`; after a stall, at most one second of backlog is made up."""
        free = asyncio.Semaphore(connections)
        due = time.monotonic()
        while not self.ended.is_set():
            await free.acquire()
            task = asyncio.create_task(self.ask(next(asks)))
            self._tasks.add(task)
            task.add_done_callback(lambda done: (free.release(), self._tasks.discard(done)))
            due = max(due + 1 / rate, time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*self._tasks)

    async def ask(self, ask: SoakRequest, *, alone: bool = False, go: asyncio.Event | None = None) -> None:
        """Send one request and count its outcome: `alone` on a connection of its own, once `go` is set."""
        try:
            link = await self._connect() if alone else await self._link()
        except OSError:
            if self.ending:
                self.ended.set()
            else:
                self._note(self._tally.phase, ask, "sent", "broken")
            return
        if go is not None:
            await go.wait()
        phase, start = self._tally.phase, time.monotonic()
        self._note(phase, ask, "sent")
        self._tally.secrets.update(ask.secrets)
        link.writer.write(ask.data)
        try:
            status, head, body = await asyncio.wait_for(_read(link.reader), PATIENCE)
        except TimeoutError:
            link.writer.close()
            return
        except (OSError, EOFError):
            self._note(phase, ask, "broken")
            link.writer.close()
            return
        if ask.kind == "single":
            self._tally.times[phase].append((time.monotonic() - start) * 1000)
        self._judge(phase, ask, status, head, body)
        if alone or b"connection: close" in head:
            link.writer.close()
        else:
            link.used = time.monotonic()
            self._idle.append(link)

    async def drip(self, ask: SoakRequest, at_once: int = 0) -> None:
        """Send `at_once` bytes and then one a second, or nothing at all if there are none, until it is sent away."""
        phase = self._tally.phase
        self._note(phase, ask, "sent")
        try:
            link = await self._connect()
        except OSError:
            self._note(phase, ask, "broken")
            return
        sending = asyncio.create_task(_trickle(link.writer, ask.data, at_once))
        with suppress(TimeoutError):
            try:
                self._judge(phase, ask, *await asyncio.wait_for(_read(link.reader), PATIENCE))
            except (OSError, EOFError):
                self._note(phase, ask, "broken")
        sending.cancel()
        link.writer.close()

    async def _link(self) -> _OpenConnection:
        while self._idle:
            link = self._idle.pop()
            if link.is_usable and link.port == self.port:
                return link
            link.writer.close()
        return await self._connect()

    async def _connect(self) -> _OpenConnection:
        return _OpenConnection(*await asyncio.open_connection("127.0.0.1", self.port), self.port)

    def _note(self, phase: str, ask: SoakRequest, *what: str) -> None:
        self._tally.counts.update((phase, ask.kind, each) for each in what)

    def _judge(self, phase: str, ask: SoakRequest, status: int, head: bytes, body: bytes) -> None:
        if status in (429, 503):
            self._note(phase, ask, "refused")
            wrong = "" if b"retry-after: " in head else f"{status} without Retry-After"
        else:
            self._note(phase, ask, "200" if status == 200 else "other")
            wrong = "" if status == ask.status else f"{ask.kind}: {status} for {ask.status}"
            if status == 200 == ask.status and ask.texts:
                wrong = self._fault(phase, ask, json.loads(body))
        if wrong:
            self._note(phase, ask, "wrong")
            self._tally.surprises[f"{phase}: {wrong}"] += 1

    def _fault(self, phase: str, ask: SoakRequest, answer: dict[str, object]) -> str:
        """Return the fault in a verdict, or "" if there is none; a late verdict is counted, but isn't a fault."""
        results: list[dict[str, object]] = answer.get("results", [answer])  # type: ignore[assignment]
        if len(results) != len(ask.texts):
            return f"{ask.kind}: {len(results)} results for {len(ask.texts)} messages"
        if any(result["reason"] == "deadline" for result in results):
            self._note(phase, ask, "late")
        for text, result in zip(ask.texts, results, strict=True):
            if result["reason"] not in ("scored", "deadline"):
                return f"{ask.kind}: reason {result['reason']}"
            if result["bundle"] != self.bundle:
                return f"{ask.kind}: another bundle"
            if result["reason"] == "scored" and (result["label"], result["action"]) != self._verdicts[text]:
                return f"{ask.kind}: another verdict"
        return ""


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Return status, head in lower case, and body of one response."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    size = int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
    return int(head[9:12]), head, await reader.readexactly(size)


async def _trickle(writer: asyncio.StreamWriter, data: bytes, at_once: int) -> None:
    writer.write(data[:at_once])
    for i in range(at_once, len(data)):
        writer.write(data[i : i + 1])
        await asyncio.sleep(1)
