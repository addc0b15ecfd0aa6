"""speed.py --profile: CPU microseconds of each stage of the way of a message, and what the network's part is made of."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from jingyin import Scorer
from jingyin.model.prefilter import code_points, prefilter_scores, unknown_shares
from jingyin.model.text import clean
from jingyin.serve.cache import Cache
from jingyin.serve.scorer import CHUNK, Answer

T = TypeVar("T")
NETWORK_SAMPLE = 300


def profile(messages: dict[str, list[str]]) -> None:
    texts = messages["distinct"]
    scorer = Scorer.load()
    answered = scorer.answers(texts)
    passed = [clean(text).text for text, answer in zip(texts, answered, strict=True) if answer.stage == "model"]
    share = len(passed) / len(texts)
    cleaned = _stage("clean", 1, texts, lambda some: [clean(text) for text in some])
    cache: Cache[Answer] = Cache(64 << 20)

    def remember(some: Sequence[str]) -> list[None]:
        for text in some:
            cache.get(text)
            cache.put(text, answered[0])
        return []

    read = [each.text for each in cleaned]
    _stage("cache", 1, read, remember)

    def judge(some: Sequence[str]) -> list[float]:
        codes = code_points(some)
        unknown_shares(scorer._known, codes)
        return prefilter_scores(scorer.bundle.prefilter_weights, codes).tolist()

    _stage("prefilter", 1, read, judge)
    ids = _stage("tokenize", share, passed, lambda some: [scorer._tokenizer.encode([text])[0] for text in some])
    some_ids = ids[:NETWORK_SAMPLE]
    _stage("network", share, some_ids, lambda some: [scorer._network.logits(each) for each in some])
    _stage("verdict", 1, cleaned, lambda some: [scorer._verdict(each, answered[0], known=False) for each in some])
    tokens = float(np.mean([len(each) for each in some_ids]))
    print(f"\nthe prefilter lets {share:.2%} of {len(texts)} messages through; {tokens:.1f} tokens each")
    _calls(scorer, texts)


def _calls(scorer: Scorer, texts: Sequence[str]) -> None:
    """Print the wall clock of calls with one message each, by what answered."""
    took: dict[str, list[float]] = {}
    scorer.cache = Cache(scorer.cache.budget)
    for text in texts:
        started = time.perf_counter()
        stage = scorer.score(text).stage
        took.setdefault(stage, []).append((time.perf_counter() - started) * 1e6)
    for stage, micros in took.items():
        print(
            f"one call, answered by the {stage}: p50 {np.quantile(micros, 0.5):.0f} us, p99 {np.quantile(micros, 0.99):.0f} us"
        )


def _stage(name: str, share: float, items: Sequence[object], work: Callable[..., list[T]]) -> list[T]:
    """Print the microseconds a message that reaches the stage, and spread over all messages; return what it gives."""
    best, result = np.inf, []
    for _ in range(5):
        started = time.process_time()
        result = [each for part in _parts(items) for each in work(part)]
        best = min(best, (time.process_time() - started) / max(1, len(items)) * 1e6)
    print(f"{name:10}{best:>10.1f} us where reached{best * share:>10.1f} us a message", flush=True)
    return result


def _parts(items: Sequence[object]) -> Iterator[Sequence[object]]:
    return (items[i : i + CHUNK] for i in range(0, len(items), CHUNK))
