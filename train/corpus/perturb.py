"""Disguises a message like a sender who wants to pass a filter and still be understood.

`evade` hides the threatening words first (tables/threats.txt) and then others. The number of changes depends only on
the length of a message and on the strength, never on its content: an ordinary message gets the same noise, so that
noise itself tells a model nothing.

The tricks fall into FAMILIES. Only the TRAINING ones are applied to a corpus; the HELD_OUT ones measure how a model
handles a trick that it has not seen.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from operator import ne
from random import Random

from jingyin.model.errors import ConfigError
from jingyin.train.corpus.slots import SLOT, alternatives, fill_slots, lines, substitutes, table, words

_HAN = "\u4e00-\u9fff"
_INVISIBLE = ("\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad")
_SPACES = (" ", " ", "  ", "\u3000", "\u00a0")
_SYMBOLS = (*".,·*-_~/|、^#+=。…", "**", "//", "——")
_CIRCLED = {str(i): chr(0x2460 + i - 1) for i in range(1, 10)} | {"0": "⓪"}
_FULL_WIDTH = {chr(c): chr(c + 0xFEE0) for c in range(0x21, 0x7F)}
_FINANCIAL = dict(zip("0123456789", "零壹贰叁肆伍陆柒捌玖", strict=True))
_HAN_DIGITS = dict(zip("0123456789", "〇一二三四五六七八九", strict=True))
_NUMBER_STYLES = (_CIRCLED, _FULL_WIDTH, _FINANCIAL, _HAN_DIGITS)
_THREAT = re.compile(alternatives(words("threats")))
_KNOWN = alternatives(key for name in ("slang", "emoji") for key in substitutes(name) if len(key) > 1)
_WORD = re.compile(f"(?P<known>{_KNOWN})|(?P<han>[{_HAN}]{{1,3}})|(?P<plain>[0-9A-Za-z]+)")


def evade(text: str, family: str, strength: float, rng: Random) -> str:
    """Return `text` disguised by one family; the same seed gives the same disguise.

    `strength` from 0 (nothing) to 1 (every fourth Han character or so) sets how many words are touched, at
    least one above 0. A message in which the family finds nothing to change is returned unchanged. Raises
    ConfigError for an unknown family or a strength outside 0 to 1.
    """
    if family not in FAMILIES:
        raise ConfigError(f"unknown evasion family {family!r}; known: {', '.join(FAMILIES)}")
    if not 0 <= strength <= 1:
        raise ConfigError(f"evasion strength must be from 0 to 1, not {strength}")
    if strength == 0:
        return text
    chosen = _FAMILIES[family]
    if chosen.whole:
        return chosen.disguise(text, rng)
    # Words, threats first and otherwise in random order, until enough characters are touched.
    threats = [match.span() for match in _THREAT.finditer(text)]
    others = list(_other_words(text, threats, chosen.digits, rng))
    rng.shuffle(threats)
    rng.shuffle(others)
    budget = max(1.0, strength * len(text) / 4)
    changed: dict[int, tuple[int, str]] = {}
    for start, end in threats + others:
        if budget <= 0:
            break
        word = text[start:end]
        hidden = chosen.disguise(word, rng)
        if hidden != word:
            changed[start] = (end, hidden)
            budget -= sum(map(ne, word, hidden)) if len(word) == len(hidden) else len(word)
    pieces: list[str] = []
    at = 0
    for start, (end, hidden) in sorted(changed.items()):
        pieces += (text[at:start], hidden)
        at = end
    return "".join(pieces) + text[at:]


def _other_words(text: str, taken: list[tuple[int, int]], digits: bool, rng: Random) -> Iterator[tuple[int, int]]:
    """Cut the text outside the threats into words known to a table, and pieces of two or three characters."""
    edges = [0, *(edge for span in taken for edge in span), len(text)]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        at = start
        while at < end:
            match = _WORD.match(text, at, end)
            if match is None:
                at += 1
                continue
            length = len(match[0]) if match.lastgroup != "han" else rng.randint(min(2, len(match[0])), len(match[0]))
            if match.lastgroup != "plain" or digits:
                yield at, at + length
            at += length


# ---- disguises of a word; each returns the word unchanged if it has none for it


def _some(word: str, mapping: Callable[[str], tuple[str, ...]], rng: Random) -> str:
    """Replace at least one of the characters in `mapping`, and each other one with probability one half."""
    known = [i for i, character in enumerate(word) if mapping(character)]
    if not known:
        return word
    sure = rng.choice(known)
    out = list(word)
    for i in known:
        if i == sure or rng.random() < 0.5:
            out[i] = rng.choice(mapping(word[i]))
    return "".join(out)


def _by_table(name: str, word: str, rng: Random) -> str:
    """Replace single characters by their substitutes in a table."""
    return _some(word, lambda character: substitutes(name).get(character, ()), rng)


def _whole_or_part(name: str, word: str, rng: Random) -> str:
    """Replace a word by its substitute in a table, or else some of its characters."""
    known = substitutes(name)
    return rng.choice(known[word]) if word in known else _by_table(name, word, rng)


def _between(marks: tuple[str, ...], word: str, rng: Random) -> str:
    """Put one mark between all characters of a word, or after a single one."""
    mark = rng.choice(marks)
    return mark.join(word) if len(word) > 1 else word + mark


@cache
def _pinyin(text: str) -> tuple[str, ...]:
    """Toneless pinyin of each Han character, the reading chosen from the whole text (pypinyin)."""
    from pypinyin import lazy_pinyin

    return tuple(lazy_pinyin(text))


@cache
def _homophones() -> dict[str, tuple[str, ...]]:
    """Characters by toneless pinyin, from GB2312 level 1: the 3,755 that everybody can read."""
    common = bytes(b for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF) for b in (high, low))
    by_sound: dict[str, list[str]] = {}
    for character in common.decode("gb2312", "ignore"):
        by_sound.setdefault(_pinyin(character)[0], []).append(character)
    return {sound: tuple(characters) for sound, characters in by_sound.items()}


def _homophone(word: str, rng: Random) -> str:
    def same_sound(character: str) -> tuple[str, ...]:
        if not _is_han(character):
            return ()
        others = _homophones().get(_pinyin(character)[0], ())
        return tuple(other for other in others if other != character)

    return _some(word, same_sound, rng)


def _spell(word: str, rng: Random) -> str:
    sounds = _pinyin(word)
    if len(sounds) != len(word) or not all(map(_is_han, word)):
        return word
    keep = rng.randrange(len(word)) if len(word) > 1 and rng.random() < 0.5 else -1
    joint = rng.choice(("", "", " "))
    return joint.join(character if i == keep else sounds[i] for i, character in enumerate(word))


def _initials(word: str, rng: Random) -> str:
    sounds = _pinyin(word)
    if len(sounds) != len(word) or not all(map(_is_han, word)):
        return word
    letters = "".join(sound[0] for sound in sounds)
    return letters.upper() if rng.random() < 0.3 else letters


@cache
def _variants() -> dict[str, tuple[str, ...]]:
    """Simplified character -> its traditional forms and variants that Big5 holds, so that fonts show them."""
    lines = files("jingyin.model").joinpath("tables/simplified.txt").read_text(encoding="utf-8").splitlines()
    forms: dict[str, tuple[str, ...]] = {}
    for traditional, simplified in ((line[0], line[1]) for line in lines):
        if traditional.encode("big5", "ignore"):
            forms[simplified] = (*forms.get(simplified, ()), traditional)
    return forms


def _numbers(word: str, rng: Random) -> str:
    """Write digits and letters in another form, and Han that sound like a digit as that digit."""
    if not word.isascii():
        return _by_table("numbers", word, rng)
    style = rng.choice(_NUMBER_STYLES)
    return "".join(style.get(character, _FULL_WIDTH.get(character, character)) for character in word)


def _is_han(character: str) -> bool:
    return "\u4e00" <= character <= "\u9fff"


def _template(text: str, rng: Random) -> str:
    """Spread a message over the variables of a gateway template, cut near its punctuation."""
    template = rng.choice(table("templates"))[0]
    count = max(i for i in (1, 2, 3) if f"{{{i}}}" in template)
    cuts = [m.end() for m in re.finditer("[，。！？,!?；; ]", text) if 1 < m.end() < len(text) - 1]
    cuts = cuts if len(cuts) >= count - 1 else list(range(1, len(text)))
    chosen = sorted(rng.sample(cuts, min(count - 1, len(cuts))))
    pieces = [text[i:j].strip("，。,; ") for i, j in zip([0, *chosen], [*chosen, len(text)], strict=True)]
    values = {str(i): piece for i, piece in enumerate(pieces, 1)} | {"sign": rng.choice(words("signs"))}
    # One pass: braces inside the message stay as they are.
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], ""), template)


@dataclass(frozen=True)
class EvasionFamily:
    """One way to disguise a message.

    `disguise` takes a word, with `digits` also one of digits, or with `whole` the whole message. No training row is
    disguised by a `held_out` one.
    """

    disguise: Callable[[str, Random], str]
    held_out: bool = False
    digits: bool = False
    whole: bool = False


_FAMILIES = {
    "homophone": EvasionFamily(_homophone),
    "lookalike": EvasionFamily(partial(_by_table, "lookalikes"), digits=True),
    "component": EvasionFamily(partial(_by_table, "components"), held_out=True),
    "spacing": EvasionFamily(partial(_between, _SPACES)),
    "symbols": EvasionFamily(partial(_between, _SYMBOLS)),
    "zero_width": EvasionFamily(lambda word, rng: "".join(character + rng.choice(_INVISIBLE) for character in word)),
    "pinyin": EvasionFamily(_spell),
    "initials": EvasionFamily(_initials),
    "traditional": EvasionFamily(
        lambda word, rng: "".join(rng.choice(_variants().get(each, (each,))) for each in word)
    ),
    "emoji": EvasionFamily(partial(_whole_or_part, "emoji"), held_out=True),
    "numbers": EvasionFamily(_numbers, digits=True),
    "slang": EvasionFamily(partial(_whole_or_part, "slang"), held_out=True),
    "reversal": EvasionFamily(lambda word, rng: word[::-1], held_out=True),
    "template": EvasionFamily(_template, whole=True),
}
FAMILIES = tuple(_FAMILIES)
HELD_OUT = tuple(name for name, family in _FAMILIES.items() if family.held_out)
TRAINING = tuple(name for name, family in _FAMILIES.items() if not family.held_out)

# Affixes: a head or tail around a message, the least work for a sender: thanks, small talk, signature, opt-out line.
#
# Ordinary messages get the same as threats, from the same tables in the same shares, so that an affix says nothing
# about the message inside. No training message has entries of the held-out tables: with them
# `jingyin evaluate` measures the effect of unseen affixes.

_BOTH = 0.2  # of these messages have both a head and a tail
_PADDED = 0.1  # have a few harmless phrases in their place
_MOST_PHRASES = 6


@cache
def entries(name: str) -> tuple[str, ...]:
    """Return the lines of tables/<name>.txt; "|" stands for a line break."""
    return tuple(line.replace("|", "\n") for line in lines(name))


def affix(rng: Random) -> tuple[str, str]:
    """Return a training head and a training tail, of which one may be empty; the same seed gives the same.

    One in ten is a few harmless phrases before and behind, more often few than many.
    """
    if rng.random() < _PADDED:
        count = min(rng.randint(1, _MOST_PHRASES), rng.randint(1, _MOST_PHRASES))
        before = rng.randint(0, count)
        phrases = rng.choices(words("padding"), k=count)
        return "".join(phrases[:before]), "".join(phrases[before:])
    head, tail = rng.choice(entries("heads")), rng.choice(entries("tails"))
    if rng.random() < _BOTH:
        return head, tail
    return (head, "") if rng.random() < 0.5 else ("", tail)


# Quoted copies: a message as people may forward it, in quotation marks or redacted.
#
# None of this changes a message's label, and all labels get the same. Without it a network learns that polite or quoted
# text is harmless, since warnings quote and banks are polite: of 90 demands of an unseen writer 78 were found as they
# stood, 56 in quotation marks, 64 after a greeting.

_QUOTES = ("“”", "「」", '""', "『』", "‘’", "''")
_REDACTIONS = ("XX", "xx", "某某", "某", "***", "××", "○○", "____", "")


def quoted_copy(template: str, rng: Random) -> str:
    """Return an authored message in quotation marks or redacted, with slots filled; the same seed gives the same."""
    if SLOT.search(template) and rng.random() < 0.5:
        mask = rng.choice(_REDACTIONS)
        return SLOT.sub(lambda slot: mask if rng.random() < 0.8 else fill_slots(slot[0], rng), template)
    marks = rng.choice(_QUOTES)
    return f"{marks[0]}{fill_slots(template, rng)}{marks[1]}"


# Restyled copies: the same words in another writer's punctuation and notation.
#
# Whoever invents messages punctuates like a writer, and people and newspapers do not: 1 in 140 authored threats had an
# exclamation mark, 1 in 8 real messages. So a network learnt that an exclamation mark is harmless: with one at the end
# it found 55% of unseen writers' threats in place of 79%. All labels get the same styles, from the same shares.

_ENDS = ("", "", "", "", "。", "。", "。", "！", "！", "！！", "!!!", "……", "...", "~")
_STOPS = ("。", "。", "。", "！", "！", "，", " ", "……", "\n")
_COMMAS = (*"，，，，，，", " ", " ", "", "。", "！")
_SYNONYMS = (
    ("否则", "否则", "不然", "要不然", "要不"), ("如果", "如果", "要是", "若", "假如"), ("元", "元", "块", "块钱"),
)  # fmt: skip
_WRITTEN_AS = {each: group for group in _SYNONYMS for each in group}
_WRITTEN = re.compile(r"(?<!还)(?:否则|要?不然|如果|要是|假如)|(?<=[0-9百千万])(?:元|块钱?)")
_LAST_MARK = re.compile(r"[。！!.…~～\s]*$")
_INNER_STOP = re.compile(r"[。！!](?=.)", re.S)
_LONG_NUMBER = re.compile(r"(?<!\d)(\d{3})\d+(\d{2})(?!\d)")
_REDACTED = ("{}某", "{}某某", "{}*", "某某", "{}XX")


def anonymous(template: str, rng: Random) -> str:
    """Return an authored message with its {name} redacted, as in messages that are published, three times in ten."""
    if "{name}" not in template or rng.random() >= 0.3:
        return template
    return template.replace("{name}", rng.choice(_REDACTED).format(rng.choice(words("surnames"))))


def restyled(text: str, rng: Random) -> str:
    """Return a message with other marks, conjunctions and units; the same seed gives the same.

    Three times in ten its long numbers are redacted.
    """
    if rng.random() < 0.3:
        mask = rng.choice(("****", "XXXX", "××××"))
        text = _LONG_NUMBER.sub(lambda number: number[1] + mask + number[2], text)
    if rng.random() < 0.5:
        text = _WRITTEN.sub(lambda word: rng.choice(_WRITTEN_AS.get(word[0], (word[0],))), text)
    stop, comma, end = rng.choice(_STOPS), rng.choice(_COMMAS), rng.choice(_ENDS)
    text = _INNER_STOP.sub(stop, text).replace("，", comma)
    return text if text.endswith(("？", "?")) else _LAST_MARK.sub(end, text, count=1)
