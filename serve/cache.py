"""The cache: decisions already made, by clean text.

Exact, not approximate: the network sees nothing but the clean text, so equal clean texts have equal verdicts; only a
disguised message, which the prefilter may not judge, has a key of its own. Messages that differ only in numbers, links
or amounts of one bucket share an entry.
"""

import sys
from collections import OrderedDict
from threading import Lock
from typing import Generic, TypeVar

V = TypeVar("V")
# Size of an entry without its key, slot of the OrderedDict included, as tracemalloc measures it: about 600 bytes for
# a network's decision, 800 with two reasons. Those of the prefilter are shared and take less.
_ENTRY_BYTES = 800


class Cache(Generic[V]):
    """A least-recently-used map from text to value within a budget of bytes; safe to share between threads.

    A miss is counted by `put`, not by `get`: a message that networks read in several time slices looks more than once.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self.cache_hits = 0
        self.cache_misses = 0
        self._entries: OrderedDict[str, V] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> V | None:
        """Return the value of `key`, now the most recently used, or None."""
        with self._lock:
            value = self._entries.get(key)
            if value is not None:
                self.cache_hits += 1
                self._entries.move_to_end(key)
            return value

    def put(self, key: str, value: V) -> None:
        """Remember `value`, forgetting the least recently used entries if the budget is exceeded.

        Every value that a key is ever given has the same size.
        """
        size = _size(key, value)
        with self._lock:
            self.cache_misses += 1
            if size > self.budget:
                return
            if key not in self._entries:
                self.used += size
            self._entries[key] = value
            while self.used > self.budget:
                self.used -= _size(*self._entries.popitem(last=False))


def _size(key: str, value: object) -> int:
    return sys.getsizeof(key) + _ENTRY_BYTES + int(getattr(value, "nbytes", 0))
