"""Accounts: their names in log and metrics, the messages refused of each, and a bound on the rate of each.

A name there is a hash, salted by JINGYIN_ACCOUNT_SALT (by default a new salt for each start). To find an account:

    JINGYIN_ACCOUNT_SALT=... python -m jingyin.serve.gateways.accounts NAME ...
"""

import os
import sys
import time
from collections import OrderedDict
from hashlib import blake2b

from prometheus_client import Counter

from jingyin.serve.gateways.client import MESSAGES, REGISTRY, Ruling, log

REFUSED = Counter(
    "jingyin_gateway_refused", "Messages refused, or to be refused in a dry run, by account.", ["account", "action"],
    registry=REGISTRY,
)  # fmt: skip
MAX_ACCOUNTS = 1_000
"""Most accounts with a name of their own in metrics, and with a rate; Kannel's filter takes any name for one."""
LOG_SECONDS = 60.0
"""Pause between log lines about one account."""


class Accounts:
    """The accounts of a filter; `rate` is the most messages of one account a second, 0 for no bound."""

    def __init__(self, rate: float = 0.0, salt: str = "") -> None:
        self._rate = rate
        self._key = blake2b(salt.encode() or os.urandom(16)).digest()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # messages, and when that was true
        self._logged: OrderedDict[str, tuple[int, float]] = OrderedDict()  # refusals since, and when
        self._named: set[str] = set()

    def name(self, account: str) -> str:
        """Return the name of an account in log and metrics, "" for none."""
        data = account.strip().lower().encode("utf-8", "replace")
        return blake2b(data, key=self._key, digest_size=4).hexdigest() if data else ""

    def admit(self, account: str, messages: int) -> bool:
        """Return whether an account may send so many messages now; a second's worth may come at once."""
        if not self._rate:
            return True
        most, now = max(1.0, self._rate), time.monotonic()
        left, since = self._left.pop(account, (most, now))
        left = min(most, left + (now - since) * self._rate)
        wanted = min(most, messages)  # a message to many must be possible
        self._left[account] = left - wanted if left >= wanted else left, now
        if len(self._left) > MAX_ACCOUNTS:
            self._left.popitem(last=False)
        return left >= wanted

    def count(self, account: str, answer: Ruling, **where: object) -> None:
        """Count what became of a message; log the account if it was refused, with `where`, once in LOG_SECONDS."""
        MESSAGES.labels(*answer).inc()
        if answer.action in ("pass", "review"):
            return
        name = self.name(account)
        if len(self._named) < MAX_ACCOUNTS:
            self._named.add(name)
        REFUSED.labels(name if name in self._named else "other", answer.action).inc()
        now = time.monotonic()
        count, since = self._logged.pop(name, (0, now - LOG_SECONDS))
        count += 1
        if now - since >= LOG_SECONDS:
            log("refused", account=name, action=answer.action, reason=answer.reason, messages=count, **where)
            count, since = 0, now
        self._logged[name] = count, since
        if len(self._logged) > MAX_ACCOUNTS:
            self._logged.popitem(last=False)


if __name__ == "__main__":
    for each in sys.argv[1:]:
        print(Accounts(salt=os.environ["JINGYIN_ACCOUNT_SALT"]).name(each), each)  # noqa: T201
