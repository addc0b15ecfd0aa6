"""The state: small operations on expiring keys, in memory, behind a Unix socket, or in Valkey or Redis.

A caller hands over a list of operations and gets a result for each, in one round trip. `Local` runs them in this
process; `Socket` sends them to the process that `listening` runs in, so that all workers of a machine share one
`Local`; `ValkeyState` sends them to Valkey as one call of a Lua script. `Guarded` adds a time limit and a circuit
breaker to the latter two: if they don't answer within BUDGET_SECONDS, the message continues with the worker's `Local`.
"""

import asyncio
import base64
import fcntl
import json
import marshal
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from heapq import merge
from importlib.resources import files
from itertools import count, islice, takewhile
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple, Protocol

from jingyin.model.errors import ConfigError

BUDGET_SECONDS = 0.005
"""Longest wait for the state; then a message continues with local memory."""
PATIENCE_SECONDS = 0.1
"""If a call fails or takes longer, the state is away. Until then only the waiting messages continue without it."""
RETRY_SECONDS = 0.5
"""Pause between probes of a state that is away."""
SLOTS = 3
"""Values that `shift` keeps of a key."""
ANSWER_SECONDS = 10.0
"""Longest wait for one answer of a server, for callers with no other limit."""
LISTED = 1_000
"""Most marks listed, those that last longest."""

_BEGUN = time.time() - time.monotonic()
_ENTRY_BYTES = 300  # a key in `Local` besides its value: the key, a tuple, their share of two tables


class Op(NamedTuple):
    """An operation on `key`. Where no result is described, it is None.

        tally    the count (float) of the last `seconds`, to which `value` (int) is then added
        mark     keep the key for `seconds`; if it is kept already, for at least `value` (float)
        marked   whether it is kept (0 or 1)
        marks    pairs (key, seconds left) of the LISTED keys that begin with `key`, two characters, and last longest
        shift    up to SLOTS values, newest first; then `value` (bytes), if any, becomes the newest for `seconds`
        unshift  forget `value` (bytes), the newest if there are several
        drop     forget a mark
        put      set field `value[0]` of the table `key` to `value[1]` (both bytes)
        fields   the names (bytes) of the table's fields
        field    the value of the field `value`, or None
        remove   forget the field `value`
        add      add 1 to the count in the field `value`
        now      the time of the state's clock (float, Unix seconds)

    Counts fade: entries older than `seconds` lose weight, and after twice that have none. Tables last until they
    are changed; everything else expires.
    """

    name: str
    key: str
    value: Any = b""
    seconds: float = 0.0


class State(Protocol):
    """Runs operations in order."""

    async def run(self, ops: Sequence[Op]) -> list[Any]:
        """Return a result for each operation; raises any error when the state can't be reached."""
        ...


# ---- in memory


def steady() -> float:
    """Return Unix seconds that don't jump when the machine's clock is set."""
    return _BEGUN + time.monotonic()


Table = dict[bytes, bytes]
Tables = dict[str, Table]


class _Entry(NamedTuple):
    value: Any
    until: float
    lifetime: float


class Local:
    """The state in this process, within `budget` bytes: the oldest of the most common keys make room.

    With `file` tables survive a restart, and services that share it see each other's; `save` writes counts, which only
    later changes do otherwise. Not thread-safe.
    """

    def __init__(
        self, budget: int = 256 << 20, *, file: Path | None = None, clock: Callable[[], float] = steady
    ) -> None:
        """Read the tables from `file`, if it exists; raises ConfigError if it can't be read."""
        self.budget = budget
        self.used = 0
        self._clock = clock
        self._numbers = count()
        self._entries: dict[str, _Entry] = {}
        # Keys of one lifetime expire in this order; by their first two characters too, for `marks`.
        self._alike: dict[tuple[str, float], OrderedDict[str, None]] = {}
        self._file = file
        self._stamp: object = None  # of the file when it was read
        self._tables: Tables = {}
        self._added: Counter[tuple[str, bytes]] = Counter()  # to fields, not written yet
        self._reread()

    def __len__(self) -> int:
        return len(self._entries)

    async def run(self, ops: Sequence[Op]) -> list[Any]:
        """Return a result for each operation."""
        return self.run_now(ops)

    def run_now(self, ops: Sequence[Op]) -> list[Any]:
        """Return a result for each operation."""
        now = self._clock()
        self.expire(most=2 * len(ops))
        return [getattr(self, f"_{name}")(now, key, value, seconds) for name, key, value, seconds in ops]

    def expire(self, *, most: int = 1_000_000) -> None:
        """Forget up to `most` expired keys of each kind."""
        now = self._clock()
        for keys in self._alike.values():
            for _ in range(most):
                if not keys or self._entries[first := next(iter(keys))].until > now:
                    break
                self._forget(first)

    def save(self) -> None:
        """Write counts to the file."""
        if self._added:
            self._change("hits", lambda table: table)

    def _get(self, now: float, key: str) -> Any:  # noqa: ANN401  by kind of key
        entry = self._entries.get(key)
        return entry.value if entry and entry.until > now else None

    def _set(self, key: str, value: Any, until: float, lifetime: float) -> None:  # noqa: ANN401
        self._forget(key)
        self._entries[key] = _Entry(value, until, lifetime)
        self._alike.setdefault((key[:2], lifetime), OrderedDict())[key] = None
        self.used += _size(value)
        while self.used > self.budget:
            commonest = max(self._alike.values(), key=len)
            self._forget(next(iter(commonest)))

    def _forget(self, key: str) -> None:
        if entry := self._entries.pop(key, None):
            self.used -= _size(entry.value)
            del self._alike[key[:2], entry.lifetime][key]

    def _tally(self, now: float, key: str, amount: int, seconds: float) -> float:
        bucket, share = divmod(now / seconds, 1)
        current = f"{key}:{bucket:.0f}"
        number = self._get(now, current) or 0
        before = self._get(now, f"{key}:{bucket - 1:.0f}") or 0
        if amount:
            self._set(current, number + amount, now + 2 * seconds, 2 * seconds)
        return float(number + before * (1 - share))

    def _mark(self, now: float, key: str, again: float, seconds: float) -> None:
        entry = self._entries.get(key)
        if entry is None or entry.until <= now:
            self._set(key, 1, now + seconds, seconds)
        elif entry.until < now + again:
            self._set(key, 1, now + again, again)

    def _marked(self, now: float, key: str, *_: object) -> int:
        return int(self._get(now, key) is not None)

    def _marks(self, now: float, key: str, *_: object) -> list[tuple[str, float]]:
        def left(name: str) -> float:
            return self._entries[name].until - now

        longest_first = [reversed(keys) for (kind, _), keys in self._alike.items() if kind == key]
        found = takewhile(lambda name: left(name) > 0, merge(*longest_first, key=left, reverse=True))
        return [(name, left(name)) for name in islice(found, LISTED)]

    def _shift(self, now: float, key: str, value: bytes, seconds: float) -> list[bytes]:
        slots = [f"{key}:{i}" for i in range(SLOTS)]
        kept = sorted((found, slot) for slot in slots if (found := self._get(now, slot)))
        if value:
            slot = next((each for each in slots if self._get(now, each) is None), kept[0][1] if kept else slots[0])
            self._set(slot, (next(self._numbers), value), now + seconds, seconds)
        return [found[1] for found, _ in reversed(kept)]

    def _unshift(self, now: float, key: str, value: bytes, _: float) -> None:
        kept = [(found, slot) for i in range(SLOTS) if (found := self._get(now, slot := f"{key}:{i}"))]
        if equal := [each for each in kept if each[0][1] == value]:
            self._forget(max(equal)[1])

    def _now(self, now: float, *_: object) -> float:
        return now

    def _drop(self, _: float, key: str, *__: object) -> None:
        self._forget(key)

    def _put(self, _: float, key: str, value: tuple[bytes, bytes], __: float) -> None:
        self._change(key, lambda table: table | dict([value]))

    def _fields(self, _: float, key: str, *__: object) -> list[bytes]:
        with suppress(ConfigError):
            self._reread()
        return list(self._tables.get(key, {}))

    def _field(self, _: float, key: str, value: bytes, __: float) -> bytes | None:
        kept, added = self._tables.get(key, {}).get(value), self._added[key, value]
        return b"%d" % (int(kept or 0) + added) if added else kept

    def _remove(self, _: float, key: str, value: bytes, __: float) -> None:
        self._reread()
        self._added.pop((key, value), None)
        if value in self._tables.get(key, {}):
            self._change(key, lambda table: {field: kept for field, kept in table.items() if field != value})

    def _add(self, _: float, key: str, value: bytes, __: float) -> None:
        self._added[key, value] += 1

    def _reread(self) -> None:
        """Read the tables from the file if it has changed; raises ConfigError if that fails."""
        if self._file and self._file.exists() and (stamp := _stamp(self._file)) != self._stamp:
            self._tables, self._stamp = _read_tables(self._file), stamp

    def _change(self, key: str, change: Callable[[Table], Table]) -> None:
        """Change a table, and the file; no table changes if it can't be written."""
        with _locked(self._file) if self._file else nullcontext():
            self._reread()
            tables = self._tables | {key: change(self._tables.get(key, {}))}
            for (name, field), added in self._added.items():
                count = int(tables.get(name, {}).get(field, b"0")) + added
                tables[name] = tables.get(name, {}) | {field: b"%d" % count}
            if self._file:
                draft = self._file.with_name(f".{self._file.name}.writing")
                draft.unlink(missing_ok=True)
                draft.touch(mode=0o600)
                draft.write_text(json.dumps({name: _encoded(each) for name, each in tables.items()}), encoding="ascii")
                draft.replace(self._file)
                self._stamp = _stamp(self._file)
            self._tables, self._added = tables, Counter()


def _size(value: object) -> int:
    return _ENTRY_BYTES + (len(value[1]) if isinstance(value, tuple) else 0)


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_ino


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Keep other services from changing the file; the lock is another, because each change replaces the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _encoded(table: Table) -> dict[str, str]:
    return {field.decode(): base64.b64encode(value).decode() for field, value in table.items()}


def _read_tables(file: Path) -> Tables:
    try:
        tables = json.loads(file.read_text(encoding="ascii"))
        return {
            name: {field.encode(): base64.b64decode(value) for field, value in table.items()}
            for name, table in tables.items()
        }
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{file} can't be read as known wordings ({type(error).__name__}); restore or remove it"
        ) from None


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
        async with server:
            while not stop.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), 1)
                local.expire()
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
    """Sends operations to the process that is `listening` at `path`; one call at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, ops: Sequence[Op]) -> list[Any]:
        """Return a result for each operation; raises OSError or IncompleteReadError when nobody listens."""
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
        f"local SLOTS, LISTED = {SLOTS}, {LISTED}",
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
        """Return a result for each operation, within BUDGET_SECONDS; `step` is the caller's."""
        if self.away:
            return self.local.run_now(ops)
        # Stored here too, so that a late look-up knows at least what this process has flagged.
        local_results = self.local.run_now(ops) if any(op.name == "mark" for op in ops) else None
        future: asyncio.Future[list[Any] | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((ops, future))
        if not self._calling:
            self._calling = True
            self._start(self._call())
        try:
            async with asyncio.timeout(BUDGET_SECONDS):
                results = await future
        except TimeoutError:
            self._observe("late", step)
            results = None
        if results is not None:
            return results
        return self.local.run_now(ops) if local_results is None else local_results

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
