"""How long a fine-tuning will take here, measured on a few messages before it begins; and how long its steps took."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from statistics import mean

import torch

from jingyin.model.network import SmsClassifier
from jingyin.serve.scorer import Scorer
from jingyin.train.batches import pad
from jingyin.train.finetune.corpus import HELD_OUT, MOST_TRAFFIC, replayed
from jingyin.train.finetune.teach import OWN_SHARE, SCHEDULE

_MESSAGES = 40
_CORPUS = 40.0  # seconds to build the authored corpus, on one core of 2026
_DISGUISED = 8400  # messages that `promote` scores beside those of the test split
_SERVED = 0.3  # share of the networks' time that a message takes when the cascade may stop


class Stopwatch:
    """Seconds of each step of a run, by the step's name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 1)


def seconds(
    scorer: Scorer, model: SmsClassifier, ids: Sequence[list[int]], texts: Sequence[str], traffic: int
) -> float:
    """Return the seconds that fine-tuning on `texts` of token ids `ids` takes beside `traffic` messages of traffic.

    `scorer` lets all networks read; a batch of `model` is timed on a copy.
    """
    replay = replayed(len(texts))
    some = texts[:_MESSAGES]
    a_message = _timed(lambda: scorer.decisions(some)) / len(some)
    length = mean(map(len, ids))
    messages = max(replay / (1 - OWN_SHARE), replay + len(texts))
    steps = messages * length * SCHEDULE.epochs / SCHEDULE.tokens
    copy = deepcopy(model).train()
    batch = pad([ids[i % len(ids)] for i in range(max(1, int(SCHEDULE.tokens / length)))])
    with torch.autocast("cpu", torch.bfloat16):
        _timed(lambda: copy(*batch).sum().backward())  # the first run pays for memory
        a_step = _timed(lambda: copy(*batch).sum().backward())
    read = (replay + len(texts) + HELD_OUT["calibration"] + min(traffic, MOST_TRAFFIC)) / len(os.sched_getaffinity(0))
    judged = 2 * _SERVED * (_DISGUISED + 2 * HELD_OUT["test"])
    return _CORPUS + (read + judged) * a_message + steps * a_step


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
