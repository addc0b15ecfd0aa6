import asyncio
import signal
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import httpx
import pytest
from tests.serve.http.http_fakes import SECRET, FakeScorer, InThread, Process, post, read_all, receive, run

from jingyin import Scorer
from jingyin.model.errors import ConfigError
from jingyin.model.labels import Verdict
from jingyin.serve.http.batcher import BusyError, Outcome
from jingyin.serve.http.memory import Conversations, ConversationSettings, JoinedText
from jingyin.serve.http.observe import Metrics
from jingyin.serve.http.service import JoinedTexts, RaisedVerdict, Service
from jingyin.serve.http.settings import load_settings

KEY = "机密发信人->13900139000"
ON: dict[str, Any] = {"conversations": {}}


def halves(*_: object) -> tuple[FakeScorer, None]:
    """Load a scorer that blocks what holds 呼,死: the halves of a threat, joined."""
    return FakeScorer(mark="呼,死"), None


def ask(*bodies: dict[str, Any], load: Any = halves, **flags: Any) -> tuple[list[dict[str, Any]], str]:
    """Return the answers to bodies that come one after another, and the metrics then."""

    async def call(client: httpx.AsyncClient, service: Service) -> tuple[list[dict[str, Any]], str]:
        found = [(await client.post("/v1/score", json=body)).json() for body in bodies]
        if service.joined:
            service.joined.expire(0)
        return found, service.metrics.render().decode()

    return run(call, load=load, **flags)


def said(*texts: str, **flags: Any) -> list[tuple[str, str]]:
    answers, _ = ask(*({"text": text, "conversation": KEY} for text in texts), **flags)
    return [(answer["action"], answer["reason"]) for answer in answers]


# ---- the answer


def test_the_second_half_of_a_threat_gets_the_verdict_on_both() -> None:
    (whole,), _ = ask({"text": "呼,死", "request_id": "1"})
    (first, second), metrics = ask(*({"text": text, "conversation": KEY, "request_id": "1"} for text in "呼死"), **ON)
    assert (first["action"], first["reason"], first["risk"]) == ("pass", "scored", 0.25)
    assert (whole["action"], whole["reason"], whole["risk"]) == ("block", "scored", 0.75)
    assert second == {**whole, "reason": "conversation"}
    assert 'jingyin_joined_texts_total{outcome="raised"} 1.0' in metrics
    assert 'jingyin_messages_total{action="pass",stage="network"} 2.0' in metrics
    assert 'action="block"' not in metrics


def test_off_by_default_and_then_the_key_is_ignored() -> None:
    assert load_settings().conversations is None
    assert said("呼", "死") == [("pass", "scored")] * 2


def test_messages_without_a_key_or_of_different_keys_are_not_joined() -> None:
    answers, metrics = ask(
        {"text": "呼", "conversation": "a"}, {"text": "死", "conversation": "b"}, {"text": "死"}, **ON
    )
    assert [answer["reason"] for answer in answers] == ["scored"] * 3
    assert "jingyin_joined_texts_total{" not in metrics


def test_several_messages_each_with_its_key() -> None:
    keys = ["a", "b", None, "a", "b", "a"]
    (answer,), metrics = ask({"texts": ["呼", "好", "呼", "死", "死", "了"], "conversations": keys}, **ON)
    assert [each["reason"] for each in answer["results"]] == ["scored"] * 3 + ["conversation", "scored", "conversation"]
    assert 'jingyin_joined_texts_total{outcome="raised"} 2.0' in metrics
    assert 'jingyin_joined_texts_total{outcome="same"} 1.0' in metrics


def test_payloads_and_parts_have_keys_too() -> None:
    def part(text: str) -> dict[str, str]:
        return {"payload": b64encode(text.encode("utf-16-be")).decode()}

    answers, _ = ask(
        {**part("呼"), "coding": "ucs2", "conversation": KEY},
        {"parts": [part("死")], "coding": "ucs2", "conversation": KEY},
        **ON,
    )
    assert [answer["reason"] for answer in answers] == ["scored", "conversation"]
    assert answers[1]["sms"] == {"partial": False, "undecodable": 0, "damaged": 0}


def test_what_is_flagged_is_not_joined_with_what_follows() -> None:
    passed, stopped = ("pass", "scored"), ("block", "conversation")
    assert said("呼", "死", "死", "好", "好的", "死", **ON) == [passed, stopped, stopped, passed, passed, passed]
    assert said("呼,死", "好", **ON) == [("block", "scored"), passed]


def test_a_stronger_action_of_its_own_is_kept() -> None:
    def load(*_: object) -> tuple[FakeScorer, None]:
        return FakeScorer(mark="死"), None

    assert said("好", "死", "好", load=load, **ON) == [("pass", "scored"), ("block", "scored"), ("pass", "scored")]


def test_cache_or_prefilter_may_decide_on_a_joined_text() -> None:
    assert said("快呼", "死", **ON) == [("pass", "scored"), ("block", "conversation")]


def test_beside_a_burst() -> None:
    texts = ["好" * 20, *("死" * 20,) * 3]
    bodies = [{"text": text, "conversation": f"{i}"} for i, text in enumerate(texts)]
    bodies += [{"text": "呼", "conversation": "5"}, {"text": "死" * 20, "conversation": "5"}]
    answers, metrics = ask(*bodies, burst={"count": 2}, **ON)
    assert [(each["reason"], each["near_duplicates"]) for each in answers] == [
        ("scored", 0), ("scored", 0), ("scored", 1), ("scored", 2), ("scored", 0), ("conversation", 3),
    ]  # fmt: skip
    assert "jingyin_burst_held_total 1.0" in metrics


# ---- what it costs others


class Recorder(FakeScorer):
    """Notes what it scores, and whether it may remember it."""

    def __init__(self, name: str, mark: str = "呼,死") -> None:
        super().__init__(name, mark)
        self.seen: list[tuple[str, int]] = []

    def score_many(self, texts: Iterable[str]) -> Iterator[Verdict]:
        given = list(texts)
        self.seen += [(text, self.cache.budget) for text in given]
        return super().score_many(given)


def test_joined_texts_are_neither_cached_nor_seen_by_the_shadow() -> None:
    deployed, shadow = Recorder("deployed"), Recorder("shadow")
    texts = ["呼", "死", "好"]

    async def call(client: httpx.AsyncClient, _: Service) -> None:
        await client.post("/v1/score", json={"texts": texts, "conversations": [KEY] * 3})
        while len(shadow.seen) < 3:
            await asyncio.sleep(0.01)

    run(call, load=lambda: (deployed, shadow), **ON)
    assert deployed.seen == [*((text, 4) for text in texts), ("呼,死", 0), ("呼,死,好", 0)]
    assert [text for text, _ in shadow.seen] == texts


def test_joined_texts_and_messages_share_batches() -> None:
    async def call(client: httpx.AsyncClient, _: Service) -> list[str]:
        async def both(number: int) -> str:
            key = {"conversation": f"{number}", "deadline_ms": 30_000}
            await client.post("/v1/score", json={"text": "呼", **key})
            return (await client.post("/v1/score", json={"text": f"死{number}", **key})).json()["reason"]

        return await asyncio.gather(*map(both, range(100)))

    assert run(call, load=halves, **ON) == ["conversation"] * 100


def test_a_joined_text_has_what_is_left_of_the_deadline() -> None:
    async def call(client: httpx.AsyncClient, service: Service) -> tuple[dict[str, Any], float, str]:
        for text in ("慢" * 490 + "呼", "死"):
            start = time.monotonic()
            body = {"text": text, "conversation": KEY, "deadline_ms": 20_000 if "慢" in text else 100}
            answer = await client.post("/v1/score", json=body)
        return answer.json(), time.monotonic() - start, service.metrics.render().decode()

    answer, taken, metrics = run(call, load=halves, **ON)
    assert (answer["action"], answer["reason"], answer["risk"]) == ("pass", "scored", 0.25)
    assert 0.09 < taken < 0.48
    assert 'jingyin_joined_texts_total{outcome="unscored"} 1.0' in metrics
    assert "jingyin_unscored_total{" not in metrics


def test_a_late_joined_text_lowers_the_limit_of_requests() -> None:
    async def call(client: httpx.AsyncClient, service: Service) -> float:
        long = {"text": "慢" * 300 + "呼", "conversation": KEY, "deadline_ms": 20_000}
        await client.post("/v1/score", json=long)
        await client.post("/v1/score", json={"text": "死", "conversation": KEY})
        return service.admission.limit

    assert run(call, load=halves, deadline_ms=100, **ON) == pytest.approx(0.7 * 256)


def test_a_full_queue_leaves_joined_texts_out() -> None:
    class Full:
        async def score(self, texts: Sequence[str], deadline: float) -> list[Outcome]:
            raise BusyError("the queue is full")

    async def judge() -> list[Outcome]:
        kept = Conversations(ConversationSettings())
        joined = JoinedTexts(kept, Full(), metrics)  # type: ignore[arg-type]
        return await joined.judge([KEY] * 3, ["呼", "死", "好"], outcomes, 0.0)

    metrics = Metrics()
    outcomes: list[Outcome] = [FakeScorer().score("好"), FakeScorer().score("好"), "deadline"]
    assert asyncio.run(judge()) == outcomes
    assert b'jingyin_joined_texts_total{outcome="unscored"} 1.0' in metrics.render()


def test_a_message_without_a_verdict_is_neither_joined_nor_kept() -> None:
    assert said("呼坏", "死", **ON) == [("pass", "error"), ("pass", "scored")]


def test_a_joined_text_that_fails_leaves_the_message_its_own_verdict(capfd: pytest.CaptureFixture[str]) -> None:
    class Failing(FakeScorer):
        def score(self, text: str) -> Verdict:
            return super().score(f"坏{text}" if isinstance(text, JoinedText) else text)

    assert said(SECRET, "死", load=lambda: (Failing(), None), **ON) == [("pass", "scored"), ("block", "scored")]
    assert said(SECRET, "好", load=lambda: (Failing(), None), **ON) == [("pass", "scored")] * 2
    log = capfd.readouterr().err
    assert '"event":"message_failed"' in log
    assert not [word for word in (SECRET, "绝密", "机密", "13900139000") if word in log]


def test_messages_are_forgotten_though_nothing_comes() -> None:
    async def call(client: httpx.AsyncClient, service: Service) -> list[float | None]:
        def kept() -> float | None:
            return service.metrics.registry.get_sample_value("jingyin_conversation_bytes")

        await client.post("/v1/score", json={"text": "呼", "conversation": KEY})
        assert service.joined is not None
        service.joined.expire(0)
        found = [kept()]
        while kept():
            await asyncio.sleep(0.05)
        return [*found, kept()]

    before, after = run(call, conversations={"seconds": 0.5})
    assert before > 300
    assert after == 0


# ---- the request


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"text": "a", "conversation": ""}, "conversation: String should have at least 1 character"),
        ({"text": "a", "conversation": KEY * 10}, "conversation: String should have at most 128 characters"),
        ({"text": "a", "conversation": [KEY]}, "conversation: Input should be a valid string"),
        ({"text": "a", "conversations": [KEY]}, "a field is unknown"),
        ({"texts": ["a"], "conversation": KEY}, "a field is unknown"),
        ({"texts": ["a"], "conversations": KEY}, "conversations: Input should be a valid array"),
        ({"texts": ["a", "b"], "conversations": [KEY, KEY * 10]}, "conversations.1: String should have at most 128"),
        ({"texts": ["a", "b"], "conversations": [KEY]}, "conversations must be as many as texts; give null for none"),
        ({"payload": "YQ==", "coding": "ascii", "conversation": 5}, "conversation: Input should be a valid string"),
    ],
)
def test_wrong_keys_get_a_precise_answer_without_them(body: dict[str, Any], error: str) -> None:
    (answer,), _ = ask(body, **ON)
    assert answer["error"].startswith(error)
    assert KEY not in str(answer)


def test_no_key_is_a_key_that_is_null() -> None:
    answers, _ = ask({"text": "a", "conversation": None}, {"texts": ["a"], "conversations": None}, {"texts": []}, **ON)
    assert not [answer for answer in answers if "error" in answer]


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JINGYIN_SERVE_CONVERSATIONS", '{"megabytes": 7}')
    assert load_settings().conversations == ConversationSettings(seconds=600, megabytes=7)
    with pytest.raises(ConfigError, match=r"conversations.seconds: Input should be less than or equal to 600"):
        load_settings(conversations={"seconds": 601})


# ---- a server


@pytest.mark.service
def test_neither_key_nor_text_turns_up_in_log_or_metrics() -> None:
    with Process(conversations={}, log_requests="all") as server:
        for body in (
            {"text": SECRET, "conversation": KEY},
            {"text": f"死{SECRET}", "conversation": KEY},
            {"text": f"坏{SECRET}", "conversation": KEY},
            {"text": SECRET, "conversation": KEY * 10},
            {"texts": [SECRET, f"好{SECRET}"], "conversations": [KEY]},
            {"texts": [SECRET, f"好{SECRET}"], "conversations": [KEY, KEY]},
        ):
            answer = server.send(post(body, close=True)).decode()
            assert not [word for word in ("绝密", "机密", "13900139000", "13800138000") if word in answer]
        metrics = server.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").decode()
    assert 'jingyin_joined_texts_total{outcome="same"}' in metrics
    assert '"event":"message_failed"' in server.log
    assert not [word for word in ("绝密", "机密", "13900139000", "13800138000") if word in metrics + server.log]


@pytest.mark.service
def test_sigterm_waits_for_a_joined_text() -> None:
    with Process(conversations={}) as server, server.connect() as connection:
        connection.sendall(post({"text": "慢" * 400, "conversation": KEY}))
        receive(connection)
        connection.sendall(post({"text": "好", "conversation": KEY}))
        time.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        assert b'"action":"pass","reason":"scored"' in read_all(connection)
        assert server.process.wait(20) == 0


@pytest.mark.service
def test_halves_over_two_connections() -> None:
    with InThread(halves, conversations={}) as server:
        server.send(post({"text": "呼", "conversation": KEY}, close=True))
        assert b'"reason":"conversation"' in server.send(post({"text": "死", "conversation": KEY}, close=True))


# ---- the default bundle


def exchange(scorer: Scorer, *texts: str) -> list[dict[str, Any]]:
    body = {"texts": list(texts), "conversations": [KEY] * len(texts), "deadline_ms": 60_000}
    (answer,), _ = ask(body, load=lambda: (scorer, None), **ON)
    return answer["results"]  # type: ignore[no-any-return]


def test_a_threat_in_two_is_flagged_at_its_second_half(scorer: Scorer) -> None:
    found = [
        exchange(scorer, *threat)
        for threat in (
            ("今天把三千块转过来", "否则后果你自己清楚"),
            ("今天不还钱", "就等着你爸妈单位的人都知道"),
            ("欠我们的钱今天必须到账", "不然就把你的照片发给通讯录里的每个人"),
        )
    ]
    assert [first["action"] for first, _ in found] == ["pass"] * 3
    assert [second["action"] for _, second in found if second["action"] == "pass"] == []
    raised = [second for _, second in found if second["reason"] == "conversation"]
    assert raised
    assert all(second["label"] in ("debt_threat", "pay_to_stop") for second in raised)


@pytest.mark.parametrize(
    "chat",
    [
        ("晚上几点到家", "我给你留了饭", "路上慢点"),
        ("明天把钱还你", "三百块对吧", "转你微信"),
        ("今天必须把方案发我", "不然明天客户要骂人了", "辛苦"),
        ("妈，我手机没电了", "晚点给你打电话", "别担心"),
        ("您好，您的账单2300元已到期", "请于今日还款，以免影响征信", "如已还款请忽略"),
        ("你再不回电话我就生气了", "快递放门口了", "记得拿"),
    ],
)
def test_chat_in_parts_passes(scorer: Scorer, chat: tuple[str, ...]) -> None:
    assert [(each["action"], each["reason"]) for each in exchange(scorer, *chat)] == [("pass", "scored")] * 3


def test_a_joined_text_leaves_no_trace_in_the_cache(scorer: Scorer) -> None:
    exchange(scorer, "您好呀在忙什么呢", "周末一起去看电影吧")
    known = list(scorer.cache._entries)
    assert any("看电影" in text for text in known)
    assert not [text for text in known if "忙什么" in text and "看电影" in text]


def test_a_raised_verdict_shows_no_text() -> None:
    alone = FakeScorer().score(SECRET)
    assert "绝密" not in repr(RaisedVerdict(**alone.as_dict() | {"alone": alone}))  # type: ignore[arg-type]
