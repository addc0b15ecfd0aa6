"""Logs (JSON lines on standard error) and metrics, for operators. Neither contains text of a message."""

import fcntl
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from jingyin.model.cascade import Decision

Level = Literal["info", "warning", "error"]


def log(event: str, *, level: Level = "info", **fields: object) -> None:
    """Write one line: time (seconds since 1970), level, event, and fields that the caller knows to hold no text.

    A line that can't be written (a full disk, a closed pipe, a lone surrogate) is lost: logging must not stop the
    service.
    """
    with suppress(OSError, ValueError, orjson.JSONEncodeError):
        line = orjson.dumps({"time": round(time.time(), 3), "level": level, "event": event, **fields}, default=str)
        # Bypasses Python's buffer, which would keep unwritten data and fail with it again.
        os.write(sys.stderr.fileno(), line + b"\n")


def error_site(error: BaseException) -> dict[str, str]:
    """Return the type of an error and the line that raised it. Its message stays out: it may quote its input."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    at = f"{frame.tb_frame.f_code.co_qualname}:{frame.tb_lineno}" if frame else ""
    return {"error": type(error).__name__, "at": at}


class JsonHandler(logging.Handler):
    """Writes the logs of libraries (uvicorn, asyncio) in the same form; exceptions without their messages."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        fault = error_site(record.exc_info[1]) if record.exc_info and record.exc_info[1] else {}
        levels: tuple[Level, ...] = ("info", "warning", "error")
        level = levels[(record.levelno >= logging.WARNING) + (record.levelno >= logging.ERROR)]
        # The template, not the filled-in line: uvicorn's templates are constant, their arguments need not be. asyncio
        # has no templates and quotes the failed object; a lifespan's message is a whole traceback, so its first line.
        message = {} if fault or record.name == "asyncio" else {"message": str(record.msg).partition("\n")[0]}
        log("server", level=level, logger=record.name, **message, **fault)


def take_over_logging() -> None:
    """Send the logs of uvicorn and asyncio through `log`; uvicorn's access log stays off, app.py writes ours."""
    for name in ("uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [JsonHandler()]
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    logging.getLogger("uvicorn.access").disabled = True


# Every label has a fixed, small set of values; none comes from a message or a client.

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable by which prometheus_client finds the folder of all workers' metrics."""


def claim_counts() -> None:
    """Let this worker continue the counts of one that ended, if there is one; call it before metrics are made.

    With files by process id, prometheus_client's default, each reload would leave more of them for /metrics to read.
    """
    folder = os.environ[FOLDER]
    for number in itertools.count():
        lock = os.open(f"{folder}/{number}", os.O_RDWR | os.O_CREAT, 0o600)
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held until the process ends
            mark_process_dead(number, folder)  # type: ignore[no-untyped-call]
            values.ValueClass = values.MultiProcessValue(number.__int__)  # type: ignore[no-untyped-call]
            return
        os.close(lock)


def forget_gauges() -> None:
    """Remove the gauges of workers that ended; their counts stay."""
    for file in Path(os.environ[FOLDER]).glob("[0-9]*"):
        with file.open() as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mark_process_dead(file.name, str(file.parent))  # type: ignore[no-untyped-call]


_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one application, in a registry of their own.

    Those with labels are functions from labels to a metric, as in `metrics.refused("queue").inc()`. They cache their
    results: prometheus_client's own look-up takes three times as long as an increment.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self.counter("requests", "Requests by route and status.", "route", "status")
        self.refused = self.counter("refused", "Requests refused before their messages were read.", "reason")
        self.seconds = cache(self.histogram("request_seconds", "From arrival to answer.", _SECONDS, "route").labels)
        self.messages = self.counter("messages", "Scored messages.", "stage", "action")
        self.unscored = self.counter("unscored", "Messages answered before all had been read.", "reason", "action")
        self.changed = self.counter("changed", "Messages whose action memory changed.", "reason", "action")
        self.dry_run = self.counter("dry_run", "Actions that a dry run did not take.", "action")
        self.edits = self.counter("normaliser_edits", "What the text normaliser undid.", "kind")
        self.sms = self.counter("sms_faults", "Faults in payloads and headers.", "kind")
        self.batch = self.histogram("batch_messages", "Messages per batch.", _SIZES)
        self.batch_seconds = self.histogram("batch_seconds", "Scoring time of a batch.", _SECONDS)
        self.queue = self.gauge("queue_messages", "Waiting messages.")
        self.cache = self.gauge("cache", "The cache of the bundle in use.", "what")
        self.bundle = self.gauge("bundle_info", "Workers that use a bundle.", "id", "role")
        self.near_duplicates = self.histogram("near_duplicates", "Near-copies before a suspicious message.", _SIZES)
        self.joined = self.counter("joined_texts", "Joined texts, by what they did to the action.", "outcome")
        self.policy = self.counter("policy", "Messages by the policy rule that matches.", "rule", "action")
        self.state_seconds = self.histogram("state_seconds", "Round trips to the state.", _SECONDS)
        self.state_events = self.counter(
            "state_events", "Late answers of the state, by step; when it was away, and back.", "event", "step"
        )
        self.state_away = self.gauge("state_away", "Workers that use memory of their own, because the state is away.")
        self.state_evicted = self.gauge(
            "state_evicted", "Keys that the state forgot early for lack of memory.", over="livemax"
        )
        self.cases_dropped = self.counter(
            "cases_dropped", "Messages and cases that the review queue lost or forgot.", "what"
        )
        self.cases_dropped("queue")  # so that alarms see it at 0 before it rises
        self.cases_waiting = self.gauge("cases_waiting", "Messages that wait to be written to their case.")
        self.cases_open = self.gauge("cases_open", "Undecided cases, counted each minute.", over="livemax")
        self.cases_away = self.gauge("cases_away", "Workers whose database of cases can't be used.")
        self.reloads = self.counter("reloads", "Workers that a reload started, or failed to start.", "outcome")
        self.replaced = Counter(
            "jingyin_workers_replaced", "Workers that took a dead one's place.", registry=self.registry
        )
        self.shadow = self.counter("shadow", "Action of the deployed bundle and of the shadow.", "deployed", "shadow")
        self.shadow_lost = Counter("jingyin_shadow_lost", "Messages that the shadow skipped.", registry=self.registry)

    def count(self, decision: Decision, stage: str, edits: dict[str, int]) -> None:
        """Count a scored message."""
        self.messages(stage, decision.action).inc()
        for kind, count in edits.items():
            self.edits(kind).inc(count)

    def render(self) -> bytes:
        """Return the text format, of all workers' metrics if there are several."""
        if FOLDER not in os.environ:
            return generate_latest(self.registry)
        every = CollectorRegistry()
        MultiProcessCollector(every)  # type: ignore[no-untyped-call]
        return generate_latest(every)

    def gauge(self, name: str, meaning: str, *labels: str, over: Literal["livesum", "livemax"] = "livesum") -> Gauge:
        """Return a gauge: the sum over live workers, or their largest value."""
        return Gauge(f"jingyin_{name}", meaning, labels, registry=self.registry, multiprocess_mode=over)

    def histogram(self, name: str, meaning: str, bounds: Sequence[float], *labels: str) -> Histogram:
        """Return a histogram; with labels, call its `labels` with their values."""
        return Histogram(f"jingyin_{name}", meaning, labels, buckets=bounds, registry=self.registry)

    def counter(self, name: str, meaning: str, *labels: str) -> Callable[..., Counter]:
        """Return a function from the values of `labels` to a counter."""
        return cache(Counter(f"jingyin_{name}", meaning, labels, registry=self.registry).labels)
