import asyncio
import json
import time
from base64 import b64encode
from dataclasses import asdict
from typing import Any

import httpx
import pytest
from tests.serve.http.http_fakes import SECRET, FakeScorer, load, serving

from jingyin import Scorer
from jingyin.serve.explain import Explanation
from jingyin.serve.http import batcher, schema, service
from jingyin.serve.http.app import create_app
from jingyin.serve.http.batcher import INLINE_CHARACTERS
from jingyin.serve.settings import load_settings
from jingyin.serve.sms import CODINGS


def ask(body: Any, path: str = "/v1/score", **flags: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def post() -> httpx.Response:
        async with serving(**flags) as (client, _):
            return await client.post(path, content=content)

    return asyncio.run(post())


def b64(data: bytes) -> str:
    return b64encode(data).decode()


# ---- /v1/score


def test_one_message() -> None:
    response = ask({"text": "呼死你", "request_id": "a-1", "deadline_ms": 9000.0})
    assert (response.status_code, response.headers["x-request-id"]) == (200, "a-1")
    assert response.json() == {
        "request_id": "a-1", "action": "block", "reason": "scored", "label": "pay_to_stop", "risk": 0.75,
        "probabilities": {
            "ordinary": 0.25, "lawful_collection": 0, "debt_threat": 0, "pay_to_stop": 0.75, "other_threat": 0,
        },
        "stage": "network", "edits": {"gaps": 1}, "bundle": "fake",
        "reasons": [{"sign": "insult", "confidence": 0.875}],
    }  # fmt: skip


async def test_a_content_type_in_capitals_is_the_same() -> None:
    async with serving() as (client, _):
        for kind, status in (("Application/JSON; charset=UTF-8", 200), ("text/plain", 415)):
            answer = await client.post("/v1/score", content=b'{"text": ""}', headers={"content-type": kind})
            assert answer.status_code == status


def test_several_messages_in_order() -> None:
    response = ask({"texts": ["你好", "死", ""]})
    assert [result["action"] for result in response.json()["results"]] == ["pass", "block", "pass"]
    assert ask({"texts": []}).json()["results"] == []
    assert ask({"texts": [], "explain": True}).json()["results"] == []


def test_evidence_comes_on_request_only() -> None:
    assert "evidence" not in ask({"text": "死"}).json()
    spans = ask({"texts": ["呼死", "好"], "explain": True}).json()["results"]
    assert [result["evidence"] for result in spans] == [[{"start": 1, "end": 2, "text": "死", "weight": 0.5}], []]


def test_reasons_always_come_and_their_evidence_on_request() -> None:
    assert [result["reasons"] for result in ask({"texts": ["死", "好"]}).json()["results"]] == [
        [{"sign": "insult", "confidence": 0.875}], [],
    ]  # fmt: skip
    (reason,) = ask({"text": "死死", "explain": True}).json()["reasons"]
    span = {"start": 1, "end": 2, "text": "死", "weight": 0.5}
    assert reason == {"sign": "insult", "confidence": 0.875, "spans": [span]}


def test_reasons_are_left_out_where_they_are_not_wanted() -> None:
    assert ask({"text": "死", "reasons": False, "explain": True}).json()["reasons"] == []
    assert [len(result["reasons"]) for result in ask({"texts": ["死"], "reasons": True}).json()["results"]] == [1]
    assert ask({"text": "死", "reasons": "no"}).status_code == 422


def test_evidence_that_is_not_ready_in_time_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "EXPLAIN_SECONDS", 0.01)
    answer = ask({"text": "死" + "慢" * 300, "explain": True, "deadline_ms": 9_000}).json()
    assert answer["evidence"] is None
    assert answer["reasons"] == [{"sign": "insult", "confidence": 0.875, "spans": None}]


def test_evidence_that_fails_is_null_and_the_verdicts_stay(capfd: pytest.CaptureFixture[str]) -> None:
    class Faltering(FakeScorer):
        def explanation(self, text: str) -> Explanation:
            if SECRET in text:
                raise RuntimeError(f"can't explain {text}")
            return super().explanation(text)

    body = {"texts": [f"死{SECRET}", "死"], "explain": True}
    failed, other = ask(body, load=lambda: (Faltering(), None)).json()["results"]
    assert (failed["action"], failed["reason"], failed["evidence"]) == ("block", "scored", None)
    assert failed["reasons"] == [{"sign": "insult", "confidence": 0.875, "spans": None}]
    assert other["evidence"] == [{"start": 0, "end": 1, "text": "死", "weight": 0.5}]
    log = capfd.readouterr().err
    assert '"event":"evidence_failed","error":"RuntimeError"' in log
    assert SECRET not in log


def test_evidence_that_finds_no_place_is_null_and_the_verdicts_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_EXPLAINED", 1)
    response = ask({"texts": ["死", "好"], "explain": True})
    assert response.status_code == 200
    found = [(each["action"], each["evidence"]) for each in response.json()["results"]]
    assert found == [("block", None), ("pass", None)]


def test_reasons_of_a_bundle_are_those_of_its_scorer(signed: Scorer) -> None:
    text = "今天曝光你，赎金"
    answer = ask({"text": text, "explain": True, "deadline_ms": 60_000}, load=lambda: (signed, None)).json()
    verdict, spans = signed.score(text), signed.explain_reasons(text)
    assert answer["reasons"] == [
        {**asdict(reason), "spans": [asdict(span) for span in spans[reason.sign]]} for reason in verdict.reasons
    ]
    assert [reason["sign"] for reason in answer["reasons"]] == ["exposure", "demand_money"]


def test_an_error_of_ours_has_no_verdict() -> None:
    (last,) = ask({"texts": ["坏"]}, on_deadline="review").json()["results"]
    assert last == {
        "action": "review", "reason": "error", "label": None, "risk": None, "probabilities": None, "stage": None,
        "edits": {}, "bundle": "fake", "reasons": [],
    }  # fmt: skip


def test_evidence_can_be_switched_off() -> None:
    answer = ask({"text": "死", "explain": True}, explain=False).json()
    assert answer["evidence"] is answer["reasons"][0]["spans"] is None


async def test_a_dry_run_passes_everything_and_says_what_it_would_have_done() -> None:
    async with serving(dry_run=True) as (client, service):
        results = (await client.post("/v1/score", json={"texts": ["死", "好"]})).json()["results"]
        metrics = service.metrics.render().decode()
    found = [(each["action"], each["dry_run"], each["risk"]) for each in results]
    assert found == [("pass", "block", 0.75), ("pass", "pass", 0.25)]
    assert 'jingyin_dry_run_total{action="block"} 1.0' in metrics
    assert 'jingyin_messages_total{action="block",stage="network"} 1.0' in metrics


def test_payload_as_the_gateway_holds_it() -> None:
    payload, udh = b64("呼死你".encode("gbk") + b"\xff"), b64(b"\x05\x00\x03\x07\x02\x01")
    response = ask({"payload": payload, "coding": "gbk", "udh": udh})
    assert response.json()["action"] == "block"
    assert response.json()["sms"] == {"partial": True, "undecodable": 1, "damaged": 0}


def test_a_data_coding_as_the_protocols_number_it() -> None:
    for number, codec in ((8, "utf-16-be"), (0x18, "utf-16-be"), (15, "gbk"), (0xE0, "utf-16-be")):
        assert ask({"payload": b64("呼死你".encode(codec)), "data_coding": number}).json()["action"] == "block"


async def test_where_the_coding_gives_mojibake_the_riskiest_reading_counts() -> None:
    async with serving() as (client, service):
        threats = ["呼死你".encode("gbk"), "呼死你".encode(), "呼死你，打钱".encode("utf-16-be")]
        payloads = [*threats, b"hello", b"\xff\xff\xff"]
        bodies = [{"payload": b64(payload), "data_coding": 0} for payload in payloads]
        answers = [(await client.post("/v1/score", json=body)).json() for body in bodies]
        metrics = service.metrics.render().decode()
    found = [(each["action"], each["sms"]["undecodable"]) for each in answers]
    assert found == [("block", 0), ("block", 0), ("block", 0), ("pass", 0), ("pass", 3)]
    for action, count in (("block", 3), ("pass", 2)):  # each is one message, of the reading that decided
        assert f'jingyin_messages_total{{action="{action}",stage="network"}} {count}.0' in metrics


@pytest.mark.parametrize(("text", "action", "reason"), [("慢" * 300, "review", "deadline"), ("死", "block", "scored")])
def test_a_reading_that_is_not_made_in_time_leaves_the_message_unread(text: str, action: str, reason: str) -> None:
    body = {"payload": b64(text.encode("gbk")), "data_coding": 0, "deadline_ms": 150}
    answer = ask(body, on_deadline="review").json()
    assert (answer["action"], answer["reason"]) == (action, reason)


def test_parts_are_reassembled_across_a_cut_character() -> None:
    data = "呼死你".encode("utf-16-be")
    parts = [
        {"payload": b64(piece), "udh": b64(bytes((5, 0, 3, 9, 2, i)))} for i, piece in ((2, data[3:]), (1, data[:3]))
    ]
    assert ask({"parts": parts, "coding": "ucs2"}).json()["action"] == "block"


async def test_a_header_names_the_request_unless_it_could_hold_a_message() -> None:
    async with serving() as (client, _):
        sent = [b"trace.7", SECRET.encode(), b"x" * 65]
        responses = [
            await client.post("/v1/score", json={"text": ""}, headers=[(b"x-request-id", each)]) for each in sent
        ]
    first, second, third = [response.headers["x-request-id"] for response in responses]
    assert first == "trace.7"
    assert [second.split("-")[1], third.split("-")[1]] == ["1", "2"]


def test_a_lone_surrogate_is_no_way_past_the_filter() -> None:
    assert ask(b'{"text": "\\ud83d \\u6b7b"}').json()["action"] == "block"


def test_a_lone_surrogate_is_dropped_as_the_scorer_drops_it_and_spans_keep_their_places(signed: Scorer) -> None:
    answer = ask(b'{"text": "\\u8f70\\ud800\\u70b8"}', load=lambda: (signed, None)).json()
    verdict = signed.score("轰\ud800炸")
    assert answer["edits"] == verdict.edits == {"invisible": 1}
    assert answer["risk"] == verdict.risk
    spans = ask(b'{"text": "\\udfff\\u6b7b\\ud800\\u6b7b", "explain": true}').json()["evidence"]
    assert [(span["start"], span["end"]) for span in spans] == [(1, 2), (3, 4)]


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 400, "the body is no JSON: Invalid JSON: EOF"),
        (b'{"text": "a"} x', 400, "the body is no JSON"),
        (b'{"text": "\xff\xfe"}', 400, "the body is no JSON"),
        (b"[" * 100_000, 400, "the body is no JSON"),
        ([], 422, "wanted a JSON object with exactly one of text, texts, payload, parts"),
        ({"text": "a", "texts": ["b"]}, 422, "wanted a JSON object with exactly one of"),
        ({"text": 5}, 422, "text: Input should be a valid string"),
        ({"texts": ["a", None]}, 422, "texts.1: Input should be a valid string"),
        ({"text": "a", SECRET: 1}, 422, "a field is unknown"),
        ({"text": "a", "explain": "yes"}, 422, "explain: Input should be a valid boolean"),
        ({"text": "a", "deadline_ms": 50.5}, 422, "deadline_ms: Input should be a valid integer"),
        ({"text": "a", "deadline_ms": 0}, 422, "deadline_ms: Input should be greater than or equal to 1"),
        ({"text": "a", "request_id": SECRET}, 422, "request_id: String should match pattern"),
        ({"payload": "a", "coding": "gsm7"}, 422, "payload: String should match pattern"),
        ({"payload": "YQ==", "coding": SECRET}, 422, "coding: Input should be 'gsm7', 'gsm7-packed', 'ascii'"),
        ({"payload": "YQ=="}, 422, "wanted exactly one of coding and data_coding"),
        ({"payload": "YQ==", "coding": "gbk", "data_coding": 15}, 422, "wanted exactly one of coding and data_coding"),
        ({"payload": "YQ==", "data_coding": 256}, 422, "data_coding: Input should be less than or equal to 255"),
        ({"text": "a", "sender": "1" * 257}, 422, "sender: String should have at most 256 characters"),
        ({"payload": b64(b"a" * 65_536), "coding": "ascii"}, 422,
         "payload: String should have at most 87380 characters"),
        ({"parts": [], "coding": "gsm7"}, 422, "parts: List should have at least 1 item"),
        ({"texts": ["a"] * 1025}, 413, "1025 messages came, at most 1024 were wanted"),
        ({"texts": ["a"] * 17, "explain": True}, 413, "17 messages came with explain, at most 16 were wanted"),
        ({"text": "a" * (1 << 20)}, 413, "the body is larger than 1048576 bytes"),
    ],
)  # fmt: skip
def test_bad_requests_get_a_precise_answer_without_their_text(body: Any, status: int, error: str) -> None:
    response = ask(body)
    assert response.status_code == status
    assert response.json()["error"].startswith(error)
    assert SECRET not in response.text


async def test_other_media_types_routes_and_methods() -> None:
    async with serving() as (client, _):
        form = await client.post("/v1/score", data={"text": "a"})
        missing, method = await client.get("/nothing"), await client.get("/v1/score")
        assert method.headers["allow"] == "POST"
        assert missing.json()["error"] == "there is no such route; see /openapi.json"
        assert [form.status_code, missing.status_code, method.status_code] == [415, 404, 405]


# ---- deadline, errors, refusal


@pytest.mark.parametrize(
    ("text", "on_deadline", "action", "risk"),
    [
        ("死" + "慢" * 1_900, "pass", "block", 0.75),  # the network's, cut short
        ("慢" * 1_900, "pass", "pass", 0.25),
        ("慢" * 1_900, "block", "block", 0.25),
    ],
)
async def test_at_the_deadline_the_best_reading_counts(text: str, on_deadline: str, action: str, risk: float) -> None:
    async with serving(on_deadline=on_deadline) as (client, service):
        start = asyncio.get_running_loop().time()
        answer = await client.post("/v1/score", json={"text": text, "deadline_ms": 150})
        taken = asyncio.get_running_loop().time() - start
        body, metrics = answer.json(), service.metrics.render().decode()
    assert (body["action"], body["reason"], body["risk"]) == (action, "deadline", risk)
    assert 0.02 < taken < 1.5
    assert f'jingyin_unscored_total{{action="{action}",reason="deadline"}} 1.0' in metrics


async def test_a_message_is_counted_once_though_its_network_ends_after_the_deadline() -> None:
    class Late(FakeScorer):
        def scored(self, texts: Any, until: float) -> Any:
            time.sleep(0.1)
            return (self._scored(each.original, "network", final=True) for each in texts)

    async with serving(load=lambda: (Late(), None)) as (client, service):
        assert (await client.post("/v1/score", json={"text": "死", "deadline_ms": 20})).json()["reason"] == "deadline"
        await asyncio.sleep(0.2)
        metrics = service.metrics.render().decode()
    assert 'jingyin_unscored_total{action="review",reason="deadline"} 1.0' in metrics
    assert "jingyin_messages_total{" not in metrics


async def test_what_only_the_prefilter_has_read_and_found_risky_is_reviewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "THREADS", 1)
    monkeypatch.setattr(batcher, "SLICE_SECONDS", 10)
    async with serving() as (client, _):
        busy = asyncio.create_task(client.post("/v1/score", json={"text": "慢" * 300, "deadline_ms": 400}))
        await asyncio.sleep(0.05)
        texts = ("死", "死" + "好" * INLINE_CHARACTERS)  # the long one gets its first look too late
        answers = [await client.post("/v1/score", json={"text": text, "deadline_ms": 30}) for text in texts]
        await busy
    found = [(each["action"], each["reason"], each["stage"], each["risk"]) for each in (a.json() for a in answers)]
    assert found == [("review", "deadline", "prefilter", 0.75), ("pass", "deadline", None, None)]


async def test_a_costly_message_lets_others_pass() -> None:
    async with serving() as (client, _):
        answered = []

        async def ask(text: str) -> None:
            assert (await client.post("/v1/score", json={"text": text})).json()["reason"] == "scored"
            answered.append(text[0])

        costly = asyncio.create_task(ask("慢" * 300))
        await asyncio.sleep(0.01)
        for text in "一二三":
            await ask(text)
        await costly
    assert answered == ["一", "二", "三", "慢"]


def test_a_deadline_has_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "MAX_DEADLINE_MS", 20)
    assert ask({"text": "慢" * 100, "deadline_ms": 60_000}).json()["reason"] == "deadline"


def test_one_bad_message_leaves_its_batch_alone(capfd: pytest.CaptureFixture[str]) -> None:
    results = ask({"texts": ["死", f"坏{SECRET}", "好"]}).json()["results"]
    assert [(r["action"], r["reason"]) for r in results] == [("block", "scored"), ("pass", "error"), ("pass", "scored")]
    log = capfd.readouterr().err
    assert '"event":"message_failed"' in log
    assert SECRET not in log


async def test_beyond_its_share_of_the_queue_a_batch_is_refused_and_a_message_answered_by_its_first_look() -> None:
    async with serving(queue=11) as (client, service):
        texts = ["慢" * 1_000, *["a"] * 5]
        slow = asyncio.create_task(client.post("/v1/score", json={"texts": texts, "deadline_ms": 5_000}))
        await asyncio.sleep(0.05)
        refused = await client.post("/v1/score", json={"texts": ["a"] * 6})
        looked = (await client.post("/v1/score", json={"text": "死", "deadline_ms": 20})).json()
        assert (await slow).status_code == 200
        metrics = service.metrics.render().decode()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"].startswith("more messages of yours wait than your share of the queue holds")
    assert (looked["action"], looked["reason"]) == ("review", "deadline")
    assert 'jingyin_refused_total{reason="queue"} 1.0' in metrics


async def test_a_costly_message_gives_way_to_others() -> None:
    async with serving() as (client, _):
        ask = {"text": "慢" * 400 + "死", "deadline_ms": 5_000, "sender": "a"}
        costly = asyncio.create_task(client.post("/v1/score", json=ask))
        await asyncio.sleep(0.005)
        other = await client.post("/v1/score", json={"text": "死", "sender": "b"})
        first, other, costly = costly.done(), other.json(), (await costly).json()
    assert not first
    assert [(each["action"], each["reason"]) for each in (other, costly)] == [("block", "scored")] * 2


async def test_single_messages_go_before_batches_and_clients_take_turns() -> None:
    async with serving() as (_, service):
        done: list[str] = []

        async def read(name: str, texts: list[str], whose: str) -> None:
            await service.batcher.read(texts, asyncio.get_running_loop().time() + 5, whose)
            done.append(name)

        singles = [(f"a{i}", ["慢" * 5], "a") for i in range(8)]
        given = [("batch", ["慢" * 5] * 20, "a"), *singles, ("b", ["慢" * 5], "b")]
        await asyncio.gather(*(asyncio.create_task(read(*each)) for each in given))
    assert done.index("b") < done.index("a7")
    assert done[-1] == "batch"


async def test_a_request_cancelled_while_it_waits_for_its_turn_holds_up_no_other() -> None:
    gate = batcher.Gate()
    waiting = [asyncio.create_task(gate.turn("a")) for _ in range(3 * batcher.TURNS)]
    await asyncio.sleep(0)
    for each in waiting[batcher.TURNS : batcher.TURNS + 2]:
        each.cancel()
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
    assert sum(result is None for result in results) == 3 * batcher.TURNS - 2


async def test_what_cache_or_prefilter_decides_waits_for_nobody() -> None:
    async with serving() as (client, service):
        slow = asyncio.create_task(client.post("/v1/score", json={"text": "慢" * 300, "deadline_ms": 9_000}))
        await asyncio.sleep(0.05)
        quick = await client.post("/v1/score", json={"text": "快死"})
        waited = slow.done()
        await slow
        metrics = service.metrics.render().decode()
    assert not waited
    assert quick.json()["action"] == "block"
    assert 'jingyin_messages_total{action="block",stage="network"} 1.0' in metrics


def test_a_message_that_fails_on_the_event_loop_is_answered_all_the_same() -> None:
    assert ask({"text": "快坏"}).json()["reason"] == "error"


# ---- operations


async def test_health_metrics_and_description() -> None:
    async with serving() as (client, service):
        await client.post("/v1/score", json={"text": SECRET})
        await client.get(f"/{SECRET}")
        assert (await client.get("/healthz")).json() == {"live": True}
        assert (await client.get("/readyz")).json() == {"ready": True}
        metrics = (await client.get("/metrics")).text
        for line in (
            'jingyin_messages_total{action="pass",stage="network"} 1.0',
            'jingyin_normaliser_edits_total{kind="gaps"} 1.0',
            'jingyin_bundle_info{id="fake",role="deployed"} 1.0',
            'jingyin_requests_total{route="other",status="404"} 1.0',
            'jingyin_cache{what="cache_misses"} 2.0',
            'jingyin_request_seconds_count{route="/v1/score"} 1.0',
        ):
            assert line in metrics
        assert SECRET not in metrics
        assert set((await client.get("/openapi.json")).json()["paths"]["/v1/score"]) == {"post"}
        service.draining = True
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.headers["connection"]) == (503, "close")


async def test_the_description_names_every_route_and_every_field() -> None:
    async with serving() as (client, _):
        described = (await client.get("/openapi.json")).json()
    app = create_app(load_settings(cases={}), load)
    assert set(described["paths"]) == {route.path for route in app.routes} - {"/", "/admin/"}  # type: ignore[attr-defined]
    for name, model in (
        ("Text", schema.ScoreText), ("Texts", schema.ScoreTexts), ("Payload", schema.ScorePayload),
        ("Parts", schema.ScoreParts), ("Part", schema.SmsPart),
    ):  # fmt: skip
        assert set(described["components"]["schemas"][name]["properties"]) == set(model.model_fields)
    assert described["components"]["schemas"]["Coding"]["enum"] == list(CODINGS)


async def test_the_shadow_is_counted_and_never_answers() -> None:
    async with serving(load=lambda: (FakeScorer("first"), FakeScorer("shadow", mark="钱"))) as (client, service):
        for text in ("死", "钱", "死钱"):
            assert (await client.post("/v1/score", json={"text": text})).json()["bundle"] == "first"
        await asyncio.sleep(0.1)
        metrics = service.metrics.render().decode()
    assert 'jingyin_shadow_total{deployed="block",shadow="pass"} 1.0' in metrics
    assert 'jingyin_shadow_total{deployed="pass",shadow="block"} 1.0' in metrics
    assert 'jingyin_bundle_info{id="shadow",role="shadow"} 1.0' in metrics


async def test_risky_messages_go_before_others_which_still_get_their_turns() -> None:
    async with serving() as (_, service):
        done: list[str] = []

        async def read(text: str, sender: str) -> None:
            await service.batcher.read([text], asyncio.get_running_loop().time() + 5, "", sender)
            done.append(text[0])

        busy = [asyncio.create_task(read("忙" + "慢" * 20, f"{i}")) for i in range(batcher.THREADS)]
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(read("好" + "慢" * 3, f"o{i}")) for i in range(4)]
        await asyncio.sleep(0)
        risky = [asyncio.create_task(read("死" + "慢" * 3, f"r{i}")) for i in range(12)]
        await asyncio.gather(*busy, *others, *risky)
    done = [each for each in done if each != "忙"]
    assert done.index("好") <= 4 * 2  # one in OTHERS, of two threads
    assert done[:10].count("死") >= 6


async def test_messages_answered_without_a_thread_wait_no_longer() -> None:
    async with serving() as (client, service):

        def waiting() -> int:
            lanes = (*service.batcher._lanes, service.batcher._extra, service.batcher._batches)
            return sum(len(heap) for lane in lanes for heap in (*lane._risky.values(), *lane._others.values()))

        slow = [client.post("/v1/score", json={"text": "慢" * 200, "deadline_ms": 1_000}) for _ in range(6)]
        tasks = [asyncio.create_task(each) for each in slow]
        await asyncio.sleep(0.05)
        batch = {"texts": [f"好{number}" for number in range(200)], "deadline_ms": 60}
        results = (await client.post("/v1/score", json=batch)).json()["results"]
        assert {each["reason"] for each in results} >= {"deadline"}
        left = waiting()
        await asyncio.gather(*tasks)
        assert [left > 6, waiting()] == [False, 0]
