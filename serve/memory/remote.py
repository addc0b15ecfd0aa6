"""The state in another process: behind a Unix socket, or in Valkey or Redis.

Each call sends a list of operations in one round trip. `Socket` sends them to the process that `listening` runs in, so
that all workers of a machine share one `Local`; `ValkeyState` sends them to Valkey as one call of a Lua script.
`Guarded` adds a time limit and a circuit breaker to both: if they don't answer within BUDGET_SECONDS, the message
continues with the worker's `Local`.
"""

import asyncio
import marshal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from threading import Event, Thread
from typing import Any

from jingyin.model.errors import ConfigError
from jingyin.serve.memory.state import LISTED, PUSHED, SLOTS, Local, Op, State

BUDGET_SECONDS = 0.005
"""Longest wait for the state; then a message continues with local memory."""
REMEMBER_SECONDS = 0.02
"""Longest wait until a flagged message is remembered."""
PATIENCE_SECONDS = 0.1
"""If a call fails or takes longer, the state is away. Until then only the waiting messages continue without it."""
RETRY_SECONDS = 0.5
"""Pause between probes of a state that is away."""
ANSWER_SECONDS = 10.0
"""Longest wait for one answer of a server, for callers with no other limit."""

# ---- shared by the workers of a machine


@contextmanager
def listening(local: Local, path: Path) -> Iterator[None]:
    """Run operations received on a Unix socket at `path`, in a thread; anyone who may open `path` is trusted.

    Raises ConfigError if that can't be made.
    """
    started = Event()
    stops: list[Callable[[], object]] = []
    faults: list[OSError] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            while True:
                ops = marshal.loads(await _read_frame(reader))
                writer.write(_frame(local.run_now([Op(*each) for each in ops])))
        writer.close()

    async def serve() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))
        try:
            server = await asyncio.start_unix_server(answer, path)
        except OSError as error:
            faults.append(error)
            return
        finally:
            started.set()
        while not stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1)
            local.expire()
        server.close()  # `async with` waits, from Python 3.12 on, until every client has hung up
        local.save()

    thread = Thread(target=lambda: asyncio.run(serve()), name="jingyin-state", daemon=True)
    thread.start()
    started.wait()
    if faults:
        raise ConfigError(f"can't listen on {path}: {faults[0]}; name another folder, or a shorter one, in TMPDIR")
    try:
        yield
    finally:
        stops[0]()
        thread.join()


class Socket:
    """Sends operations to the process that is `listening` at `path`; calls that overlap take turns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, ops: Sequence[Op]) -> list[Any]:
        """Return a result for each operation; raises OSError or IncompleteReadError when nobody listens."""
        async with self._lock:
            streams, self._streams = self._streams, None  # a cancelled call leaves none: its answer may still come
            reader, writer = streams or await asyncio.open_unix_connection(self._path)
            try:
                writer.write(_frame([tuple(op) for op in ops]))
                found: list[Any] = marshal.loads(await _read_frame(reader))
            except BaseException:
                writer.close()
                raise
            self._streams = reader, writer
            return found

    def close(self) -> None:
        """Close the connection."""
        if self._streams:
            self._streams[1].close()


def _frame(content: Any) -> bytes:  # noqa: ANN401
    data = marshal.dumps(content)
    return len(data).to_bytes(4, "big") + data


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))


# ---- Valkey or Redis

_PREFIX = "jingyin:"
_SCRIPT = "\n".join(
    (
        f"local SLOTS, LISTED, PUSHED = {SLOTS}, {LISTED}, {PUSHED}",
        files("jingyin.serve.memory").joinpath("state.lua").read_text(encoding="utf-8"),
    )
)


class ValkeyState:
    """Sends operations to Valkey or Redis; one call at a time. `address` is that of the setting `state`."""

    def __init__(self, address: str) -> None:
        """Connect on first use; raises ConfigError without the extra `state` or for an invalid address."""
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError:
            raise ConfigError("state in Valkey or Redis needs redis; run: pip install 'jingyin[state]'") from None
        try:
            self._client = Redis.from_url(address, retry=Retry(NoBackoff(), 0), socket_connect_timeout=1,
                                          socket_timeout=ANSWER_SECONDS, protocol=2)  # fmt: skip
        except ValueError:
            raise ConfigError("state must be memory, redis://HOST:PORT/DB, rediss://... or unix:///PATH") from None
        self._script = self._client.register_script(_SCRIPT)

    async def run(self, ops: Sequence[Op]) -> list[Any]:
        """Return a result for each operation; raises RedisError."""
        keys, arguments = [], []
        for name, key, value, seconds in ops:
            keys.append(_PREFIX + key)
            one, other = value if isinstance(value, tuple) else (value, b"")
            arguments += [name, one, other, seconds]
        found = await self._script(keys=keys, args=arguments)
        return [_result(op, each) for op, each in zip(ops, found, strict=True)]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _result(op: Op, reply: Any) -> Any:  # noqa: ANN401  as Op says
    if op.name in ("tally", "now"):
        return float(reply)
    if op.name == "marks":
        pairs = zip(reply[::2], reply[1::2], strict=True)
        return [(key.decode().removeprefix(_PREFIX), left / 1000) for key, left in pairs]
    if op.name == "push":
        return reply[0], bool(reply[1])
    return reply


# ---- time limit and breaker


class Guarded:
    """A remote state that never keeps a message waiting: late, refused or failed operations run on `local`.

    Operations that arrive during a call go together in the next one. `observe` is called for steps that are "late", and
    when the state is "away" or "back". For one event loop.
    """

    def __init__(self, remote: State, local: Local, observe: Callable[[str, str], None]) -> None:
        """`observe` gets the event, and the late step, the name of the error, or ""."""
        self.remote = remote
        self.local = local
        self.away = False
        self._observe = observe
        self._waiting: list[tuple[Sequence[Op], asyncio.Future[list[Any] | None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._calling = False

    async def run(self, ops: Sequence[Op], step: str = "look_up") -> list[Any]:
        """Return a result for each operation, as `ask` does."""
        return (await self.ask(ops, step))[0]

    async def ask(self, ops: Sequence[Op], step: str) -> tuple[list[Any], bool]:
        """Return a result for each operation within BUDGET_SECONDS, and whether they are late: of `local` alone.

        Operations that remember a flagged message get REMEMBER_SECONDS, so that its answer does not go out before the
        sender's next message can be recognised. `step` is the caller's.
        """
        if self.away:
            return self.local.run_now(ops), False
        flagged = any(op.name == "mark" for op in ops)
        # Stored here too, so that a late look-up knows at least what this process has flagged.
        local_results = self.local.run_now(ops) if flagged else None
        future: asyncio.Future[list[Any] | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((ops, future))
        if not self._calling:
            self._calling = True
            self._start(self._call())
        try:
            async with asyncio.timeout(REMEMBER_SECONDS if flagged else BUDGET_SECONDS):
                results = await future
        except TimeoutError:
            self._observe("late", step)
            return self.local.run_now(ops) if local_results is None else local_results, True
        if results is not None:
            return results, False
        return self.local.run_now(ops) if local_results is None else local_results, False

    async def close(self) -> None:
        """Cancel running tasks."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Any) -> None:  # noqa: ANN401  a coroutine
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)

    async def _call(self) -> None:
        while self._waiting and not self.away:
            batch, self._waiting = self._waiting, []
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    results = iter(await self.remote.run([op for ops, _ in batch for op in ops]))
            except Exception as error:
                self.away = True
                self._observe("away", type(error).__name__)
                self._start(self._return())
                self._waiting += batch
                break
            for ops, future in batch:
                found = [next(results) for _ in ops]
                if not future.done():
                    future.set_result(found)
        self._calling = False
        for _, future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting = []

    async def _return(self) -> None:
        """Wait until the state accepts a small write in time, then use it again."""
        while self.away:
            await asyncio.sleep(RETRY_SECONDS)
            with suppress(Exception):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self.remote.run([Op("tally", "probe", 1, 60.0)])
                self.away = False
                self._observe("back", "")
