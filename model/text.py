"""Turns a raw message into the clean text that everything else sees.

The steps, each a function from text to a list of edits, run in this order:

1. fold: character by character to compatibility forms (full-width, circled, mathematical letters, radicals),
   simplified Chinese and lower case; invisible characters, combining marks and private use are dropped
2. space: white space becomes one space, none at the ends
3. join: a run of single Han characters with one separator between them is closed up (呼.死.你)
4. close: a space between two Han characters is dropped, as BERT tokenizers for Chinese do
5. rejoin: the parts of a character, one after another, become that character (口乎死亻尔)
6. mask: links, numbers and amounts become placeholders (model/masks.py)

Placeholders are private-use characters. Step 1 drops private use from what arrives, so nobody can type one.
The text of a CleanText is a CleanString, which `clean` returns as it is: cleanness is carried by the type, as
markupsafe.Markup carries escapedness, and that is what makes cleaning idempotent without trusting input.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

from jingyin.model.errors import InputError
from jingyin.model.masks import Edit, mask

_Step = Callable[[str, dict[str, int]], Iterable[Edit]]


class CleanString(str):
    """A string made by `clean`; the only kind in which a placeholder is a placeholder."""

    __slots__ = ()


@dataclass(frozen=True)
class CleanText:
    """A cleaned message: its clean `text`, the `original`, and `hits`, what each step did, by kind."""

    text: CleanString
    original: str
    hits: dict[str, int]

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        """For each character of `text`, its range [start, end) in `original`.

        Computed when first asked for: verdicts don't need it, evidence does.
        """
        if isinstance(self.original, CleanString):
            return [(i, i + 1) for i in range(len(self.text))]
        return _trace(self.original)


def clean(text: str) -> CleanText:
    """Clean one message; total over every str, lone surrogates included.

    Raises InputError for anything that is no str: bytes need a coding, see jingyin.serve.sms.
    """
    if isinstance(text, CleanString):
        return CleanText(text, text, {})
    if not isinstance(text, str):
        raise InputError(
            f"a message must be str, not {type(text).__name__}; decode bytes first (jingyin.serve.sms.decode)"
        )
    hits = _fold_hits(text)
    out = text.translate(_FOLD)
    for step in _STEPS:
        out = _splice(out, step(out, hits))
    return CleanText(CleanString(out), text, hits)


def _splice(text: str, edits: Iterable[Edit]) -> str:
    """Apply non-overlapping edits, in order of position."""
    pieces: list[str] = []
    at = 0
    for start, end, replacement in edits:
        pieces += (text[at:start], replacement)
        at = end
    if not pieces:
        return text
    pieces.append(text[at:])
    return "".join(pieces)


def _trace(original: str) -> list[tuple[int, int]]:
    """Run the steps again, this time following every character back to `original`."""
    offsets: list[tuple[int, int]] = []
    folded: list[str] = []
    for i, character in enumerate(original):
        piece = character.translate(_FOLD)
        folded.append(piece)
        offsets += [(i, i + 1)] * len(piece)
    text = "".join(folded)
    for step in _STEPS:
        edits = list(step(text, {}))
        moved: list[tuple[int, int]] = []
        at = 0
        for start, end, replacement in edits:
            moved += offsets[at:start]
            if replacement:
                moved += [(offsets[start][0], offsets[end - 1][1])] * len(replacement)
            at = end
        offsets = moved + offsets[at:]
        text = _splice(text, edits)
    return offsets


# ---- step 1: fold


def _simplified() -> dict[str, str]:
    table = files("jingyin.model").joinpath("tables/simplified.txt").read_text(encoding="utf-8")
    return {line[0]: line[1] for line in table.splitlines()}


_SIMPLIFIED = _simplified()


def _in_gb2312(text: str) -> bool:
    try:
        text.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True


_TRADITIONAL = re.compile(f"[{''.join(_SIMPLIFIED)}]")
# The encoder settles 94% of real messages in a fifth of the time of the full character class.
_TRADITIONAL_GB2312 = re.compile(f"[{''.join(filter(_in_gb2312, _SIMPLIFIED))}]")
# Letters of other alphabets that are drawn like Latin ones; Unicode's confusables, the lower-case core of it.
_LOOKALIKES = dict(zip("аеорсухіјѕԁһӏοανικρτυχɑɡı", "aeopcyxijsdhloavikptuxagi", strict=True))
# CJK radicals that Unicode gives no compatibility form (its EquivalentUnifiedIdeograph list, those in use).
_RADICALS = dict(
    zip(
        "⺒⺓⺟⺠⺮⺼⻁⻄⻅⻆⻉⻊⻋⻑⻓⻔⻗⻘⻙⻚⻛⻜⻝⻢⻣⻤⻥⻦⻩⻨⻪⻬⻮⻰⻳",
        "巳幺母民竹肉虎西见角贝足车长长门雨青韦页风飞食马骨鬼鱼鸟黄麦黾齐齿龙龟",
        strict=True,
    )
)
# Enclosed letters without a compatibility form: 🅐 🅰 and the flag letters.
_ENCLOSED = ((0x1F150, 26), (0x1F170, 26), (0x1F1E6, 26))
_BLANKS = {"\u2800": " ", "\u3164": " ", "\u115f": "", "\u1160": "", "\uffa0": " ", "\u034f": ""}
_DROPPED = {"Cc", "Cf", "Cs", "Co", "Mn", "Me"}


def _fold_character(character: str) -> str:
    """Fold one character: "" when it is dropped, else one or more characters."""
    if character in _BLANKS:
        return _BLANKS[character]
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category in _DROPPED:
        return ""
    for first, count in _ENCLOSED:
        if first <= ord(character) < first + count:
            return chr(ord("a") + ord(character) - first)
    digit = unicodedata.digit(character, None)
    if digit is not None:
        return str(digit)
    return "".join(map(_settle, unicodedata.normalize("NFKC", character)))


def _settle(character: str) -> str:
    """Lower case, no diacritics, simplified, Latin: for a character that NFKC has done with."""
    if character.isspace():
        return " "
    lowered = character.lower()
    if not "\u3040" <= lowered[0] <= "\ud7ff":  # stripping marks would break kana and Hangul
        lowered = unicodedata.normalize("NFKD", lowered)
    kept = (c for c in lowered if unicodedata.category(c) not in _DROPPED)
    return "".join(_SIMPLIFIED.get(c) or _RADICALS.get(c) or _LOOKALIKES.get(c, c) for c in kept)


class _Fold(dict[int, str | int]):
    """A translation table for str.translate that holds Han and ASCII and works the rest out when met.

    What is met is not kept: an adversary could otherwise grow the table to a million entries.
    """

    def __missing__(self, code: int) -> str:
        return _fold_character(chr(code))


def _fold_table() -> _Fold:
    table = _Fold((code, code) for code in range(0x4E00, 0xA000))
    table.update((ord(key), value) for key, value in _SIMPLIFIED.items())
    for start, end in ((0x00, 0x250), (0x2000, 0x2070), (0x3000, 0x3040), (0xFF00, 0xFF60)):
        table.update((code, _fold_character(chr(code))) for code in range(start, end))
    return table


_FOLD = _fold_table()
# What is usual in honest text is no hit: full-width punctuation, capitals, line breaks.
_UNUSUAL = re.compile(
    "[^\u0020-\u007e\u00b7\u2010-\u201f\u2026\u3000-\u3017\u4e00-\u9fff\uff01-\uff0f\uff1a-\uff20\uff5e\n\r\t]"
)


def _fold_hits(text: str) -> dict[str, int]:
    """Count characters that folding undoes: traditional ones, and disguises, by kind."""
    hits: dict[str, int] = {}
    traditional = (_TRADITIONAL_GB2312 if _in_gb2312(text) else _TRADITIONAL).findall(text)
    if traditional:
        hits["traditional"] = len(traditional)
    for match in _UNUSUAL.finditer(text):
        character = match[0]
        folded = character.translate(_FOLD)
        if folded != character:
            kind = "invisible" if not folded.strip() else "disguised"
            hits[kind] = hits.get(kind, 0) + 1
    return hits


# ---- steps 2 to 4: space, join, close

_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_SPACES = re.compile(" {2,}|^ | $")
_RUN = re.compile(rf"[{_HAN}]([^{_HAN}a-z0-9\n])[{_HAN}](?:\1[{_HAN}])+")
_GAP = re.compile(rf"(?<=[{_HAN}]) (?=[{_HAN}])")


def _space(text: str, hits: dict[str, int]) -> list[Edit]:
    if " " not in text:
        return []
    edge = (0, len(text))
    return [(m.start(), m.end(), "" if m.start() in edge or m.end() in edge else " ") for m in _SPACES.finditer(text)]


def _join(text: str, hits: dict[str, int]) -> list[Edit]:
    runs = [m.span() for m in _RUN.finditer(text)]
    if runs:
        hits["joined"] = len(runs)
    # In a run every second character is the separator.
    return [(i, i + 1, "") for start, end in runs for i in range(start + 1, end, 2)]


def _close(text: str, hits: dict[str, int]) -> list[Edit]:
    return [(m.start(), m.end(), "") for m in _GAP.finditer(text)] if " " in text else []


# ---- step 5: rejoin


def _parts() -> dict[str, str]:
    table = files("jingyin.model").joinpath("tables/parts.txt").read_text(encoding="utf-8")
    return {line[1:]: line[0] for line in table.splitlines()}


_PARTS = _parts()
_ENDS = frozenset(parts[-1] for parts in _PARTS)
# Few messages hold two such characters side by side, and none of the first is a common one.
_SIDE_BY_SIDE = re.compile(
    f"[{''.join({parts[0] for parts in _PARTS})}](?=[{''.join({parts[1] for parts in _PARTS})}])"
)


def _parts_at_the_end(done: list[Edit]) -> int:
    """Return how many of the last characters are one character's parts, 0 for none."""
    return next((size for size in (3, 2) if "".join(each[2] for each in done[-size:]) in _PARTS), 0)


def _rejoin(text: str, hits: dict[str, int]) -> list[Edit]:
    for match in _SIDE_BY_SIDE.finditer(text):
        at = match.start()
        if text[at : at + 2] in _PARTS or text[at : at + 3] in _PARTS:
            break
    else:
        return []
    # Shift and reduce: what comes out may be a part in its turn, and is looked at again.
    done: list[Edit] = []
    for i, character in enumerate(text):
        done.append((i, i + 1, character))
        while done[-1][2] in _ENDS and (size := _parts_at_the_end(done)):
            parts = done[-size:]
            done[-size:] = [(parts[0][0], parts[-1][1], _PARTS["".join(each[2] for each in parts)])]
    edits = [each for each in done if each[1] - each[0] > 1]
    hits["rejoined"] = len(edits)
    return edits


_STEPS: tuple[_Step, ...] = (_space, _join, _close, _rejoin, mask)
