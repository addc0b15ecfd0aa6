import secrets
import time
from random import Random
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serve.http.http_fakes import run

from jingyin.model.errors import ConfigError
from jingyin.model.labels import LABELS, Action, Verdict
from jingyin.model.text import clean
from jingyin.serve.http import memory as burst
from jingyin.serve.http.memory import BURST_CHARACTERS, BurstCounter, Bursts, BurstSettings, CountedVerdict
from jingyin.serve.http.service import Service
from jingyin.serve.http.settings import load_settings

THREAT = "您好，您在我司的借款已逾期三天，若今日下午六点前未处理，将通知您的通讯录联系人及单位，后果自负"
HAN = [chr(c) for c in range(0x4E00, 0x9000)]


@pytest.fixture(autouse=True)
def _fixed_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Random(5)
    monkeypatch.setattr(secrets, "randbits", rng.getrandbits)


def edited(text: str, rate: float, rng: Random) -> str:
    """Return `text` with each character replaced, dropped or followed by another with the chance `rate`."""
    kinds = (lambda c: rng.choice(HAN), lambda c: "", lambda c: c + rng.choice(HAN))
    return "".join(rng.choice(kinds)(c) if rng.random() < rate else c for c in text)


def verdict(risk: float, action: Action = "pass") -> Verdict:
    rest = dict.fromkeys(LABELS, (1 - risk) / 4) | {"debt_threat": risk}
    return Verdict(
        label="debt_threat", probabilities=rest, risk=risk, action=action, stage="network", edits={}, bundle="b"
    )


def counted(bursts: Bursts, given_: Verdict, text: str = THREAT) -> CountedVerdict:
    judged = bursts.judge(text, given_, 0.0)
    assert isinstance(judged, CountedVerdict)
    return judged


def test_equal_messages_are_counted_one_by_one() -> None:
    counter = BurstCounter(600)
    assert [round(counter.count(THREAT, 0.0)) for _ in range(50)] == list(range(50))


def test_nothing_to_count() -> None:
    assert [BurstCounter(600).count("", now) for now in (0.0, 1.0)] == [0.0, 0.0]


@settings(deadline=None, max_examples=30)
@given(st.text(max_size=300), st.floats(0, 1e6))
def test_any_text_is_counted(text: str, now: float) -> None:
    counter = BurstCounter(600)
    assert counter.count(text, now) == 0
    assert counter.count(text, now) == pytest.approx(1 if text else 0, abs=1e-3)


def test_counts_fade_by_e_in_a_window() -> None:
    counter = BurstCounter(600)
    for _ in range(100):
        counter.count(THREAT, 0.0)
    assert counter.count(THREAT, 600.0) == pytest.approx(100 / np.e, rel=1e-3)


@pytest.mark.slow
def test_a_steady_stream_has_the_count_of_a_sliding_window_for_ever() -> None:
    counter = BurstCounter(10)
    found = [counter.count(THREAT, second / 2) for second in range(20_000)]  # past the range of a float's exponent
    assert found[2000:] == pytest.approx([20] * 18_000, rel=0.05)
    assert counter.count(THREAT, 1e9) == pytest.approx(0, abs=1e-3)


def test_five_percent_of_random_edits_in_each_copy_still_count() -> None:
    rng, found = Random(1), []
    for _ in range(20):
        counter = BurstCounter(600)
        for _ in range(100):
            counter.count(edited(THREAT, 0.05, rng), 0.0)
        found += [counter.count(edited(THREAT, 0.05, rng), 0.0) for _ in range(10)]
    assert np.mean(np.array(found) > 20) > 0.93


def test_thirty_percent_of_random_edits_escape() -> None:
    rng, counter = Random(1), BurstCounter(600)
    for _ in range(100):
        counter.count(edited(THREAT, 0.3, rng), 0.0)
    assert np.median([counter.count(edited(THREAT, 0.3, rng), 0.0) for _ in range(50)]) < 20


@pytest.mark.slow
def test_different_messages_neither_grow_it_nor_count_as_near() -> None:
    rng, counter = Random(2), BurstCounter(600)
    size, found = counter._cells.itemsize * len(counter._cells), []
    for number in range(20_000):
        near = counter.count("".join(rng.choices(HAN, k=20)), 0.0)
        found += [near] if number > 15_000 else []
    assert counter._cells.itemsize * len(counter._cells) == size == 8 * burst.CELLS
    assert max(found) < 10


@pytest.mark.slow
def test_a_full_array_still_tells_a_burst_from_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burst, "CELLS", 2_503)
    rng, counter = Random(3), BurstCounter(600)
    for _ in range(25_000):  # 80 in each cell, as 10 million different messages would leave
        counter.count("".join(rng.choices(HAN, k=20)), 0.0)
    assert [counter.count(THREAT, 0.0) for _ in range(100)] == pytest.approx(range(100), abs=25)
    assert max(counter.count("".join(rng.choices(HAN, k=20)), 0.0) for _ in range(1000)) < 20


def test_a_message_costs_microseconds() -> None:
    counter, text = BurstCounter(600), clean(THREAT).text
    best = float("inf")
    for _ in range(20):
        begun = time.thread_time()
        for _ in range(500):
            counter.count(text, 0.0)
        best = min(best, (time.thread_time() - begun) / 500)
    assert best < 20e-6  # 5 on a calm machine


def test_no_text_and_no_hash_is_kept() -> None:
    counter = BurstCounter(600.0)
    counter.count(THREAT, 0.0)
    kept = [value for name, value in vars(counter).items() if name not in ("_cells", "_salt")]
    assert all(isinstance(value, float) for value in kept)
    assert set(counter._cells) == {0.0, 1.0}


def test_each_process_has_a_salt_of_its_own() -> None:
    first, second = BurstCounter(600), BurstCounter(600)
    assert first._salt != second._salt
    assert first._keys(THREAT) != second._keys(THREAT)


def test_a_suspicious_message_is_held_when_more_than_so_many_came() -> None:
    bursts = Bursts(BurstSettings(risk=0.2, count=3))
    judged = [counted(bursts, verdict(0.25)) for _ in range(6)]
    assert [(each.near_duplicates, each.held, each.action) for each in judged] == [
        (0, False, "pass"), (1, False, "pass"), (2, False, "pass"), (3, False, "pass"), (4, True, "review"),
        (5, True, "review"),
    ]  # fmt: skip
    assert judged[5].risk == 0.25


def test_masked_numbers_and_undone_disguises_make_no_difference() -> None:
    bursts = Bursts(BurstSettings())
    for text in (
        "还款1783.52元到6222021234567890",
        "还款2391.07元到6222029876543210",
        "还​款2391.07元到6222029876543210",
    ):
        judged = counted(bursts, verdict(0.5), text)
    assert judged.near_duplicates == 2


def test_of_a_long_message_the_beginning_is_counted() -> None:
    bursts, rng = Bursts(BurstSettings()), Random(6)
    beginning = "".join(rng.choices(HAN, k=BURST_CHARACTERS))
    texts = [beginning + "".join(rng.choices(HAN, k=20_000)) for _ in range(3)]
    assert [counted(bursts, verdict(0.5), text).near_duplicates for text in texts] == [0, 1, 2]


def test_what_differs_within_500_characters_is_no_near_duplicate() -> None:
    bursts, rng = Bursts(BurstSettings()), Random(7)
    beginning = "".join(rng.choices(HAN, k=50))
    texts = [beginning + "".join(rng.choices(HAN, k=450)) for _ in range(3)]
    assert [counted(bursts, verdict(0.5), text).near_duplicates for text in texts] == [0, 0, 0]


def test_messages_of_less_risk_are_left_as_they_are() -> None:
    bursts, given_ = Bursts(BurstSettings(count=1)), verdict(0.19)
    assert all(bursts.judge(THREAT, given_, 0.0) is given_ for _ in range(5))
    assert counted(bursts, verdict(0.2)).near_duplicates == 0


def test_what_is_blocked_stays_blocked() -> None:
    bursts = Bursts(BurstSettings(count=1))
    judged = [counted(bursts, verdict(0.99, "block")) for _ in range(4)]
    assert [(each.action, each.held) for each in judged] == [("block", False)] * 4


@pytest.mark.parametrize("wrong", [{"risk": 0}, {"risk": 1.1}, {"count": 0}, {"window_seconds": 0}, {"counts": 3}])
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BurstSettings(**wrong)


def answers(texts: list[str], **flags: Any) -> tuple[list[dict[str, Any]], str]:
    async def call(client: httpx.AsyncClient, _: Service) -> tuple[list[dict[str, Any]], str]:
        results = (await client.post("/v1/score", json={"texts": texts})).json()["results"]
        return results, (await client.get("/metrics")).text

    return run(call, **flags)


def test_the_service_answers_with_the_count_and_the_reason() -> None:
    results, metrics = answers(["好" * 20] * 4 + ["死" * 20] * 4, burst={"count": 2})
    assert [(each["action"], each["reason"], each["near_duplicates"]) for each in results] == [
        ("pass", "scored", 0), ("pass", "scored", 1), ("pass", "scored", 2), ("review", "burst", 3),
        *(("block", "scored", n) for n in range(4)),
    ]  # fmt: skip
    assert 'jingyin_changed_total{action="review",reason="burst"} 1.0' in metrics
    assert "jingyin_near_duplicates_count 8.0" in metrics


def test_the_service_counts_nothing_by_default_or_below_the_risk() -> None:
    for flags in ({}, {"burst": {"count": 2, "risk": 0.3}}):
        results, metrics = answers(["好" * 20] * 4, **flags)
        assert all(each["reason"] == "scored" and "near_duplicates" not in each for each in results)
        assert "jingyin_changed_total{" not in metrics


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JINGYIN_SERVE_BURST", '{"count": 7}')
    assert load_settings().burst == BurstSettings(count=7)
    with pytest.raises(ConfigError, match=r"burst.counts: Extra inputs are not permitted"):
        load_settings(burst={"counts": 7})
