"""How many requests may be under way, and how many may be refused."""

from time import monotonic

LEAST = 8
HOLD_SECONDS = 0.1
"""After one step down the next waits until its effect can be seen."""

REFUSALS = 5_000
"""Refusals a second that are answered at once: about 15 us of the event loop each, a twelfth of it in all."""
BURST = 0.02
"""Seconds' worth of them that may come together."""


class Admission:
    """`limit` is found as TCP finds its window: 30% less when an answer is late, one more after `limit` in time.

    A fixed limit is wrong on every machine but one: 256 requests are 50 ms of work on a quick one, a second on a slow.
    """

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._stepped = 0.0
        self._refused_until = 0.0
        self.limit = float(most)

    def note(self, *, late: bool) -> None:
        """Take one answer into account."""
        if not late:
            self.limit = min(self._most, self.limit + 1 / self.limit)
        elif (now := monotonic()) - self._stepped > HOLD_SECONDS:
            self._stepped = now
            self.limit = max(min(LEAST, self._most), self.limit * 0.7)

    def rest(self) -> float:
        """Take one refusal into account; return for how many seconds its client should not be read.

        Clients that ask again at once would otherwise get nothing but refusals out of the event loop.
        """
        now = monotonic()
        self._refused_until = max(self._refused_until, now) + 1 / REFUSALS
        ahead = self._refused_until - now
        return ahead if ahead > BURST else 0.0
