"""The bundle in use: its reload without a gap, and its shadow."""

import copy
import ctypes
import queue
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock, Thread

from jingyin.model.errors import JingyinError
from jingyin.model.labels import Verdict
from jingyin.serve.http.observe import Metrics, log, where
from jingyin.serve.scorer import Cache, Scorer

_SHADOW_WAITING = 256
"""Batches that may wait for the shadow; it loses messages rather than memory."""

Load = Callable[[], tuple[Scorer, Scorer | None]]
"""Loads and checks the bundle and, if there is one, the shadow."""


class ReloadBusyError(JingyinError):
    """A reload is under way already."""


class Deployment:
    """The scorer that answers and, if there is one, the shadow that is only counted. Safe to share between threads.

    `uncached` is the scorer that answers, but for its cache: it remembers nothing.

    A reload has two steps, so that several processes can do it all or none: `prepare` loads and checks beside what is
    in use, `commit` uses what was prepared.
    """

    def __init__(self, load: Load, metrics: Metrics) -> None:
        """`load` is called now, and again by every `reload`."""
        self._load = load
        self._metrics = metrics
        self._lock = Lock()
        self._prepared: tuple[Scorer, Scorer | None] | None = None
        self._in_use: list[tuple[str, str]] = []
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
            self.prepare(self._load)
            log("reloaded", bundle=self.commit())
        except Exception as error:
            self.discard()
            reason = str(error) if isinstance(error, JingyinError) else ""
            log("reload_failed", level="error", kept=self.bundle_id, reason=reason, **where(error))
            raise
        finally:
            self._lock.release()
        return self.bundle_id

    def prepare(self, load: Load) -> str:
        """Load what `commit` will use, and return the bundle's id. Raises BundleError if it fails its checks."""
        self._prepared = load()
        return self._prepared[0].bundle.manifest.id

    def commit(self) -> str:
        """Use what was prepared, and return the bundle's id."""
        if self._prepared is not None:
            self._use(*self._prepared)
            self._prepared = None
            self._metrics.reloads("done").inc()
            _give_memory_back()
        return self.bundle_id

    def discard(self) -> None:
        """Give the reload up, and keep what is in use."""
        self._prepared = None
        self._metrics.reloads("failed").inc()
        _give_memory_back()

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
        self.uncached = copy.copy(scorer)
        self.uncached.cache = Cache(0)
        for id_and_role in self._in_use:
            self._metrics.bundle.labels(*id_and_role).set(0)
        self._in_use = [(self.bundle_id, "deployed")]
        if shadow is not None:
            self._in_use.append((shadow.bundle.manifest.id, "shadow"))
        for id_and_role in self._in_use:
            self._metrics.bundle.labels(*id_and_role).set(1)

    def _follow(self) -> None:
        while True:
            texts, verdicts = self._waiting.get()
            shadow = self.shadow
            if shadow is None:  # taken away by a reload
                continue
            try:
                for verdict, other in zip(verdicts, shadow.score_many(texts), strict=True):
                    self._metrics.shadow(verdict.action, other.action).inc()
            except Exception as error:  # a broken shadow must not end its thread, much less the service
                self._metrics.shadow_lost.inc(len(texts))
                log("shadow_failed", level="error", **where(error))


def _give_memory_back() -> None:
    """Let glibc return what it holds free: it kept a bundle's worth at each reload, 176 to 428 MB after eight."""
    with suppress(OSError, AttributeError):  # another C library has no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
