"""The record that every part of the corpus passes on, and the values that its fields may take."""

from dataclasses import dataclass

VOICES = frozenset((
    "gang_seller", "pseudo_lawyer", "collector_early", "collector_late", "polite_menace", "thug", "student",
    "northeastern", "cantonese", "taiwan", "hongkong", "no_punctuation", "voice_to_text", "template",
    "wechat_fragment", "plain", "official", "family_elder", "middle_aged", "shopkeeper", "worker", "gamer",
    "it_staff",
))  # fmt: skip
"""How an authored message sounds; public corpora have the voice "public"."""


@dataclass(frozen=True, slots=True)
class Record:
    """One message of the corpus.

    `text` may hold slots when `source` is "authored", see expand.py. Records of one `group` never part when
    the corpus is split; "" stands for a group of one. `where` is the file and line it came from, for errors. `case` is
    the real case that an authored message was written from, "" for none: messages of one case never part either;
    `writer` is who wrote it. `signs` says what it demands and threatens, see signs.py.
    """

    text: str
    label: str
    family: str
    voice: str
    source: str
    group: str = ""
    where: str = ""
    case: str = ""
    writer: str = ""
    signs: str = "?"
