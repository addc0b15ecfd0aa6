"""What operators count. Every label has a fixed, small set of values; none comes from a message or a client."""

from collections import Counter as Tally
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from jingyin.model.labels import Verdict

_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "jingyin_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "jingyin_request_seconds", "From headers to answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.messages = Counter("jingyin_messages", "Scored messages.", ["stage", "action"], registry=registry)
        self.hits = Counter("jingyin_normaliser_hits", "What the text normaliser undid.", ["kind"], registry=registry)
        self.unscored = Counter("jingyin_unscored", "Messages answered without a score.", ["reason"], registry=registry)
        self.refused = Counter(
            "jingyin_refused", "Requests refused without a look at their messages.", ["reason"], registry=registry
        )
        self.sms = Counter("jingyin_sms_faults", "Faults in payloads and headers.", ["kind"], registry=registry)
        self.batch = Histogram("jingyin_batch_messages", "Messages a batch.", buckets=_SIZES, registry=registry)
        self.batch_seconds = Histogram(
            "jingyin_batch_seconds", "Scoring time of a batch.", buckets=_SECONDS, registry=registry
        )
        self.queue = Gauge("jingyin_queue_messages", "Messages that wait.", registry=registry)
        self.memo = Gauge("jingyin_memo", "The memo of the bundle in use.", ["what"], registry=registry)
        self.bundle = Gauge("jingyin_bundle_info", "1 for each bundle in use.", ["id", "role"], registry=registry)
        self.reloads = Counter("jingyin_reloads", "Reloads of the bundle.", ["outcome"], registry=registry)
        self.shadow = Counter("jingyin_shadow", "Live against shadow action.", ["live", "shadow"], registry=registry)
        self.shadow_lost = Counter("jingyin_shadow_lost", "Messages that the shadow skipped.", registry=registry)

    def count_verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """Count a batch at once: a labelled increment costs about as much as a memo answer."""
        for (stage, action), count in Tally((v.stage, v.action) for v in verdicts).items():
            self.messages.labels(stage, action).inc(count)
        for verdict in verdicts:
            for kind, count in verdict.hits.items():
                self.hits.labels(kind).inc(count)

    def render(self) -> bytes:
        """Return the text format."""
        return generate_latest(self.registry)
