"""Where the service asks memory: what a request hands over, and what becomes of the answer."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.serve.http.http_fakes import SECRET, FakeScorer, serving

from jingyin import Scorer
from jingyin.model.text import CleanString
from jingyin.serve.answer import Answer, Context
from jingyin.serve.http import batcher
from jingyin.serve.networks import NetworkReader

SENDER, RECEIVER = "机密发信人", "13900139000"
BOTH = {"sender": SENDER, "receiver": RECEIVER}


def halves() -> tuple[FakeScorer, None]:
    """Load a scorer that blocks what holds 呼,死: the halves of a threat, joined."""
    return FakeScorer(mark="呼,死"), None


async def ask(*bodies: dict[str, Any], load: Any = halves, **flags: Any) -> tuple[list[dict[str, Any]], str]:
    """Return the answers to bodies that come one after another, and the metrics then."""
    async with serving(load=load, **{"conversations": {}, **flags}) as (client, service):
        found = [(await client.post("/v1/score", json=body)).json() for body in bodies]
        return found, service.metrics.render().decode()


async def test_memory_gets_the_answer_and_its_context_and_gives_another() -> None:
    seen: list[tuple[Context, Answer]] = []

    class Remembering:
        async def judge(self, context: Context, answer: Answer) -> Answer:
            seen.append((context, answer))
            other = await context.read(CleanString("死"))
            assert other.decision.action == "block"
            return answer._replace(action="review", reason="sender", more={"hits": 2})

        def tend(self) -> None: ...

        async def close(self) -> None: ...

    async with serving() as (client, service):
        service.memory = Remembering()
        answer = (await client.post("/v1/score", json={"text": "好", **BOTH})).json()
        metrics = service.metrics.render().decode()
    assert (answer["action"], answer["reason"], answer["hits"], answer["label"]) == ("review", "sender", 2, "ordinary")
    ((context, before),) = seen
    assert (context.origin.client, context.origin.key) == ("127.0.0.1", "")
    assert (context.origin.sender, context.origin.receiver) == (SENDER, RECEIVER)
    assert (before.action, before.reason, before.scored and before.scored.clean.text) == ("pass", "scored", "好")
    assert 'jingyin_changed_total{action="review",reason="sender"} 1.0' in metrics
    assert 'jingyin_messages_total{action="block"' not in metrics  # what memory has read is no message


async def test_the_second_half_of_a_threat_gets_the_verdict_on_both() -> None:
    (first, second), _ = await ask(*({"text": text, **BOTH} for text in "呼死"))
    assert (first["action"], first["reason"], first["risk"]) == ("pass", "scored", 0.25)
    assert (second["action"], second["reason"], second["risk"]) == ("block", "conversation", 0.75)


async def test_a_joined_text_resumes_where_its_time_slice_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, read = Scorer.load(), list[tuple[str, str]]()
    run_network = NetworkReader.run

    def counted(self: NetworkReader, ids: Sequence[int], *spans: Any) -> Any:
        read.append((self.network.file, str(ids)))
        return run_network(self, ids, *spans)

    monkeypatch.setattr(batcher, "SLICE_SECONDS", 0.0001)
    monkeypatch.setattr(NetworkReader, "run", counted)
    async with serving(load=lambda: (scorer, None)) as (_, service):
        until = asyncio.get_running_loop().time() + 10
        (outcome,) = await service.batcher.read(["不还钱就爆你通讯录。" * 20], until, extra=True)
        assert not isinstance(outcome, str)
        assert outcome.final
    assert len(read) == len(set(read)) > 1


@pytest.mark.parametrize("other", [{}, {"sender": SENDER}, {"sender": RECEIVER, "receiver": SENDER}])
async def test_messages_of_other_pairs_are_not_joined(other: dict[str, str]) -> None:
    answers, _ = await ask({"text": "呼", **BOTH}, {"text": "死", **other})
    assert [answer["reason"] for answer in answers] == ["scored", "scored"]


async def test_a_policy_decides_on_messages_without_a_reading_too(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "rules: [{name: banned, sender: [x], action: block}, {name: bank, signature: [银行], on_deadline: review}]"
    )
    bodies = [{"text": "坏"}, {"text": "坏", "sender": "x"}, {"texts": ["坏", "【银行】坏"], "sender": "y"}]
    (one, two, both), metrics = await ask(*bodies, policy=file)
    answers = [one, two, *both["results"]]
    assert [(each["action"], each["reason"]) for each in answers] == [
        ("pass", "error"), ("block", "policy"), ("pass", "error"), ("review", "policy"),
    ]  # fmt: skip
    assert 'jingyin_unscored_total{action="pass",reason="error"} 2.0' in metrics
    assert 'jingyin_unscored_total{action="block",reason="error"} 1.0' in metrics


async def test_a_trial_is_counted_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("rules: [{name: all, block: 0.9}]")
    flags = {"policy": file, "conversations": {}, "burst": {"risk": 0.1}, "dry_run": True}
    async with serving(halves, **flags) as (client, service):
        counts = ("changed", "dry_run", "joined", "messages", "near_duplicates_count", "policy", "unscored")

        def counted() -> list[str]:
            names = tuple(f"jingyin_{name}" for name in counts)
            return [line for line in service.metrics.render().decode().splitlines() if line.startswith(names)]

        await client.post("/v1/score", json={"text": "呼", **BOTH})
        before = counted()
        tried = await client.post("/admin/trial", json={"text": "死", **BOTH})
        assert tried.json()["dry_run"] == "block"
        assert counted() == before


async def test_neither_sender_nor_text_turns_up_in_log_or_metrics(capfd: pytest.CaptureFixture[str]) -> None:
    bodies = [{"text": f"{text}{SECRET}", **BOTH} for text in "呼死坏"]
    _, metrics = await ask(*bodies, {"text": "a", "sender": SENDER * 100}, log_requests="all")
    log = capfd.readouterr().err
    assert '"event":"request"' in log
    assert not [word for word in (SENDER, RECEIVER, SECRET, "绝密") if word in log + metrics]


async def test_a_threat_in_two_is_flagged_at_its_second_half() -> None:
    scorer = Scorer.load()
    texts = ("今天把三千块转过来", "否则后果你自己清楚")
    answers, _ = await ask(*({"text": text, **BOTH} for text in texts), load=lambda: (scorer, None))
    assert answers[0]["action"] == "pass"
    assert (answers[1]["action"], answers[1]["reason"]) == ("block", "conversation")
