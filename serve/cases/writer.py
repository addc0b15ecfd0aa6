"""The way of a message into its case: a queue with bounds, and the thread that writes it to the database.

A message is offered once its verdict is final, and the verdict waits for nothing. If the database can't be used, the
thread keeps what it has and tries again, so only what finds the queue full is lost, and counted.
"""

import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread

from jingyin.model.errors import ConfigError, JingyinError
from jingyin.model.near_copies import CHARACTERS
from jingyin.model.text import clean
from jingyin.serve.answer import Answer, Origin
from jingyin.serve.cases.cases import TEXT, Cases, Message
from jingyin.serve.cases.store import Store, StoreError
from jingyin.serve.memory.memory import SECRET
from jingyin.serve.memory.secret import Secret, read_secret
from jingyin.serve.observe import Metrics, error_site, log
from jingyin.serve.settings import CaseSettings, Settings

BATCH, BATCH_SECONDS = 500, 0.2
"""Most messages of a transaction, and how long the first of them waits for others."""
RETRY_SECONDS, EXPIRE_SECONDS = 1.0, 60.0


class Writer:
    """Offers messages to the cases, and writes them in a thread of its own."""

    def __init__(self, cases: Cases, settings: CaseSettings, metrics: Metrics) -> None:
        self.cases = cases
        self._metrics = metrics
        self._shares = {"review": 1.0, "block": settings.block_share, "pass": settings.pass_share}
        self._queue: Queue[Message] = Queue(settings.waiting)
        self._ending = Event()
        self._away = False
        self._thread = Thread(target=self._run, name="jingyin-cases", daemon=True)
        metrics.cases_away.set(0)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Write what waits, unless the database can't be used, and end the thread."""
        self._ending.set()
        self._thread.join(5)
        self.cases.store.close()

    def offer(self, origin: Origin, text: str, answer: Answer) -> None:
        """Keep a message that was answered, if its action is one that analysts see; returns at once."""
        share = self._shares[answer.action]
        if share < 1 and (answer.reason == "known" or random.random() >= share):
            return
        scored, decision = answer.scored, answer.scored.decision if answer.scored else None
        reasons = [reason.sign for reason in decision.reasons] if decision else []
        if answer.reason != "scored":
            reasons.append(answer.reason)
        self.put(
            Message(
                time.time(),
                text[:TEXT],
                (scored.clean if scored else clean(text[:TEXT])).text[:CHARACTERS],
                answer.action,
                decision.label if decision else "ordinary",
                decision.risk if decision else 0.5,
                tuple(reasons),
                origin.key,
                origin.route,
                origin.sender,
                origin.receiver,
            )
        )

    def put(self, message: Message) -> None:
        """Queue a message; what finds no room is counted, and fails if anyone waits for it."""
        if self._away and message.kept:
            return message.kept.set_exception(StoreError("the database of cases can't be used now; try again later"))
        try:
            self._queue.put_nowait(message)
        except Full:
            self._metrics.cases_dropped("queue").inc()
            if message.kept:
                message.kept.set_exception(StoreError("too many messages wait for the database of cases; try again"))
        return None

    def _run(self) -> None:
        batch: list[Message] = []
        expired = 0.0
        while True:
            batch = batch or self._gather()
            self._metrics.cases_waiting.set(self._queue.qsize() + len(batch))
            if batch and self._attempt(partial(self.cases.keep, batch), batch):
                batch = []
            if not self._away and time.monotonic() - expired > EXPIRE_SECONDS:
                self._attempt(lambda: self._metrics.cases_open.set(self.cases.expire()), [])
                expired = time.monotonic()
            if self._ending.is_set() and (self._away or not (batch or self._queue.qsize())):
                return
            if self._away:
                self._ending.wait(RETRY_SECONDS)

    def _gather(self) -> list[Message]:
        """Return the messages that wait, at once if anyone waits for one of them."""
        batch: list[Message] = []
        end = time.monotonic() + BATCH_SECONDS
        while len(batch) < BATCH and not (batch and batch[-1].kept):
            try:
                message = self._queue.get(timeout=max(0.0, end - time.monotonic()))
            except Empty:
                break
            if not message.kept or message.kept.set_running_or_notify_cancel():  # else nobody waits any more
                batch.append(message)
        return batch

    def _attempt(self, work: Callable[[], None], batch: list[Message]) -> bool:
        """Run `work` on the database; False if that can't be used, and the batch is to be tried again."""
        error: Exception | None = None
        try:
            work()
        except (StoreError, ConfigError) as fault:
            error = fault
            if not self._away:
                log("cases_away", level="warning", reason=str(fault))
        except Exception as fault:  # one of the messages, which must not stop the others
            log("cases_failed", level="error", **error_site(fault))
            if len(batch) > 1:
                failed = [each for each in batch if not self._attempt(partial(self.cases.keep, [each]), [each])]
                batch[:] = [each for each in failed if not each.kept]
                return not batch
            error = JingyinError("the report can't be kept; its fault is in the log")
            self._metrics.cases_dropped("error").inc(len(batch))
        for message in batch:
            if message.kept:
                message.kept.set_exception(error) if error else message.kept.set_result(None)
        away = isinstance(error, (StoreError, ConfigError))
        if away:  # who waited will send it again
            batch[:] = [message for message in batch if not message.kept]
        elif self._away:
            log("cases_back")
        self._away = away
        self._metrics.cases_away.set(away)
        return not away


def database(settings: Settings) -> str | Path:
    """Return the URL of the database, or its file."""
    return (settings.cases and settings.cases.database) or settings.known_file.with_name("cases.sqlite")


def check_cases(settings: Settings, folder: Path) -> None:
    """Make the database of a service whose workers share the private `folder`, or bring it to this version.

    Raises ConfigError for a newer version, another secret, or a file that can't be written. A PostgreSQL that is away
    is not waited for.
    """
    store = Store(database(settings), _secret(settings, folder))
    try:
        store.open()
    except StoreError as error:
        if isinstance(database(settings), Path):
            raise ConfigError(str(error)) from None
        log("cases_away", level="warning", reason=str(error))
    finally:
        store.close()


def make_writer(settings: Settings, case_settings: CaseSettings, folder: Path | None, metrics: Metrics) -> Writer:
    """Return the writer of a worker. Raises ConfigError."""
    secret = _secret(settings, folder)
    store = Store(database(settings), secret)
    cases = Cases(store, secret, case_settings, lambda what, number: metrics.cases_dropped(what).inc(number))
    return Writer(cases, case_settings, metrics)


def _secret(settings: Settings, folder: Path | None) -> Secret:
    file = folder / SECRET if folder else settings.secret_file
    return Secret(read_secret(file, make=not (folder or settings.state_secret)), encrypts=True)
