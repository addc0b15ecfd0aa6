import os
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jingyin import LABELS, InputError, Scorer
from jingyin.model.decision import Decision, decide
from jingyin.model.labels import FLAGGED, Verdict
from jingyin.serve.networks import MAX_WINDOWS, windows
from jingyin.serve.scorer import CHUNK, Cache

THREAT = "有人出钱让我每天拨你的号，想清静就转两百到这个微信"
MESSAGES = [
    THREAT,
    "明天下午三点老地方见，记得带伞",
    "【XX银行】您尾号1234的信用卡本期账单3,482.15元，最后还款日3月15日，如已还款请忽略。",
    "再不还钱就把你欠钱的事群发给你通讯录所有人，今晚6点前处理",
    "您的验证码是482913，5分钟内有效，请勿告诉他人。",
    "",
    "   ",
    "😀😀😀",
    "\ud800",
    "妳的電話從今晚開始不會停，三萬塊了事",
]


def without_stage(verdict: Verdict) -> dict[str, object]:
    return {key: value for key, value in verdict.as_dict().items() if key != "stage"}


def test_flags_a_threat_and_passes_chat(scorer: Scorer) -> None:
    assert scorer.score(THREAT).label == "pay_to_stop"
    assert scorer.score(THREAT).action in ("review", "block")
    assert scorer.score("明天下午三点老地方见，记得带伞").action == "pass"


@given(st.text(max_size=80))
@hypothesis_settings(max_examples=50)
def test_a_verdict_for_every_string(scorer: Scorer, text: str) -> None:
    verdict = scorer.score(text)
    assert tuple(verdict.probabilities) == LABELS
    assert sum(verdict.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert verdict.risk == pytest.approx(sum(verdict.probabilities[label] for label in FLAGGED))
    manifest = scorer.bundle.manifest
    wanted = (
        "block" if verdict.risk >= manifest.block.risk else "review" if verdict.risk >= manifest.review.risk else "pass"
    )
    assert verdict.action == wanted


def test_a_hundred_thousand_characters(scorer: Scorer) -> None:
    assert scorer.score("今天天气不错，" * 14_000 + THREAT).label


@pytest.mark.parametrize("amount", ["亿" * 39 + "元", "9" * 309 + "元", "￥" + "9" * 309, "1," * 400 + "元"])
def test_amounts_beyond_every_float(scorer: Scorer, amount: str) -> None:
    assert scorer.score(f"今晚转{amount}").probabilities


@pytest.mark.parametrize("wrong", [b"bytes", None, 3])
def test_refuses_what_is_no_text(scorer: Scorer, wrong: object) -> None:
    with pytest.raises(InputError, match="must be str, not"):
        scorer.score(wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_many_alone_and_in_processes_agree() -> None:
    alone = [without_stage(Scorer.load(cache_bytes=0).score(text)) for text in MESSAGES]
    fresh = Scorer.load()
    assert [without_stage(v) for v in fresh.score_many(MESSAGES * 2)] == alone * 2
    assert [without_stage(v) for v in fresh.score_many(MESSAGES, processes=2)] == alone


def test_what_needs_no_network_is_scored_without() -> None:
    scorer, other = Scorer.load(), Scorer.load()
    for text in MESSAGES[:6]:  # of different clean texts: none is answered by the cache
        seen, scored = other.score_without_network(text), scorer.score(text)
        assert seen == (None if scored.stage == "network" else scored)
        again = scorer.score_without_network(text)
        assert again is not None
        assert again.stage == "cache"
        assert without_stage(again) == without_stage(scored)
    assert Scorer.load(prefilter=False).score_without_network("明天下午三点老地方见，记得带伞") is None


def test_the_second_time_comes_from_the_cache() -> None:
    scorer = Scorer.load()
    first, second = scorer.score(THREAT), scorer.score(THREAT)
    assert first.stage == "network"
    assert second.stage == "cache"
    assert without_stage(first) == without_stage(second)
    assert (scorer.cache.cache_hits, scorer.cache.cache_misses) == (1, 1)


def test_messages_that_differ_in_masked_numbers_share_an_entry() -> None:
    scorer = Scorer.load()
    scorer.score("您的验证码是482913，请勿告诉他人")
    assert scorer.score("您的验证码是771204，请勿告诉他人").stage == "cache"


def test_a_verdict_belongs_to_its_caller() -> None:
    scorer = Scorer.load()
    scorer.score(THREAT).probabilities.clear()
    assert scorer.score(THREAT).probabilities


def test_what_the_prefilter_lets_through_and_all_networks_flag_the_cascade_flags() -> None:
    filtered, unfiltered = Scorer.load(), Scorer.load(prefilter=False)
    assert unfiltered.score("明天下午三点老地方见，记得带伞").stage == "network"
    for text in MESSAGES:
        found, wanted = filtered.score(text), unfiltered.score(text)
        if wanted.action != "pass" and found.stage == "network":
            assert found.action != "pass"


def test_a_stream_that_breaks_gives_what_came_before(scorer: Scorer) -> None:
    def broken() -> Iterator[str]:
        yield from MESSAGES[:3]
        raise OSError("the disk is gone")

    seen: list[Verdict] = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(scorer.score_many(broken()))
    assert [verdict.label for verdict in seen] == [scorer.score(text).label for text in MESSAGES[:3]]


def test_a_stream_with_a_wrong_item_names_its_number(scorer: Scorer) -> None:
    seen: list[Verdict] = []
    with pytest.raises(InputError, match="message 1 of the stream is bytes"):
        seen.extend(scorer.score_many(["你好", b"x", "再见"]))  # type: ignore[list-item]
    assert len(seen) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stream_reads_a_bounded_number_ahead(processes: int) -> None:
    read = 0

    def counted() -> Iterator[str]:
        nonlocal read
        for number in range(100_000):
            read += 1
            yield f"第{number % 7}条"

    stream = Scorer.load().score_many(counted(), processes=processes)
    next(stream)
    assert read <= CHUNK * (1 if processes == 1 else 2 * processes + 1)
    stream.close()  # type: ignore[attr-defined]


def test_threads_share_a_scorer() -> None:
    scorer = Scorer.load()
    wanted = [without_stage(v) for v in scorer.score_many(MESSAGES)]
    results: list[list[dict[str, object]]] = []

    def work() -> None:
        results.append([without_stage(v) for v in scorer.score_many(MESSAGES)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [wanted] * 4


def test_explains_in_the_original_message(scorer: Scorer) -> None:
    raw = "有人出钱让我每天 拨.你.的.号，想清静就转２００块到这个微信"
    spans = scorer.explain(raw)
    assert spans
    assert all(raw[span.start : span.end] == span.text for span in spans)
    assert all(0.1 <= span.weight <= 1 for span in spans)
    assert [span.start for span in spans] == sorted(span.start for span in spans)


def test_an_ordinary_message_has_no_evidence(scorer: Scorer) -> None:
    assert scorer.explain("明天下午三点老地方见，记得带伞") == []


def test_cache_forgets_the_least_recently_used() -> None:
    cache: Cache[int] = Cache(budget=4_000)
    for number in range(10):
        cache.put(str(number), number)
        cache.get("0")
    assert cache.get("0") == 0
    assert cache.get("1") is None
    assert cache.used <= 4_000
    assert len(cache) == 4


@pytest.mark.parametrize("reasons", [0, 2])
def test_the_cache_stays_within_its_budget_of_memory(scorer: Scorer, reasons: int) -> None:
    manifest, probabilities = scorer.bundle.manifest, np.array([0.001, 0.001, 0.4, 0.597, 0.001])
    budget = 1 << 20
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        cache: Cache[tuple[Decision, float]] = Cache(budget)
        for number in range(2_000):
            decision = decide(manifest, probabilities, "network", np.full(reasons, 20.0))
            cache.put(f"再不还钱就把你欠钱的事{number}", (decision, number / 2_000))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(decision.reasons) == reasons
    assert len(cache) < 2_000
    assert 0.6 * budget < taken < 1.05 * budget


def test_cache_of_no_bytes_remembers_nothing() -> None:
    cache: Cache[int] = Cache(budget=0)
    cache.put("a", 1)
    assert cache.get("a") is None


def test_windows_cover_a_long_message() -> None:
    ids = [2, *range(10, 310), 3]
    parts = windows(ids, 102)
    assert all(part[0] == 2 and part[-1] == 3 and len(part) <= 102 for part in parts)
    assert {i for part in parts for i in part[1:-1]} == set(range(10, 310))
    assert windows(ids, 400) == [ids]


def test_windows_are_bounded_and_keep_both_ends() -> None:
    ids = [2, *range(10, 50_010), 3]
    parts = windows(ids, 102)
    assert len(parts) == MAX_WINDOWS
    assert parts[0][1] == 10
    assert parts[-1][-2] == 50_009


def test_no_thread_is_left_by_loading(tmp_path: Path) -> None:
    before = threading.active_count()
    Scorer.load(threads=1)
    assert threading.active_count() == before
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
