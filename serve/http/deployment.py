"""The bundle that answers, warmed up before the first request, and its shadow."""

import queue
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

from jingyin.model.errors import BundleError
from jingyin.serve.observe import Metrics, error_site, log
from jingyin.serve.scorer import Scored, Scorer
from jingyin.serve.settings import Settings

_SHADOW_WAITING = 256
"""Most batches that wait for the shadow, to bound memory; beyond that it skips messages."""

Load = Callable[[], tuple[Scorer, Scorer | None]]
"""Loads and checks the bundle and, if there is one, the shadow."""


def load_scorers(settings: Settings, folder: Path) -> tuple[Scorer, Scorer | None]:
    """Load the copies of bundle and shadow in `folder`, and warm up the bundle.

    Raises BundleError if one fails its checks, or the bundle is not the one that the settings pin.
    """
    scorer = Scorer.load(folder / "bundle", **settings.rates)
    if settings.bundle_id not in (None, found := scorer.bundle.manifest.id):
        raise BundleError(f"the bundle has id {found}, the settings pin {settings.bundle_id}; deploy that bundle, or "
                          "change bundle_id")  # fmt: skip
    warm(scorer)
    return scorer, Scorer.load(folder / "shadow", **settings.rates) if settings.shadow else None


def warm(scorer: Scorer) -> None:
    """Have every network read messages of all lengths: its first reading takes 60 ms, more than a deadline."""
    reader = scorer.without_memory(prefilter=False)
    for _ in range(2):
        list(reader.scored(["不还钱就爆你通讯录" * length for length in (1, 2, 4, 8, 16, 32, 64)]))


class Deployment:
    """The scorer that answers and, if there is one, the shadow, which is counted and never answers.

    `uncached` is the same scorer without its cache of decisions.
    """

    def __init__(self, scorer: Scorer, shadow: Scorer | None, metrics: Metrics) -> None:
        self.scorer = scorer
        self.bundle_id = scorer.bundle.manifest.id
        self.uncached = scorer.without_memory()
        self.uncached.readings = scorer.readings  # else a text would begin anew in each of its time slices
        self.shadow = shadow
        self._metrics = metrics
        self._waiting: queue.Queue[Sequence[Scored]] = queue.Queue(_SHADOW_WAITING)
        metrics.bundle.labels(self.bundle_id, "deployed").set(1)
        if shadow is not None:
            metrics.bundle.labels(shadow.bundle.manifest.id, "shadow").set(1)
            Thread(target=self._follow, args=[shadow], name="jingyin-shadow", daemon=True).start()

    def count(self, readings: Sequence[Scored]) -> None:
        """Count messages that were read to the end, and let the shadow see them; returns at once."""
        for reading in readings:
            stage = "cache" if reading.from_cache else reading.decision.stage
            self._metrics.count(reading.decision, stage, reading.clean.edits)
        if self.shadow is not None and readings:
            try:
                self._waiting.put_nowait(readings)
            except queue.Full:
                self._metrics.shadow_lost.inc(len(readings))

    def _follow(self, shadow: Scorer) -> None:
        while True:
            readings = self._waiting.get()
            try:
                shadowed = shadow.score_many(reading.clean.original for reading in readings)
                for reading, verdict in zip(readings, shadowed, strict=True):
                    self._metrics.shadow(reading.decision.action, verdict.action).inc()
            except Exception as error:  # a broken shadow must not end its thread, much less the service
                self._metrics.shadow_lost.inc(len(readings))
                log("shadow_failed", level="error", **error_site(error))
