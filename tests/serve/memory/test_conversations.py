from random import Random
from typing import Any

import pytest
from tests.serve.memory.gateway import MemoryUser
from tests.serve.memory.test_state import Clock

from jingyin.model.errors import ConfigError
from jingyin.serve.memory.state import Local
from jingyin.serve.settings import BurstSettings, ConversationSettings, load_settings

HAN = [chr(c) for c in range(0x4E00, 0x9000)]
WARNING = "您好，您在我司的借款已逾期三天，若今日下午六点前未处理，将通知您的通讯录联系人及单位，后果自负"


class Talk(MemoryUser):
    """A gateway that keeps conversations; all of it is from a to b."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        super().__init__(Local(clock=self.clock), conversations=ConversationSettings(), **settings)
        self.risks = {"转过来.*后果": 0.95}

    async def say(self, text: str, risk: float = 0.0, **options: Any) -> str:
        return await self.reason(text, risk, **{"sender": "a", "receiver": "b", **options})


async def test_a_threat_in_parts_is_read_as_one() -> None:
    talk = Talk()
    assert await talk.say("今天把钱转过来") == "pass scored"
    answer = await talk.send("否则后果自负", sender="a", receiver="b")
    assert (answer.action, answer.reason) == ("block", "conversation")
    assert answer.scored
    assert (answer.scored.decision.risk, answer.scored.clean.text) == (0.95, "否则后果自负")
    assert talk.read == ["今天把钱转过来,否则后果自负"]


async def test_what_is_raised_is_not_joined_again() -> None:
    talk = Talk()
    await talk.say("今天把钱转过来")
    assert await talk.say("否则后果自负") == "block conversation"
    assert await talk.say("晚饭吃什么") == "pass scored"
    assert talk.read[-1] == "今天把钱转过来,晚饭吃什么"


async def test_the_last_two_that_passed_are_joined_and_copies_once() -> None:
    talk = Talk()
    for text in ("一。", "二", "三", "三", "四"):
        await talk.say(text)
    await talk.say("五", 0.6)
    await talk.say("六", 0.95)
    await talk.say("七")
    assert talk.read == ["一。二", "一。二,三", "一。二,三", "二,三,四", "三,四,五", "三,四,七"]


async def test_other_people_directions_and_times_are_other_conversations() -> None:
    talk = Talk()
    await talk.say("今天把钱转过来")
    for other in ({"sender": "b", "receiver": "a"}, {"receiver": None}, {"sender": None}, {"key": "other"}):
        assert await talk.say("否则后果自负", **other) == "pass scored"
    talk.clock.now += 600
    assert await talk.say("否则后果自负") == "pass scored"
    assert talk.read == []


async def test_a_threat_in_parts_accuses_its_sender() -> None:
    talk = Talk(senders={})
    await talk.say("今天把钱转过来")
    await talk.say("否则后果自负", 0.2)
    assert await talk.reason("你等着", 0.2, sender="a") == "review sender"


async def test_what_is_held_for_its_sender_is_joined_for_filters_forward_it() -> None:
    talk = Talk(senders={})
    await talk.say("爆你通讯录", 0.6)
    assert await talk.say("今天把钱转过来", 0.2) == "review sender"
    assert await talk.say("否则后果自负") == "block conversation"


# ---- bursts


class Bulk(MemoryUser):
    """A gateway that holds bursts of more than ten."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        super().__init__(Local(clock=self.clock), burst=BurstSettings(count=10, **settings))


def edited(text: str, rate: float, rng: Random) -> str:
    """Return `text` with each character replaced, dropped or followed by another with the chance `rate`."""
    kinds = (lambda c: rng.choice(HAN), lambda c: "", lambda c: c + rng.choice(HAN))
    return "".join(rng.choice(kinds)(c) if rng.random() < rate else c for c in text)


async def test_the_eleventh_copy_is_held() -> None:
    bulk = Bulk()
    answers = [await bulk.send(WARNING, 0.3) for _ in range(13)]
    assert [each.more["near_duplicates"] for each in answers] == list(range(13))
    assert [each.reason for each in answers] == ["scored"] * 11 + ["burst"] * 2
    assert answers[-1].action == "review"
    assert await bulk.reason(WARNING, 0.95) == "block scored"
    assert "near_duplicates" not in (await bulk.send(WARNING, 0.19)).more


@pytest.mark.parametrize(("rate", "most", "least"), [(0.0, 1.0, 1.0), (0.05, 1.0, 0.8), (0.3, 0.3, 0.0)])
async def test_copies_with_edits_are_counted_too(rate: float, most: float, least: float) -> None:
    rng, bulk = Random(5), Bulk()
    for _ in range(60):
        await bulk.send(edited(WARNING, rate, rng), 0.3)
    held = [(await bulk.reason(edited(WARNING, rate, rng), 0.3)).endswith("burst") for _ in range(40)]
    assert least <= sum(held) / 40 <= most


async def test_other_messages_are_not_counted_as_copies() -> None:
    rng, bulk = Random(6), Bulk()
    for _ in range(500):
        await bulk.send("".join(rng.choices(HAN, k=30)), 0.3)
    assert (await bulk.send(WARNING, 0.3)).more["near_duplicates"] == 0


async def test_a_burst_is_forgotten() -> None:
    bulk = Bulk(window_seconds=60.0)
    for _ in range(20):
        await bulk.send(WARNING, 0.3)
    bulk.clock.now += 120
    assert (await bulk.send(WARNING, 0.3)).more["near_duplicates"] == 0


@pytest.mark.parametrize("text", ["", "短", "短信"])
async def test_what_is_too_short_to_count(text: str) -> None:
    bulk = Bulk()
    assert [await bulk.reason(text, 0.3) for _ in range(20)] == ["pass scored"] * 20


@pytest.mark.parametrize(
    "given", [{"burst": {"count": 0}}, {"conversations": {"seconds": 601}}, {"senders": {"risk": 0}}, {"state": "x"}]
)
def test_wrong_settings(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        load_settings(**given)
