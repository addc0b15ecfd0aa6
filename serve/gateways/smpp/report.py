"""What operators see of the proxy: metrics, and JSON lines on standard error. No text, number or name in either."""

import json
import sys
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()
MESSAGES = Counter(
    "jingyin_smpp_messages",
    "Submitted messages, a part of a long one counted as one.",
    ["action", "reason"],
    registry=REGISTRY,
)
SESSIONS = Gauge("jingyin_smpp_sessions", "ESMEs that are connected.", registry=REGISTRY)
ENDED = Counter("jingyin_smpp_sessions_ended", "Sessions by what ended them.", ["by"], registry=REGISTRY)
ENDED.labels("unreachable")  # an alarm needs it at 0 first
HELD = Gauge("jingyin_smpp_parts_held", "Parts that wait for the others of their message.", registry=REGISTRY)
SECONDS = Histogram(
    "jingyin_smpp_judge_seconds",
    "From question to verdict.",
    buckets=(0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 1.0),
    registry=REGISTRY,
)


def log(event: str, **fields: object) -> None:
    """Write one line: time (seconds since 1970), event, and fields that the caller knows to hold no text."""
    line = json.dumps({"time": round(time.time(), 3), "event": event, **fields})
    print(line, file=sys.stderr, flush=True)  # noqa: T201
