"""The fast ways change nothing: cache, stream and processes, also when something breaks half-way."""

import gc
import sys
from collections.abc import Iterator
from itertools import islice, product
from random import Random

import numpy as np
import pytest
from tests.serve.test_scorer import without_stage
from tests.toy_bundle import set_exits

from jingyin import Scorer
from jingyin.model.labels import Verdict
from jingyin.model.prefilter import code_points, prefilter_scores
from jingyin.serve.scorer import CHUNK
from jingyin.train.corpus.perturb import FAMILIES, evade
from jingyin.train.corpus.rows import default_folders, load
from jingyin.train.corpus.slots import fill_slots


def traffic(templates: int, seed: int) -> list[str]:
    """Return filled templates, each three times with other slots, and copies in disguise."""
    rng = Random(seed)
    rows = rng.sample(load(default_folders()[0]), templates)
    messages = [fill_slots(row.text, rng) for row in rows for _ in range(3)]
    messages += [evade(text, rng.choice(FAMILIES), 0.5, rng) for text in messages[:templates]]
    messages += [f"{text[:1]}\u200b\u200b{text[1:]}" for text in messages[:templates]]
    rng.shuffle(messages)
    return messages


@pytest.mark.exhaustive
def test_the_cache_changes_no_verdict() -> None:
    messages = traffic(40, seed=1) * 2
    with_cache, without = Scorer.load(), Scorer.load(cache_bytes=0)
    found = list(with_cache.score_many(messages))
    assert with_cache.cache.cache_hits >= len(messages) // 2 - CHUNK
    assert list(map(without_stage, found)) == [without_stage(without.score(message)) for message in messages]


def test_a_disguised_message_gets_no_decision_that_the_prefilter_made() -> None:
    scorer, plain = Scorer.load(), "今天天气不错，我们去公园走走吧"
    ((score,), _) = prefilter_scores(scorer.bundle.prefilter_weights, code_points(["今天天气不错,我们去公园走走吧"]))
    set_exits(scorer, float(np.nextafter(score, np.float32(9))), -np.inf)
    assert scorer.score(plain).stage == "prefilter"
    assert scorer.score("\u200b今天\u200b天气不错，我们去公园走走吧").stage == "network"
    assert scorer.score(plain).stage == "cache"


@pytest.mark.exhaustive
def test_a_long_stream_leaves_nothing_behind() -> None:
    scorer = Scorer.load(cache_bytes=200_000)
    set_exits(scorer, np.inf, np.inf)  # the network has no part in this

    words = "天地人你我他上下来去大小多少红白"
    stream = scorer.score_many(map("".join, product(words, repeat=5)))
    for _ in islice(stream, 5_000):
        pass
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in islice(stream, 20_000):
        pass
    gc.collect()  # some garbage is in circles
    assert sys.getallocatedblocks() - before < 5_000
    assert scorer.cache.used <= scorer.cache.budget
    assert len(scorer.cache) < 1_000


@pytest.mark.exhaustive
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_came_before_a_fault_is_answered_in_order(
    scorer: Scorer, processes: int, error: type[BaseException]
) -> None:
    messages = [f"{word}{CHUNK}人" for word in "早午晚夜" for _ in range(CHUNK // 3)]

    def broken() -> Iterator[str]:
        yield from messages
        raise error("half-way")

    seen: list[dict[str, object]] = []
    with pytest.raises(error, match="half-way"):
        seen.extend(map(without_stage, scorer.score_many(broken(), processes=processes)))
    assert seen == [without_stage(scorer.score(message)) for message in messages]


@pytest.mark.exhaustive
def test_an_interrupt_in_the_network_loses_no_answer_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer.load(prefilter=False)
    messages = [f"{chr(0x4E00 + i)}好" for i in range(CHUNK + 99)]  # some fold to one character
    wanted = [without_stage(verdict) for verdict in scorer.score_many(messages)]
    fresh, runs = Scorer.load(prefilter=False), 0
    run = fresh._networks[0].run

    def interrupted(ids: list[int], spans: np.ndarray) -> np.ndarray:
        nonlocal runs
        runs += 1
        if runs == CHUNK + 10:
            raise KeyboardInterrupt("now")
        return run(ids, spans)

    monkeypatch.setattr(fresh._networks[0], "run", interrupted)
    seen: list[Verdict] = []
    with pytest.raises(KeyboardInterrupt, match="now"):
        seen.extend(fresh.score_many(messages))
    assert [without_stage(verdict) for verdict in seen] == wanted[:CHUNK]
    assert [without_stage(verdict) for verdict in fresh.score_many(messages)] == wanted  # none is stale or half-made


def test_a_line_of_a_megabyte(scorer: Scorer) -> None:
    assert scorer.score("还钱，今晚八点前。" * 37_000).stage == "network"
