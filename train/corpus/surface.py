"""Features of the surface, which a network takes for evidence where they go with a label.

An exclamation mark was evidence of a harmless message, quotation marks of a report, because the training rows had them
so (train/LOG.md). What differs twentyfold between threats and innocents is a shortcut: balance it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from jingyin.model.labels import FLAGGED
from jingyin.train.corpus.store import Row

SHORTCUT = 20.0
"""How many times more frequent a feature of a shortcut is on one side."""

_FEWEST = 0.001  # share below which a feature is too rare to be learnt


def _has(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.search(pattern, text) is not None


FEATURES: Mapping[str, Callable[[str], bool]] = {
    "quotation marks": _has("[“”「」『』‘’\"]"), "one mark of a pair": lambda text: text.count("“") != text.count("”"),
    "《》": _has("《"), "colon": _has("[：:]"), "line break": _has("\n"), "！": _has("[！!]"), "？": _has("[？?]"),
    "……": _has("……|\\.\\.\\."), "~": _has("[~～]"), "。 at the end": _has("。$"), "no mark at the end": _has("\\w$"),
    "digits": _has("\\d"), "sum": _has("[\\d一二三四五六七八九十百千万两]\\s*(元|块|万|千|w)"),
    "number of 7 digits": _has("\\d{7}"), "emoji": _has("[\U0001f300-\U0001faff]"),
    "【】 signature": _has("【[^】]+】"),
    "link": _has("https?:|www\\.|\\.(com|cn)"), "Latin letters": _has("[A-Za-z]"),
    "traditional script": _has("[這個們說錢還來會對時發電話]"), "over 60 characters": lambda text: len(text) > 60,
    "under 10 characters": lambda text: len(text) < 10, "three sentences": _has("(?s)([^。！？!?]+[。！？!?]){3}"),
    "您": _has("您"), "你": _has("你"), "我": _has("我"), "他, 她": _has("[他她]"),
    "please, thanks": _has("请|謝|谢|麻烦|您好"), "条件 (否则, 不然, 要么)": _has("否则|不然|要么|不给"),
}  # fmt: skip
"""Name of a feature -> whether a text has it."""


def shares(texts: Iterable[str]) -> dict[str, float]:
    """Return the share of texts that has each of FEATURES, 0 to 1; 0 for no texts."""
    texts = list(texts)
    return {name: sum(map(has, texts)) / max(1, len(texts)) for name, has in FEATURES.items()}


def shortcuts(threats: Mapping[str, float], innocents: Mapping[str, float]) -> list[str]:
    """Return the features whose shares of threats and of innocents differ by SHORTCUT times or more."""
    return [
        name
        for name in FEATURES
        if max(threats[name], innocents[name]) >= max(_FEWEST, SHORTCUT * min(threats[name], innocents[name]))
    ]


def surface_rows(rows: Sequence[Row], real: frozenset[str]) -> list[tuple[str, ...]]:
    """Return a table's rows: the shares among authored threats and innocents, `real` sources, and quoted threats.

    The last column marks a shortcut: between threats and innocents of all kinds.
    """
    flagged = [row for row in rows if row.label in FLAGGED]
    benign = [row for row in rows if row.label not in FLAGGED]
    columns = [
        shares(row.text for row in flagged if row.source == "authored"),
        shares(row.text for row in benign if row.source == "authored"),
        shares(row.text for row in benign if row.source in real),
        shares(row.text for row in flagged if row.source == "quoted"),
    ]
    marked = shortcuts(shares(row.text for row in flagged), shares(row.text for row in benign))
    return [
        (name, *(f"{column[name]:.1%}" for column in columns), "shortcut" if name in marked else "")
        for name in FEATURES
    ]
