import json
import os
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.toy_bundle import MakeBundle

from jingyin import LABELS, ConfigError, InputError, Scorer
from jingyin.model.bundle import Point
from jingyin.model.cascade import Decision, decide
from jingyin.model.labels import FLAGGED, Verdict
from jingyin.model.text import clean
from jingyin.serve.cache import Cache
from jingyin.serve.gateways.client import RISKY
from jingyin.serve.networks import TOKENS, NetworkReader
from jingyin.serve.scorer import CHUNK

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


# Several sentences: the prefilter's score of one that is repeated grows with the square root of the length.
FILLER = (
    "你吃了吗，我在图书馆呢，等下一起走，好的呀，那我先去占座，你帮我带杯奶茶，明天考试复习没，没呢慌死了，"
    "晚上通宵吧，哈哈哈，老师说划重点，真的假的，"
) * 600


@pytest.mark.parametrize(
    ("at", "length"),
    [
        (1_790, 3_000),
        (4_000, 9_000),
    ],
)
def test_a_threat_in_a_long_message_is_found(scorer: Scorer, at: int, length: int) -> None:
    text = (FILLER[:at] + THREAT + FILLER)[:length]
    verdict = scorer.score(text)
    assert verdict.action in ("review", "block")
    assert "unread" not in verdict.edits
    assert scorer.first_look(text).decision.action != "pass"
    assert next(scorer.score_many([text, FILLER[:length]])).risk == verdict.risk > 0.5
    spans = scorer.explain(text)
    assert [span.text for span in spans] == [text[span.start : span.end] for span in spans]
    assert any(at <= span.start < at + len(THREAT) for span in spans)


@pytest.mark.parametrize("length", [2_022, 3_000, 9_000])
def test_a_threat_is_found_at_most_places_of_a_long_message(scorer: Scorer, length: int) -> None:
    places = [int(length * share) for share in (0, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)]
    texts = [(FILLER[:at] + THREAT + FILLER)[:length] for at in places]
    assert sum(verdict.action != "pass" for verdict in scorer.score_many(texts)) >= 4


@pytest.mark.exhaustive
def test_most_plain_threats_in_the_middle_of_a_long_message_are_found(scorer: Scorer) -> None:
    rows = map(json.loads, files("jingyin.train.evaluate").joinpath("plain_threats.jsonl").read_bytes().splitlines())
    threats = [row["text"] for row in rows if row["label"] in FLAGGED]
    verdicts = list(scorer.score_many([f"{FILLER[:1_000]}，{threat}。{FILLER}"[:2_022] for threat in threats]))
    assert len(threats) == 250
    assert sum(verdict.action != "pass" for verdict in verdicts) >= 200  # docs/gateway.md has the numbers
    assert sum(verdict.risk >= RISKY for verdict in verdicts) >= 225  # filters refuse these


@pytest.mark.parametrize("at", [9_900, 30_500])
def test_of_a_text_beyond_the_bound_both_ends_are_read(scorer: Scorer, at: int) -> None:
    text = (FILLER[:at] + THREAT + FILLER)[:40_000]
    verdict = scorer.score(text)
    assert verdict.edits["unread"] == 20_000
    assert verdict.risk > 0.3  # beside chat alone at .02; networks read a part of each piece (train/LOG.md)


def test_a_text_beyond_the_bound_is_named_unread(scorer: Scorer) -> None:
    text = FILLER[:20_000] + THREAT + FILLER[:20_000]
    verdict = scorer.score(text)
    assert (verdict.action, verdict.edits["unread"]) == ("pass", 20_000 + len(THREAT))


@given(st.text(max_size=80))
@hypothesis_settings(max_examples=50)
def test_a_verdict_for_every_string(scorer: Scorer, text: str) -> None:
    verdict = scorer.score(text)
    assert tuple(verdict.probabilities) == LABELS
    assert sum(verdict.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert verdict.risk == pytest.approx(sum(verdict.probabilities[label] for label in FLAGGED))
    manifest = scorer.bundle.manifest
    reached = [risk for risk in (manifest.review.risk, manifest.block.risk) if verdict.risk >= risk]
    assert verdict.action == ("pass", "review", "block")[len(reached)]


def test_a_hundred_thousand_characters(scorer: Scorer) -> None:
    verdict = scorer.score("今天天气不错，" * 14_000 + THREAT)
    assert (verdict.label, verdict.action) == ("pay_to_stop", "block")
    assert verdict.edits["cut"] > 90_000


@pytest.mark.parametrize("amount", ["亿" * 39 + "元", "9" * 309 + "元", "￥" + "9" * 309, "1," * 400 + "元"])
def test_amounts_beyond_every_float(scorer: Scorer, amount: str) -> None:
    assert scorer.score(f"今晚转{amount}").probabilities


@pytest.mark.parametrize("wrong", [b"bytes", None, 3])
def test_refuses_what_is_no_text(scorer: Scorer, wrong: object) -> None:
    with pytest.raises(InputError, match="must be str, not"):
        scorer.score(wrong)  # type: ignore[arg-type]


def test_many_and_alone_agree(scorer: Scorer, fresh: Scorer) -> None:
    alone = [without_stage(scorer.without_memory().score(text)) for text in MESSAGES]
    assert [without_stage(v) for v in fresh.score_many(MESSAGES * 2)] == alone * 2


def test_what_needs_no_network_is_scored_without(scorer: Scorer, fresh: Scorer) -> None:
    other = scorer.without_memory()
    for text in MESSAGES[:6]:  # of different clean texts: none is answered by the cache
        seen, scored = other.first_look(text), fresh.score(text)
        assert seen.final == (scored.stage != "network")
        if seen.final:
            assert other.verdict(seen) == scored
        else:
            assert seen.decision.action in ("pass", "review")
            assert seen.decision.reasons == ()
        again = fresh.first_look(clean(text))
        assert (again.final, again.from_cache) == (True, True)
        assert without_stage(fresh.verdict(again)) == without_stage(scored)
    assert not scorer.without_memory(prefilter=False).first_look("明天下午三点老地方见，记得带伞").final


def test_when_time_is_up_what_has_been_read_decides(fresh: Scorer) -> None:
    (late,) = fresh.scored([THREAT], until=time.monotonic())
    assert (late.final, late.from_cache, late.decision.stage) == (False, False, "prefilter")
    assert late.decision.probabilities == pytest.approx(fresh.first_look(THREAT).decision.probabilities)
    (again,) = fresh.scored([THREAT], until=time.monotonic() + 60)  # nothing was remembered
    assert (again.final, again.from_cache, again.decision.stage) == (True, False, "network")


def test_a_threat_is_heard_in_any_company(scorer: Scorer) -> None:
    company = "【某某银行】您的账单已出，请及时还款。如已还款请忽略本短信。感谢您的支持，祝您生活愉快。"
    for text in (company + THREAT, THREAT + "。" + company, company + THREAT + "。" + company * 12):
        (found,) = scorer.scored([text])
        assert found.decision.action == "block"
    spans = scorer.explain(text)
    at = text.index(THREAT)
    assert any(at <= span.start < at + len(THREAT) for span in spans)


def test_what_is_foreign_passes_without_a_network(scorer: Scorer) -> None:
    verdict = scorer.score("Dear customer, your payment is overdue. Pay now or we will call all of your contacts")
    assert (verdict.label, verdict.action, verdict.edits["foreign"]) == ("ordinary", "pass", 1)
    assert verdict.stage in ("prefilter", "cache")


def test_a_clean_text_is_not_cleaned_again(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned = [clean(text) for text in MESSAGES]
    wanted = [without_stage(scorer.score(text)) for text in MESSAGES]
    monkeypatch.setattr("jingyin.serve.scorer.clean", None)
    assert [without_stage(verdict) for verdict in scorer.score_many(cleaned)] == wanted


def test_six_labels(make_bundle: MakeBundle) -> None:
    labels = (*LABELS[:2], "gambling", *LABELS[2:])
    scorer = Scorer.load(make_bundle(labels=labels))
    assert tuple(scorer.score("曝光全村").probabilities) == labels
    assert scorer.score("曝光全村").label == "debt_threat"
    assert scorer.score("曝光全村").risk > 0.9
    assert scorer.score("吃饭").label == "ordinary"
    assert not scorer.first_look("轰炸").final
    assert scorer.explain("曝光")


def test_rates_choose_thresholds_from_the_curve(make_bundle: MakeBundle) -> None:
    curve = [Point(risk=0.3, rate=0.01, bound=0.02, recall=0.9), Point(risk=0.6, rate=0.001, bound=0.003, recall=0.7)]
    folder = make_bundle(curve=curve)
    loose = Scorer.load(folder, review_rate=0.05, block_rate=0.01).bundle.manifest
    assert (loose.review.risk, loose.review.target, loose.review.bound) == (0.3, 0.05, 0.02)
    assert loose.block.risk == 0.6
    wanted = (
        r"block rate of 0\.0001; the lowest that it can is 0\.003; a calibration needs at least 29,956 messages of tr"
    )
    with pytest.raises(ConfigError, match=wanted):
        Scorer.load(folder, block_rate=1e-4)
    with pytest.raises(ConfigError, match="holds no curve"):
        Scorer.load(make_bundle(), review_rate=0.01)


def test_the_second_time_comes_from_the_cache(fresh: Scorer) -> None:
    first, second = fresh.score(THREAT), fresh.score(THREAT)
    assert first.stage == "network"
    assert second.stage == "cache"
    assert without_stage(first) == without_stage(second)
    assert (fresh.cache.cache_hits, fresh.cache.cache_misses) == (1, 1)


def test_a_message_read_in_several_time_slices_missed_the_cache_once(fresh: Scorer) -> None:
    assert not fresh.first_look(THREAT).final
    assert not next(fresh.scored([THREAT], until=0.0)).final
    assert next(fresh.scored([THREAT])).final
    assert (fresh.cache.cache_hits, fresh.cache.cache_misses) == (0, 1)


def test_messages_that_differ_in_masked_numbers_share_an_entry(fresh: Scorer) -> None:
    fresh.score("您的验证码是482913，请勿告诉他人")
    assert fresh.score("您的验证码是771204，请勿告诉他人").stage == "cache"


def test_a_verdict_belongs_to_its_caller(scorer: Scorer) -> None:
    scorer.score(THREAT).probabilities.clear()
    assert scorer.score(THREAT).probabilities


def test_what_the_prefilter_lets_through_and_all_networks_flag_the_cascade_flags(fresh: Scorer, scorer: Scorer) -> None:
    filtered, unfiltered = fresh, scorer.without_memory(prefilter=False)
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
def test_a_stream_reads_a_bounded_number_ahead(scorer: Scorer, processes: int) -> None:
    read = 0

    def counted() -> Iterator[str]:
        nonlocal read
        for number in range(100_000):
            read += 1
            yield f"第{number % 7}条"

    stream = scorer.score_many(counted(), processes=processes)
    next(stream)
    assert read <= CHUNK * (1 if processes == 1 else 2 * processes + 1)
    stream.close()  # type: ignore[attr-defined]


def test_threads_share_a_scorer(scorer: Scorer, fresh: Scorer) -> None:
    wanted = [without_stage(v) for v in scorer.without_memory().score_many(MESSAGES)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: [without_stage(v) for v in fresh.score_many(MESSAGES)], range(4)))
    assert found == [wanted] * 4


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


def test_an_entry_that_is_there_takes_no_more_room() -> None:
    cache: Cache[int] = Cache(budget=1 << 20)
    cache.put("0", 0)
    used = cache.used
    cache.put("0", 1)
    assert (cache.used, cache.get("0")) == (used, 1)


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


def test_reads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = Scorer.load(prefilter=False, cache_bytes=0)  # all networks read all messages
    tokens: dict[str, int] = {}

    def run(self: NetworkReader, ids: Sequence[int], *spans: Any) -> NDArray[np.float32]:
        tokens[self.network.file] = tokens.get(self.network.file, 0) + len(ids)
        return kept(self, ids, *spans)

    kept = NetworkReader.run
    monkeypatch.setattr(NetworkReader, "run", run)
    everything.score("请你自己尽快处理好，以免影响到你的家人和工作。" * 70)
    assert set(tokens) == set(TOKENS)
    assert all(tokens[file] <= TOKENS[file] for file in tokens)


def test_no_thread_is_left_by_loading(tmp_path: Path) -> None:
    before = threading.active_count()
    Scorer.load()
    assert threading.active_count() == before
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_a_decision_says_how_far_the_networks_disagree(fresh: Scorer, signed: Scorer) -> None:
    threat, ordinary = "有人出钱让我每天拨你的号，想清静就转两百到这个微信", "明天下午三点老地方见，记得带伞"
    read, stopped = (each.decision for each in fresh.scored([threat, ordinary]))
    assert 0 < read.disagreement < 1
    assert (stopped.stage, stopped.disagreement) == ("prefilter", 0)
    assert next(signed.scored(["曝光全村"])).decision.disagreement == 0  # a single network
