"""How many requests may be under way: as many as are answered in time, found as TCP finds its window."""

from time import monotonic

LEAST = 8
HOLD_SECONDS = 0.1
"""After one step down the next waits until its effect can be seen."""


class Admission:
    """`limit` shrinks by 30% when an answer is late and grows by one for each `limit` answers in time.

    A fixed limit is wrong on every machine but one: 256 requests are 50 ms of work on a quick one, a second on a slow.
    """

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._stepped = 0.0
        self.limit = float(most)

    def note(self, *, late: bool) -> None:
        """Take one answer into account."""
        if not late:
            self.limit = min(self._most, self.limit + 1 / self.limit)
        elif (now := monotonic()) - self._stepped > HOLD_SECONDS:
            self._stepped = now
            self.limit = max(min(LEAST, self._most), self.limit * 0.7)
