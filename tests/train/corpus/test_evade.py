import unicodedata
from difflib import SequenceMatcher
from random import Random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jingyin.model.errors import ConfigError
from jingyin.train.corpus.perturb import FAMILIES, HELD_OUT, TRAINING, evade

THREAT = "你借的3482元逾期30天了，今天不还钱就把通讯录里的人打爆，让你老婆孩子都知道"
BENIGN = "妈，今天晚上我在外面吃，你们先吃，明天早上九点我去接姥姥，记得给我留钥匙和300块"

messages = st.text(st.sampled_from("你我今天明天还钱通讯录打爆吃饭，。！300abc {}%\\"), max_size=60)
families = st.sampled_from(FAMILIES)


def test_families():
    assert len(FAMILIES) >= 12
    assert set(TRAINING) | set(HELD_OUT) == set(FAMILIES)
    assert not set(TRAINING) & set(HELD_OUT)


GOLDEN = {
    "homophone": "再簿还钱就打堡你桐讯露，明早9点见",
    "lookalike": "再木还钱就打曝你桶讯彔，明早9点见",
    "component": "再不辶不钱就打火暴你通讯录，明早9点见",
    "spacing": "再不 还钱就打 爆你通讯录，明早9点见",
    "symbols": "再不——还钱就打_爆你通讯录，明早9点见",
    "zero_width": "\u518d\u4e0d\ufeff\u8fd8\xad\u94b1\u5c31\u6253\u200c\u7206\u2060\u4f60\u901a\u8baf\u5f55"
    "\uff0c\u660e\u65e99\u70b9\u89c1",
    "pinyin": "再buhai钱就da bao你通讯录，明早9点见",
    "initials": "再bh钱就DB你通讯录，明早9点见",
    "traditional": "再不還钱就打爆你通訊彔，明早9點見",
    "emoji": "再🚫还💰就打💥你通讯录，明🌅9点见",
    "numbers": "再不还钱9打爆0通讯录，明早九点见",
    "slang": "再bu还钱就打打爆你通讯录，明早9点见",
    "reversal": "再还不钱就爆打你通讯录，明早9点见",
    "template": "【优选商城】尊敬的再不还钱就打爆你通讯录，您预约的明早9点见已成功，感谢您的支持。",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_golden(family):
    assert evade("再不还钱就打爆你通讯录，明早9点见", family, 0.8, Random(2)) == GOLDEN[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_changes_both_kinds_of_message(family):
    for text in (THREAT, BENIGN):
        assert evade(text, family, 0.6, Random(1)) != text


def test_threatening_words_are_hidden_first():
    text = "明天早上九点在楼下见面再说，不然就联系通讯录"
    for seed in range(40):
        assert evade(text, "initials", 0.4, Random(seed)).lower().count("txl") == 1
        assert evade(text, "reversal", 0.1, Random(seed)).endswith("录讯通")


@given(messages, families, st.integers(0, 9))
def test_same_seed_same_disguise(text, family, seed):
    assert evade(text, family, 0.5, Random(seed)) == evade(text, family, 0.5, Random(seed))


@given(st.text(), families)
def test_total_and_nothing_at_strength_zero(text, family):
    assert evade(text, family, 0, Random(0)) == text
    assert isinstance(evade(text, family, 1, Random(0)), str)


@given(messages, st.floats(0.1, 1))
def test_insertions_only_insert(text, strength):
    for family in ("spacing", "symbols", "zero_width"):
        rest = iter(evade(text, family, strength, Random(0)))
        assert all(character in rest for character in text)


@given(messages, st.floats(0.1, 1))
def test_zero_width_shows_nothing(text, strength):
    hidden = evade(text, "zero_width", strength, Random(0))
    assert "".join(c for c in hidden if unicodedata.category(c) != "Cf") == text


def test_more_strength_more_disguise():
    changed = [mean(_touched(THREAT, family, s) for family in TRAINING) for s in (0.1, 0.5, 1.0)]
    assert changed == sorted(changed)
    assert changed[2] > 2 * changed[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_ordinary_messages_get_as_much_noise(family):
    rates = [mean(_touched(text, family, 0.5, seed) for seed in range(60)) for text in (THREAT, BENIGN)]
    assert rates[0] == pytest.approx(rates[1], rel=0.5, abs=0.05)


def _touched(text: str, family: str, strength: float, seed: int = 0) -> float:
    """Share of the characters of a text that don't come through a disguise in their order."""
    hidden = evade(text, family, strength, Random(seed))
    matches = SequenceMatcher(None, text, hidden, autojunk=False).get_matching_blocks()
    same = sum(match.size for match in matches)
    return max(len(text), len(hidden)) / len(text) - same / len(text)


def test_braces_in_a_message_are_text():
    hidden = evade("{1}{sign}%s", "template", 1, Random(0))
    assert "{" in hidden


def test_bad_calls():
    with pytest.raises(ConfigError, match="unknown evasion family 'rot13'; known: homophone"):
        evade("x", "rot13", 0.5, Random(0))
    with pytest.raises(ConfigError, match=r"from 0 to 1, not 1\.5"):
        evade("x", "pinyin", 1.5, Random(0))
