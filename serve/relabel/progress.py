"""A line on the terminal: how far, how fast, how long still."""

import sys
from time import monotonic


class Progress:
    """Shows rows, share, rate and time left on standard error; nothing when that is no terminal."""

    def __init__(self, rows: int, share: float, *, shown: bool) -> None:
        self._begun = monotonic()
        self._start = rows, share
        self._shown = shown and sys.stderr.isatty()
        self._due = 0.0

    def show(self, rows: int, share: float) -> None:
        """Show the state, at most four times a second; `share` of the input, 0 to 1, has been read."""
        now = monotonic()
        if self._shown and now >= self._due:
            self._due = now + 0.25
            line = self._line(rows, share, now - self._begun)
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201

    def _line(self, rows: int, share: float, seconds: float) -> str:
        rate = (rows - self._start[0]) / max(seconds, 1e-9)
        done = share - self._start[1]
        left = clock(seconds * (1 - share) / done) if done > 0 else "?"
        return f"{rows:,} rows  {share:.1%}  {rate:,.0f} rows/s  {left} left"

    def close(self) -> None:
        """Clear the line."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
