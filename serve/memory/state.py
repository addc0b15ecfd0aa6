"""The state: small operations on expiring keys and on tables, and their execution in memory.

A caller hands over a list of operations and gets a result for each. `Local` runs them in this process; remote.py has
the states of other processes.
"""

import base64
import fcntl
import json
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from heapq import merge
from itertools import count, islice, takewhile
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jingyin.model.errors import ConfigError
from jingyin.model.files import atomic_file

SLOTS = 3
"""Values that `shift` keeps of a key."""
LISTED = 1_000
"""Most marks listed, those that last longest."""
PUSHED = 64
"""Values that `push` keeps of a key."""

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
        push     up to PUSHED values, newest first, and whether older ones were forgotten; then `value` (bytes), if any
                 and not among them, becomes the newest for `seconds`, as all others
        pull     forget `value`
        drop     forget a mark
        put      set field `value[0]` of the table `key` to `value[1]` (both bytes)
        fields   the names (bytes) of the table's fields
        field    the value of the field `value`, or None
        remove   forget the field `value`
        add      add 1 to the count in the field `value`
        evicted  the number of keys forgotten early for lack of memory; `key` means nothing
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
        self.evicted = 0
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
        for keys in list(self._alike.values()):
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
            self.evicted += 1

    def _forget(self, key: str) -> None:
        if entry := self._entries.pop(key, None):
            self.used -= _size(entry.value)
            alike = self._alike[key[:2], entry.lifetime]
            del alike[key]
            if not alike:  # callers choose lifetimes: there is no end of different ones
                del self._alike[key[:2], entry.lifetime]

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

    def _push(self, now: float, key: str, value: bytes, seconds: float) -> tuple[list[bytes], bool]:
        kept, lost = self._get(now, key) or ((), False)
        if value and value not in kept:
            self._set(key, ((value, *kept)[:PUSHED], lost or len(kept) == PUSHED), now + seconds, seconds)
        return list(kept), lost

    def _pull(self, now: float, key: str, value: bytes, _: float) -> None:
        if entry := self._entries.get(key):
            kept, lost = entry.value
            self._set(key, (tuple(each for each in kept if each != value), lost), entry.until, entry.lifetime)

    def _evicted(self, *_: object) -> int:
        return self.evicted

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
        if not self._file or not self._file.exists() or (stamp := _stamp(self._file)) == self._stamp:
            return
        try:
            self._tables = {
                name: {field.encode(): base64.b64decode(value) for field, value in table.items()}
                for name, table in json.loads(self._file.read_text(encoding="ascii")).items()
            }
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{self._file} can't be read as known wordings ({type(error).__name__}); restore or remove it"
            ) from None
        self._stamp = stamp

    def _change(self, key: str, change: Callable[[Table], Table]) -> None:
        """Change a table, and the file; no table changes if it can't be written."""
        with _locked(self._file) if self._file else nullcontext():
            self._reread()
            tables = self._tables | {key: change(self._tables.get(key, {}))}
            for (name, field), added in self._added.items():
                count = int(tables.get(name, {}).get(field, b"0")) + added
                tables[name] = tables.get(name, {}) | {field: b"%d" % count}
            if self._file:
                with atomic_file(self._file) as file:
                    os.fchmod(file.fileno(), 0o600)
                    file.write(json.dumps({name: _encoded(each) for name, each in tables.items()}).encode())
                self._stamp = _stamp(self._file)
            self._tables, self._added = tables, Counter()


def _size(value: object) -> int:
    if not isinstance(value, tuple):
        return _ENTRY_BYTES
    return _ENTRY_BYTES + (len(value[1]) if isinstance(value[1], bytes) else sum(len(each) + 40 for each in value[0]))


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
