"""The bundle in use: its reload without a gap, and its shadow."""

import queue
from collections.abc import Callable, Sequence
from threading import Lock, Thread

from jingyin.model.errors import JingyinError
from jingyin.model.labels import Verdict
from jingyin.serve.http.logs import log, where
from jingyin.serve.http.metrics import Metrics
from jingyin.serve.scorer import Scorer

_SHADOW_WAITING = 256
"""Batches that may wait for the shadow; it loses messages rather than memory."""


class ReloadBusyError(JingyinError):
    """A reload is under way already."""


class Deployment:
    """The scorer that answers and, if there is one, the shadow that is only counted. Safe to share between threads."""

    def __init__(self, load: Callable[[], tuple[Scorer, Scorer | None]], metrics: Metrics) -> None:
        """`load` loads and checks both scorers, and is called again by every reload."""
        self._load = load
        self._metrics = metrics
        self._lock = Lock()
        self._waiting: queue.Queue[tuple[Sequence[str], Sequence[Verdict]]] = queue.Queue(_SHADOW_WAITING)
        self._use(*load())
        Thread(target=self._follow, name="jingyin-shadow", daemon=True).start()

    def reload(self) -> str:
        """Load the bundle anew and return its id; takes about a second, so call it in a thread.

        Raises BundleError if it fails its checks, and the old one stays; ReloadBusyError during another reload.
        """
        if not self._lock.acquire(blocking=False):
            self._metrics.reloads("busy").inc()
            raise ReloadBusyError("a reload is under way; wait for it and ask again if the bundle changed since")
        try:
            self._use(*self._load())
        except Exception as error:
            self._metrics.reloads("failed").inc()
            log(
                "reload_failed",
                level="error",
                kept=self.bundle_id,
                reason=str(error) if isinstance(error, JingyinError) else "",
                **where(error),
            )
            raise
        finally:
            self._lock.release()
        self._metrics.reloads("done").inc()
        log("reloaded", bundle=self.bundle_id)
        return self.bundle_id

    @property
    def bundle_id(self) -> str:
        """The id of the bundle that answers."""
        return self.scorer.bundle.manifest.id

    def watch(self, texts: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        """Let the shadow see what was answered; returns at once."""
        if self.shadow is None:
            return
        try:
            self._waiting.put_nowait((texts, verdicts))
        except queue.Full:
            self._metrics.shadow_lost.inc(len(texts))

    def _use(self, scorer: Scorer, shadow: Scorer | None) -> None:
        self.scorer, self.shadow = scorer, shadow
        self._metrics.bundle.clear()
        self._metrics.bundle.labels(self.bundle_id, "live").set(1)
        if shadow is not None:
            self._metrics.bundle.labels(shadow.bundle.manifest.id, "shadow").set(1)

    def _follow(self) -> None:
        while True:
            texts, verdicts = self._waiting.get()
            shadow = self.shadow
            if shadow is None:  # taken away by a reload
                continue
            try:
                for live, other in zip(verdicts, shadow.score_many(texts), strict=True):
                    self._metrics.shadow(live.action, other.action).inc()
            except Exception as error:  # a broken shadow must not end its thread, much less the service
                self._metrics.shadow_lost.inc(len(texts))
                log("shadow_failed", level="error", **where(error))
