"""Evidence on request: slow (a run of the network for each word), so it has a thread and a time limit of its own."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from jingyin.model.labels import Span
from jingyin.serve.http.batcher import BusyError
from jingyin.serve.http.deployment import Deployment

MAX_WAITING = 16
SECONDS = 5.0


class Explainer:
    """Explains one message at a time beside the inference thread."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="jingyin-evidence")
        self._waiting = 0

    async def explain(self, texts: Sequence[str]) -> list[list[Span] | None]:
        """Return the evidence of each message, None for what was not ready in SECONDS. Raises BusyError."""
        if self._waiting + len(texts) > MAX_WAITING:
            raise BusyError(f"at most {MAX_WAITING} messages may wait for evidence; ask for fewer, or without explain")
        if not texts:
            return []
        self._waiting += len(texts)
        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(self._pool, self._explain, text) for text in texts]
        try:
            done, late = await asyncio.wait(futures, timeout=SECONDS)
            for future in late:
                future.cancel()
            return [future.result() if future in done else None for future in futures]
        finally:
            self._waiting -= len(texts)

    def close(self) -> None:
        """Forget what waits and end the thread after what runs."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _explain(self, text: str) -> list[Span]:
        return self._deployment.scorer.explain(text)
