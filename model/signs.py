"""Signs: a message's demands, threats and framing; the reasons that a verdict gives.

A sign of *demand* or *pressure* is something that the sender wants or threatens. A message that only reports it, warns
of it, jokes about it or advertises it has the sign of that frame instead. train/corpus/LABELS.md has examples of both.
"""

from dataclasses import dataclass
from typing import Literal

Group = Literal["demand", "pressure", "frame"]
Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")
"""The languages in which signs have names."""


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign: its id, its name in Chinese and English, and where law or industry rules state it ("" for nowhere)."""

    id: str
    group: Group
    chinese: str
    english: str
    definition: str
    source: str = ""


_EXTORTION = "刑法 274"
_COLLECTION = "刑法 293-1"
_CONVENTION = "互联网金融逾期债务催收自律公约"

SIGNS = (
    Sign("demand_money", "demand", "索要钱财", "demands money", "wants money or value that is not a debt", _EXTORTION),
    Sign("demand_advantage", "demand", "索要其他好处", "demands something else",
         "wants a review removed, a resignation, an apology, sex, goods, silence"),
    Sign("demand_repayment", "demand", "要求还款", "demands repayment", "wants a debt or bill paid, real or claimed"),
    Sign("demand_contact", "demand", "要求联系", "demands contact",
         "tells the reader to call back, add an account or come, to settle"),
    Sign("flooding", "pressure", "轰炸骚扰", "floods with calls or messages",
         "masses of calls or messages, under way or threatened", _COLLECTION),
    Sign("exposure", "pressure", "告知他人", "tells others",
         "tells contacts, family, employer, school, village or the public", _CONVENTION),
    Sign("false_police", "pressure", "假借公安", "poses as or threatens with police",
         "police, a criminal case, a wanted list or prison as pressure to pay"),
    Sign("false_court", "pressure", "假借司法", "poses as a court or lawyer",
         "court, lawyer or enforcement beyond what the law allows, or plainly false"),
    Sign("visit", "pressure", "上门", "comes to the door",
         "comes to home, workplace, school or village, or claims to know where that is"),
    Sign("violence", "pressure", "暴力", "threatens violence", "beating, killing, injuring", _COLLECTION),
    Sign("family_harm", "pressure", "牵连家人", "harms the family",
         "harm or trouble for family or children, their school or career"),
    Sign("sexual_shaming", "pressure", "性羞辱", "shames sexually",
         "intimate or defaced pictures, sexual insult or coercion"),
    Sign("data_leak", "pressure", "泄露隐私", "leaks data", "leaks other private or business data, chats, secrets"),
    Sign("hostage", "pressure", "扣押财物", "holds something back",
         "a device, account, object, animal or person is held, locked or destroyed"),
    Sign("denunciation", "pressure", "举报抹黑", "denounces",
         "reports to authorities or media, bad reviews, bad publicity"),
    Sign("attack_service", "pressure", "攻击经营", "attacks a service or shop",
         "attacks a site, network, shop or business"),
    Sign("explosion_poison", "pressure", "爆炸投毒", "threatens with bomb, fire or poison", "bomb, fire or poison"),
    Sign("insult", "pressure", "侮辱", "insults", "insults or humiliates the reader"),
    Sign("deadline", "pressure", "限时升级", "sets a deadline",
         "a time limit or rising price after which it gets worse"),
    Sign("reported", "frame", "转述或提醒", "reports or warns",
         "quotes, reports, warns of or teaches about such messages"),
    Sign("victim", "frame", "受害者自述", "a victim tells", "the sender was threatened, or asks for help"),
    Sign("joke", "frame", "玩笑", "jokes", "playful, among friends or in a game"),
    Sign("advert", "frame", "广告", "advertises", "offers a service or goods"),
    Sign("lawful_consequence", "frame", "合法后果", "names lawful consequences", "names only lawful consequences"),
    Sign("third_party", "frame", "发给第三人", "addresses a third person",
         "addressed to someone other than who is to pay"),
)  # fmt: skip
"""All signs, in the order of the network's outputs."""

SIGN_IDS = tuple(sign.id for sign in SIGNS)

_NAMES = {"zh": {sign.id: sign.chinese for sign in SIGNS}, "en": {sign.id: sign.english for sign in SIGNS}}


def name_of(sign: str, language: Language) -> str:
    """Return the name of a sign by its id, or the id itself if this version of jingyin does not know it."""
    return _NAMES[language].get(sign, sign)
