"""A scorer without a bundle, and a server process that runs it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import uvicorn

from jingyin.model.cascade import Decision
from jingyin.model.errors import BundleError
from jingyin.model.labels import LABELS, Reason, Span
from jingyin.model.text import CleanText, clean
from jingyin.serve.explain import Explanation
from jingyin.serve.http.app import create_app
from jingyin.serve.http.process import bind, server_config
from jingyin.serve.http.service import Service
from jingyin.serve.memory import remote
from jingyin.serve.scorer import Scored
from jingyin.serve.settings import load_settings

if TYPE_CHECKING:
    import httpx

SECRET = "绝密短信内容13800138000"
"""Text that must turn up nowhere but in an answer."""


class FakeScorer:
    """Blocks what holds 死, for the reason `insult`; sleeps a millisecond per 慢, fails on 坏, needs no network for 快.

    Its prefilter finds 死 risky too.
    """

    def __init__(self, name: str = "fake", mark: str = "死") -> None:
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(id=name))
        self.cache: Any = SimpleNamespace(cache_hits=1, cache_misses=2, used=3, budget=4)
        self.readings: Any = None
        self.mark = mark

    def without_memory(self) -> "FakeScorer":
        return self

    def first_look(self, message: str | CleanText) -> Scored:
        text = message if isinstance(message, str) else message.original
        if "坏" in text:
            raise RuntimeError(f"can't do {text}")
        return self._scored(text, "network" if "快" in text else "prefilter", final="快" in text)

    def scored(self, texts: Sequence[str | CleanText], until: float) -> Iterator[Scored]:
        for text in texts:
            look = self.first_look(text)
            text, seconds = look.clean.original, 0.001 * look.clean.text.count("慢")
            if look.final or until < time.monotonic():
                yield look
                continue
            time.sleep(min(seconds, max(0, until - time.monotonic())))
            yield self._scored(text, "network", final=time.monotonic() < until)

    def score_many(self, texts: Iterable[str]) -> Iterator[Decision]:
        return (self._scored(text, "network", final=True).decision for text in texts)

    def explanation(self, text: str) -> Explanation:
        time.sleep(0.001 * text.count("慢"))
        spans = [Span(i, i + 1, "死", 0.5) for i, c in enumerate(text) if c == "死"]
        return Explanation(spans, {"insult": spans[-1:]} if spans else {})

    def _scored(self, text: str, stage: Any, *, final: bool) -> Scored:
        risk = 0.75 if self.mark in text else 0.25
        probabilities = dict.fromkeys(LABELS, 0.0) | {"pay_to_stop": risk, "ordinary": 1 - risk}
        label, action = ("pay_to_stop", "block") if risk > 0.5 else ("ordinary", "pass")
        reasons = (Reason("insult", 0.875),) if action == "block" and stage == "network" else ()
        decision = Decision(label, probabilities, risk, action, stage, reasons)  # type: ignore[arg-type]
        unknown = text.count("\ufffd") / max(1, len(text))
        return Scored(CleanText(clean(text).text, text, {"gaps": 1}), decision, unknown, False, final)


def load(*_: object) -> tuple[FakeScorer, None]:
    """Return a scorer whose name is in the file NAME; the file BROKEN refuses. PATIENT workers wait for their state.

    If the file BROKEN holds a word, that is the error's.

    Takes SLOW seconds. Only three workers can write themselves into the file STARTS.
    """
    if starts := os.environ.get("STARTS"):
        with open(starts, "a") as file:
            file.write("x")
        if Path(starts).stat().st_size > 3:
            raise BundleError("no more workers can start")
    time.sleep(float(os.environ.get("SLOW", 0)))
    if "PATIENT" in os.environ:
        remote.BUDGET_SECONDS, remote.PATIENCE_SECONDS = 5.0, 10.0
    if Path(os.environ.get("BROKEN", "/none")).exists():
        if word := Path(os.environ["BROKEN"]).read_text():
            raise RuntimeError(word)
        raise BundleError("golden message 0 is off; export the bundle anew")
    return FakeScorer(Path(os.environ["NAME"]).read_text() if "NAME" in os.environ else "fake"), None


@asynccontextmanager
async def serving(load: Any = load, **flags: Any) -> AsyncIterator[tuple["httpx.AsyncClient", Service]]:
    """Run an application in this process; give a client of it, and its parts."""
    import httpx  # not in the processes that load this module, where it would take a fifth of the start

    app = create_app(load_settings(**{"deadline_ms": 3_000, **flags}), load)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        yield client, app.state.service


class Client:
    """Talks to 127.0.0.1 at `port`."""

    port: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def send(self, request: bytes) -> bytes:
        with self.connect() as connection:
            connection.sendall(request)
            return read_all(connection)


class _Server(uvicorn.Server):
    """A server that stops at once, not at the end of a tenth of a second."""

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while not await self.on_tick(1):
            await asyncio.sleep(0.005)


class InThread(Client):
    """A server in a thread: quick to start, but without signals."""

    def __init__(self, load: Any = load, **flags: Any) -> None:
        given = {"port": 0, "deadline_ms": 3_000, **flags}  # a busy machine is no fault of the service
        settings = load_settings(**given)
        app = create_app(settings, load)
        self.service: Service = app.state.service
        self.listener = bind(settings)
        self.server = _Server(server_config(settings, app))
        if not settings.uds:
            self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))

    def __enter__(self) -> "InThread":
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()


class Process(Client):
    """A server process, with the fake scorer or the bundle in the package; `log` holds what it wrote, once ended."""

    def __init__(self, environment: dict[str, str] | None = None, *, fake: bool = True, **flags: object) -> None:
        given = {"port": 0, "deadline_ms": 3_000, "workers": 1, **flags}
        load = ", load=load" if fake else ""
        command = (
            "from functools import partial; from pathlib import PosixPath; "
            "from jingyin.serve.http.process import run_server; from jingyin.serve.settings import load_settings; "
            "from tests.serve.http.http_fakes import load; "
            f"read = partial(load_settings, **{given!r}); run_server(read(){load}, reread=read)"
        )
        self.folder = TemporaryDirectory()
        self.process = subprocess.Popen(
            [sys.executable, "-c", command],
            stderr=subprocess.PIPE,
            env={**os.environ, "XDG_STATE_HOME": self.folder.name, **(environment or {})},
            cwd=Path(__file__).parents[3],  # where `tests` is found
        )
        self.log = ""

    def __enter__(self) -> "Process":
        self.first = line = self.process.stderr.readline().decode()
        while line and '"event":"serving"' not in line:  # workers that are ready say so at any time
            line = self.process.stderr.readline().decode()
            self.first += line
        if not line:
            self.process.kill()
            self.folder.cleanup()
            raise AssertionError(f"the server did not start: {self.first}{self.process.communicate()[1].decode()}")
        self.port = int(json.loads(line)["address"].rsplit(":", 1)[1])
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.log = self.first + self.process.communicate(timeout=60)[1].decode()
        self.folder.cleanup()


def post(body: object, path: str = "/v1/score", *, close: bool = False) -> bytes:
    content = json.dumps(body).encode()
    end = "Connection: close\r\n" if close else ""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return f"{head}{end}\r\n".encode() + content


def read_all(connection: socket.socket) -> bytes:
    pieces = []
    while piece := connection.recv(65_536):
        pieces.append(piece)
    return b"".join(pieces)


def receive(connection: socket.socket) -> bytes:
    """Read one response."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += (piece := connection.recv(65_536))
        if not piece:
            return data
    head, body = data.split(b"\r\n\r\n", 1)
    size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < size:
        body += (piece := connection.recv(65_536))
        assert piece
    return head + b"\r\n\r\n" + body


def exchange(connection: socket.socket, request: bytes) -> bytes:
    """Send a request; return its response."""
    connection.sendall(request)
    return receive(connection)


def until(check: Callable[[], Any], seconds: float = 120) -> Any:
    """Return what `check` returns, as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)
    return found
