"""speed.py --profile: CPU microseconds of each stage of the way of a message, each network of the cascade apart."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from jingyin import Scorer
from jingyin.model.cascade import Decision
from jingyin.model.prefilter import code_points, units_of, unknown_shares
from jingyin.model.text import CleanString, clean
from jingyin.serve.cache import Cache
from jingyin.serve.scorer import CHUNK

T = TypeVar("T")
NETWORK_SAMPLE = 300


def profile(messages: dict[str, list[str]]) -> None:
    texts = messages["distinct"]
    scorer = Scorer.load()
    scored = list(scorer.scored(texts))
    read_by_networks = [each.clean.text for each in scored if each.decision.stage == "network"]
    share = len(read_by_networks) / len(texts)
    cleaned = _stage("clean", 1, texts, lambda batch: [clean(text) for text in batch])
    cache: Cache[Decision] = Cache(64 << 20)

    def remember(batch: Sequence[str]) -> list[None]:
        for text in batch:
            cache.get(text)
            cache.put(text, scored[0].decision)
        return []

    clean_texts = [each.text for each in cleaned]
    _stage("cache", 1, clean_texts, remember)

    def judge(batch: Sequence[str]) -> list[list[float]]:
        codes = code_points(batch)
        unknown_shares(scorer._known, codes)
        return units_of(scorer.bundle.prefilter_weights, batch, codes).scores.T.tolist()

    _stage("prefilter", 1, clean_texts, judge)
    _networks(scorer, read_by_networks)
    _stage("verdict", 1, scored, lambda batch: [scorer.verdict(each) for each in batch])
    print(f"\nthe prefilter lets {share:.2%} of {len(texts)} messages through")
    _calls(scorer, texts)


def _networks(scorer: Scorer, texts: Sequence[CleanString]) -> None:
    """Print each network's time on a sample that passes the prefilter, and that time scaled by the share it reads."""
    sample = texts[:NETWORK_SAMPLE]
    for reader, share in zip(scorer._networks, scorer.bundle.manifest.passed, strict=True):
        ids = _stage(
            f"tokens of {reader.network.file}",
            share,
            sample,
            lambda batch, reader=reader: reader.tokenizer.encode(batch),
        )
        fit = [each for each in ids if len(each) <= reader.network.max_tokens]  # others it reads in passes
        _stage(
            reader.network.file,
            share,
            fit,
            lambda batch, reader=reader: [reader.run(each) for each in batch],
        )
        tokens = float(np.mean([len(each) for each in fit])) if fit else 0.0
        print(f"{'':26}{tokens:.1f} tokens each; it reads {share:.2%} of ordinary messages")


def _calls(scorer: Scorer, texts: Sequence[str]) -> None:
    """Print the wall-clock time of calls with one message each, by the stage that answered."""
    took: dict[str, list[float]] = {}
    scorer.cache, scorer.readings = Cache(scorer.cache.budget), Cache(scorer.readings.budget)
    for text in texts:
        started = time.perf_counter()
        stage = scorer.score(text).stage
        took.setdefault(stage, []).append((time.perf_counter() - started) * 1e6)
    for stage, micros in took.items():
        print(
            f"one call, answered by the {stage}: "
            f"p50 {np.quantile(micros, 0.5):.0f} us, p99 {np.quantile(micros, 0.99):.0f} us"
        )


def _stage(name: str, share: float, items: Sequence[object], work: Callable[..., list[T]]) -> list[T]:
    """Print the microseconds per message that reaches the stage, and per message overall; return the stage's output."""
    best, result = np.inf, []
    for _ in range(5):
        started = time.process_time()
        result = [each for part in _parts(items) for each in work(part)]
        best = min(best, (time.process_time() - started) / max(1, len(items)) * 1e6)
    print(f"{name:26}{best:>10.1f} us where reached{best * share:>10.1f} us a message", flush=True)
    return result


def _parts(items: Sequence[object]) -> Iterator[Sequence[object]]:
    return (items[i : i + CHUNK] for i in range(0, len(items), CHUNK))
