from pathlib import Path

import pytest
from tests.serve.memory.gateway import MemoryUser

from jingyin.model.errors import ConfigError
from jingyin.serve.memory.policy import MessageSource, Policy, Rule, read_policy

POLICY = """
rules:
  - {name: codes, key: [otp], signature: [某某银行], action: pass}
  - {name: trial, sender: ["*"], action: block, dry_run: true}
  - {name: marketing, sender: ["10690*", "10655?"], review: 0.3, block: 0.8, on_deadline: review}
  - {name: abroad, route: [abroad], review: 0.2}
  - {name: banned, sender: ["+1*"], action: block}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY, encoding="utf-8")
    return file


async def test_the_first_rule_that_a_message_meets_decides(file: Path) -> None:
    gateway = MemoryUser(policy=file)
    code = "【某某银行】验证码1234"
    assert await gateway.reason(code, 0.95, key="otp", sender="106901") == "pass policy"
    assert await gateway.reason(code, 0.95, key="other", sender="106901") == "block scored"
    assert await gateway.reason("你好", 0.85, sender="106901") == "block policy"
    assert await gateway.reason("你好", 0.4, sender="106551") == "review policy"
    assert await gateway.reason("你好", 0.4, sender="1065512") == "pass scored"
    assert await gateway.reason("你好", 0.25, sender="106901") == "pass scored"
    assert await gateway.reason("你好", 0.25, route="abroad") == "review policy"
    assert await gateway.reason("你好", 0.95, route="abroad") == "block scored"
    assert await gateway.reason("你好", 0.0, sender="+1555") == "block policy"
    assert (await gateway.send("你好", 0.85, sender="106901")).more == {"rule": "marketing"}


async def test_a_higher_threshold_for_block_leaves_a_message_to_people(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("rules: [{name: rarely, block: 0.99}]")
    gateway = MemoryUser(policy=file)
    found = [await gateway.reason("你好", risk) for risk in (0.995, 0.95, 0.6, 0.1)]
    assert found == ["block scored", "review policy", "review scored", "pass scored"]


async def test_a_rule_for_what_is_late(file: Path) -> None:
    gateway = MemoryUser(policy=file)
    assert await gateway.reason("你好", sender="106901", final=False) == "review policy"
    assert await gateway.reason("你好", sender="1", final=False) == "pass deadline"


async def test_rules_are_counted_those_of_a_dry_run_too(file: Path) -> None:
    gateway = MemoryUser(policy=file)
    await gateway.send("你好", sender="106901")
    found = gateway.metrics.render().decode()
    assert 'jingyin_policy_total{action="block",rule="trial"} 1.0' in found
    assert 'jingyin_policy_total{action="pass",rule="marketing"} 1.0' in found
    assert "abroad" not in found


def test_all_faults_at_once(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("rules: [{name: a}, {name: b, action: drop, sende: x}, {name: c, review: 0.9, block: 0.1}]")
    with pytest.raises(ConfigError) as told:
        read_policy(file)
    for words in (
        "rules.0: Value error, a rule needs",
        "rules.1.action",
        "rules.1.sende",
        "rules.2: Value error, review",
    ):
        assert words in str(told.value)
    file.write_text("rules: [")
    with pytest.raises(ConfigError, match="can't be read as YAML"):
        read_policy(file)


@pytest.mark.parametrize("text", ["【某某银行】您好", "您好【某某银行】", "[某某银行]您好", "【别的】您好【某某银行】"])
def test_signatures_anywhere(text: str) -> None:
    policy = Policy(rules=(Rule(name="a", signature=("某某*",), action="pass"),))
    assert [rule.name for rule in policy.rules_for(MessageSource(), text)] == ["a"]
    assert not list(policy.rules_for(MessageSource(), text.replace("某", "什")))


@pytest.mark.parametrize(
    ("rules", "error"),
    [
        ("[{name: ours, sender: [], action: pass}]", "rules.0.sender: Tuple should have at least 1 item"),
        ("[{name: 2024-99-99, action: pass}]", "can't be read as YAML"),
    ],
)
def test_a_list_without_patterns_and_no_date_are_refused(rules: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(f"rules: {rules}")
    with pytest.raises(ConfigError, match=error):
        read_policy(tmp_path / "policy.yaml")
