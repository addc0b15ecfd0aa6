"""Scores many messages on all cores of this machine."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from jingyin.model.labels import Verdict
from jingyin.serve.scorer import Scorer

_PART = 64  # messages


def verdicts(scorer: Scorer, texts: Sequence[str]) -> list[Verdict]:
    """Return the verdicts of `score_many`, in the order of `texts`.

    Networks run outside the interpreter's lock, so threads share one scorer; processes would each load the bundle.
    """
    parts = [texts[start : start + _PART] for start in range(0, len(texts), _PART)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        scored = pool.map(lambda part: list(scorer.score_many(part)), parts)
        return [verdict for part in scored for verdict in part]
