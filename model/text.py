"""Turns a raw message into the clean text that everything else sees.

Characters are first put into the order in which a phone shows them (U+202E turns text round). Then these steps run,
each a function from text to a list of edits:

1. fold: character by character to compatibility forms (full-width, circled, mathematical letters, radicals),
   simplified Chinese and lower case; invisible characters, combining marks and private use are dropped
2. undecorate: laughter, tone particles and faces are dropped
3. space: white space becomes one space, none at the ends
4. close gaps: a run of single Han characters with one separator between them is closed up (呼.死.你)
5. close: a space between two Han characters is dropped, as BERT tokenizers for Chinese do; then whatever still
   separates many single ones: longer marks (呼--死--你--吧), mixed marks, letters and digits
6. reassemble: the parts of a character, one after another or with a mark between, become that character (口乎死亻+尔)
7. spell out: pinyin and initials next to Han characters become the word that they stand for (bao光, 爆txl)
8. to Mandarin: function words of Cantonese become those of Mandarin (佢哋冇嚟)
9. mask: links, numbers and amounts become placeholders (model/masks.py)

Steps 2 and 6 to 8 are in model/disguises.py. If one of the last three changed something, or new decoration appeared,
steps 2 to 8 run again until nothing changes, 32 times at most: one step's output may be another's input.

The clean text of a message longer than MAX_CHARACTERS holds only its two ends; `pieces` hold all of it, up to
READ_CHARACTERS. The edits say `cut` and `unread` then, and `foreign` of a message without any Chinese
(model/foreign.py).

Placeholders are private-use characters. Step 1 drops private use from the input, so nobody can type one. The text of a
CleanText is a CleanString, which `clean` returns as it is: the type marks clean text, as markupsafe.Markup marks
escaped text, so cleaning is idempotent without trusting its input.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import TypeVar

from jingyin.model.disguises import close_parts, reassemble, spell_out, to_mandarin, undecorate
from jingyin.model.errors import InputError
from jingyin.model.fold import FOLD, choose, fold_edits
from jingyin.model.foreign import is_foreign
from jingyin.model.masks import Edit, mask

MAX_CHARACTERS = 2_000
"""Of a longer message, once folded, the clean text holds both ends of half this length."""
READ_CHARACTERS = 20_000
"""Of a longer message, once folded, both ends of half this length are read in pieces; the rest is unread."""
_PIECE, _OVERLAP = 1_800, 200
"""Folded characters of a piece, and of those that it shares with the next one, so that no sentence is cut in both."""

T = TypeVar("T")
_Step = Callable[[str, dict[str, int]], list[Edit]]


class CleanString(str):
    """A string made by `clean`; only here do private-use characters count as placeholders."""

    __slots__ = ()


@dataclass  # frozen, it would take three times as long to make
class CleanText:
    """A cleaned message: its clean `text`, the `original`, and `edits`, the number of changes by kind.

    `start` is the place of `original` in the message that it is a piece of.
    """

    text: CleanString
    original: str
    edits: dict[str, int]
    start: int = 0

    @cached_property
    def pieces(self) -> list["CleanText"]:
        """The overlapping pieces in which a message longer than MAX_CHARACTERS is read; else the message alone.

        They cover all but the `unread` characters in the middle.
        """
        if "cut" not in self.edits:
            return [self]
        ends = list(accumulate(len(character.translate(FOLD)) for character in self.original))
        half, size = READ_CHARACTERS // 2, ends[-1]
        spans = [(0, size)] if size <= READ_CHARACTERS else [(0, half), (size - half, size)]
        starts = ((at, end) for start, end in spans for at in range(start, end - _OVERLAP, _PIECE - _OVERLAP))
        ranges = [(bisect_right(ends, at), bisect_left(ends, min(at + _PIECE, end)) + 1) for at, end in starts]
        return [replace(clean(self.original[first:last]), start=first) for first, last in ranges]

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        """For each character of `text`, its range [start, end) in `original`.

        Computed when first asked for: verdicts don't need it, evidence does.
        """
        if isinstance(self.original, CleanString):
            return [(i, i + 1) for i in range(len(self.text))]
        # Run the steps again, this time following every character back to `original`.
        order = _shown(self.original)
        pieces = [self.original[i].translate(FOLD) for i in order]
        folded = _shortened([character for piece in pieces for character in piece])
        offsets = list(_shortened([(i, i + 1) for i, piece in zip(order, pieces, strict=True) for _ in piece]))

        def follow(changes: list[Edit]) -> None:
            moved: list[tuple[int, int]] = []
            at = 0
            for start, end, replacement in changes:
                moved += offsets[at:start]
                if replacement:
                    moved += [range_of(offsets, start, end)] * len(replacement)
                at = end
            offsets[:] = moved + offsets[at:]

        follow(list(mask(_run("".join(folded), {}, follow), {})))
        return offsets


def clean(text: str) -> CleanText:
    """Clean one message; accepts every str, lone surrogates included.

    Raises InputError for anything else: bytes need a coding, see jingyin.serve.sms.
    """
    if isinstance(text, CleanString):
        return CleanText(text, text, {})
    if not isinstance(text, str):
        raise InputError(
            f"a message must be str, not {type(text).__name__}; decode bytes first (jingyin.serve.sms.decode)"
        )
    remembered = None
    if len(text) <= _REMEMBERED_CHARACTERS and _FROM_RIGHT not in text:
        raw = text.encode("utf-8", "surrogatepass")
        remembered = _unmasked_template(raw.translate(_ZEROS))
    if remembered:
        template, counts = remembered
        edits = dict(counts)
        digits = raw.translate(None, _NO_DIGITS).decode()
        unmasked = template % tuple(digits) if digits else template
    else:
        edits = {}
        unmasked = _unmasked(text, edits)
    masked = _splice(unmasked, mask(unmasked, edits))
    if is_foreign(masked):
        edits["foreign"] = 1
    return CleanText(CleanString(masked), text, edits)


# Steps 1 to 8 treat all digits alike, except in the face [666]: they run once for messages that differ only in ASCII
# digits, as templated ones do.
_REMEMBERED_CHARACTERS = 500  # folded, at most MAX_CHARACTERS: nothing is cut
_DIGITS = b"0123456789"
_ZEROS = bytes.maketrans(_DIGITS, b"0" * 10)
_NO_DIGITS = bytes(set(range(256)) - set(_DIGITS))
_DIGIT = re.compile("[0-9]")


@lru_cache(4_096)
def _unmasked_template(zeros: bytes) -> tuple[str, dict[str, int]] | None:
    """Return the output of steps 1 to 8 for a message with all digits set to 0, as a format for its digits, and edits.

    None if folding made a digit (①), or one may be part of a face.
    """
    edits: dict[str, int] = {}
    found = _unmasked(zeros.decode("utf-8", "surrogatepass"), edits)
    if not (digits := zeros.count(b"0")):
        return found, edits
    template, counted = _DIGIT.subn("%s", found.replace("%", "%%"))
    return None if counted != digits or "[000]" in found else (template, edits)


def _unmasked(text: str, edits: dict[str, int]) -> str:
    """Run steps 1 to 8 on a raw message, and count their changes in `edits`."""
    edits |= fold_edits(text)
    if _FROM_RIGHT in text:
        order = _shown(text)
        edits["reversed"] = sum(i != at for i, at in enumerate(order))
        text = "".join(text[i] for i in order)
    folded = text.translate(FOLD)
    if len(folded) > MAX_CHARACTERS:
        edits["cut"] = len(folded) - MAX_CHARACTERS
        if len(folded) > READ_CHARACTERS:
            edits["unread"] = len(folded) - READ_CHARACTERS
        folded = "".join(_shortened(folded))
    return _run(folded, edits)


def _shortened(folded: Sequence[T]) -> Sequence[T]:
    """Cut a long message to its two ends, so that the time of cleaning is bounded."""
    if len(folded) <= MAX_CHARACTERS:
        return folded
    return [*folded[: MAX_CHARACTERS // 2], *folded[-MAX_CHARACTERS // 2 :]]


def _run(text: str, edits: dict[str, int], follow: Callable[[list[Edit]], None] | None = None) -> str:
    """Run steps 2 to 8 on folded `text`, count their changes in `edits`, and tell `follow` of every change."""
    for _ in range(_ROUNDS):
        changed = again = False
        for step in _STEPS:
            if changes := step(text, edits):
                if follow:
                    follow(changes)
                text = _splice(text, changes)
                changed, again = True, again or step in _REPEATED
        # New decoration is rare: testing for it is cheaper than another round for every message that had any.
        if not again and not (changed and undecorate(text, {})):
            break
    return text


def _splice(text: str, changes: Iterable[Edit]) -> str:
    """Apply non-overlapping changes, in order of position."""
    pieces: list[str] = []
    at = 0
    for start, end, replacement in changes:
        pieces += (text[at:start], replacement)
        at = end
    if not pieces:
        return text
    pieces.append(text[at:])
    return "".join(pieces)


def range_of(offsets: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """Return the range in the original of characters [start, end) of a text with these offsets."""
    first, last = offsets[start], offsets[end - 1]
    return min(first[0], last[0]), max(first[1], last[1])  # the other way round in text from right to left


# ---- the order of characters

_FROM_RIGHT, _END = "\u202e", "\u202c"
_DIRECTIONS = frozenset("\u202a\u202b\u202d\u202e")
_DEEPEST = 125  # Unicode's limit of nested directions, beyond which they count for nothing


def _shown(text: str) -> list[int]:
    """Return the indices of all characters in the order in which a phone shows them.

    Text between RLO and PDF, or the end of its paragraph, runs from right to left (Unicode's UAX #9). The other
    directions leave Chinese as it is.
    """
    if _FROM_RIGHT not in text:
        return list(range(len(text)))
    levels: list[tuple[bool, list[list[int]]]] = [(False, [])]  # from right to left; runs of indices

    def close() -> None:
        from_right, runs = levels.pop()
        levels[-1][1].append([i for run in (reversed(runs) if from_right else runs) for i in run])

    for i, character in enumerate(text):
        if character in "\n\r\u2029":
            while len(levels) > 1:
                close()
        levels[-1][1].append([i])
        if character in _DIRECTIONS and len(levels) < _DEEPEST:
            levels.append((character == _FROM_RIGHT, []))
        elif character == _END and len(levels) > 1:
            close()
    while len(levels) > 1:
        close()
    return [i for run in levels[0][1] for i in run]


# ---- steps 3 to 5: space, gaps

_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_SPACES = re.compile(" {2,}|^ | $")
_RUN = re.compile(rf"[{_HAN}]([^{_HAN}a-z0-9\n])[{_HAN}](?:\1[{_HAN}])+")
# A quick test: it looks at the few separators instead of all Han characters.
_BEGINS_RUN = re.compile(rf"([^{_HAN}a-z0-9\n])(?<=[{_HAN}].)(?=[{_HAN}]\1[{_HAN}])")
_GAP = re.compile(rf"(?<=[{_HAN}]) (?=[{_HAN}])")
# Nobody writes these but to hide something: a longer mark between each two of four, or of six pieces (“今天”“不转”),
# beside which a clause may end; any marks between six; letters or digits between eight (a date has seven:
# 至14年9月3日14时52分29秒); anything short between eleven (1.今2.天3.不).
_MARK = rf"[^{_HAN}a-z0-9]"
_CLAUSE = "[,。!?;]?"
_HIDDEN = re.compile(
    rf"[{_HAN}](?:({_MARK})({_MARK}{{1,3}})[{_HAN}](?:{_CLAUSE}\1{_CLAUSE}\2{_CLAUSE}[{_HAN}]){{2,}}"
    rf"|(?:{_MARK}{{1,4}}[{_HAN}]){{5,}}"
    rf"|(?:[a-z0-9]{{1,3}}[{_HAN}]){{7,}}|(?:(?![0-9]{{3}})[^{_HAN}]{{1,4}}[{_HAN}]){{10,}})"
    rf"|[{_HAN}]{{1,3}}([^{_HAN}a-z0-9 ])([^{_HAN}a-z0-9 ]{{1,3}})[{_HAN}]{{1,3}}"
    rf"(?:{_CLAUSE}\3{_CLAUSE}\4{_CLAUSE}[{_HAN}]{{1,3}}){{4,}}"
)
_SEPARATORS = re.compile(rf"[^{_HAN}]+")
# Quick tests for the first four, and the last.
_BEGINS_HIDDEN = re.compile(
    rf"[^{_HAN}](?<=[{_HAN}].)[^{_HAN}]{{0,3}}+[{_HAN}][^{_HAN}]{{1,4}}+[{_HAN}][^{_HAN}]{{1,4}}+[{_HAN}]"
)
_BEGINS_PIECES = re.compile(rf"({_MARK}(?<=[{_HAN}].){_MARK}{{1,3}}+)[{_HAN}]{{1,3}}+\1")


def _space(text: str, edits: dict[str, int]) -> list[Edit]:
    if " " not in text:
        return []
    edge = (0, len(text))
    return [(m.start(), m.end(), "" if m.start() in edge or m.end() in edge else " ") for m in _SPACES.finditer(text)]


def _close_gaps(text: str, edits: dict[str, int]) -> list[Edit]:
    if not _BEGINS_RUN.search(text):
        return []
    runs = [m.span() for m in _RUN.finditer(text)]
    edits["gaps"] = edits.get("gaps", 0) + len(runs)
    # In a run every second character is the separator.
    return [(i, i + 1, "") for start, end in runs for i in range(start + 1, end, 2)]


def _close(text: str, edits: dict[str, int]) -> list[Edit]:
    return [(m.start(), m.end(), "") for m in _GAP.finditer(text)] if " " in text else []


def _close_rest(text: str, edits: dict[str, int]) -> list[Edit]:
    if not _BEGINS_HIDDEN.search(text) and not _BEGINS_PIECES.search(text):
        return []
    runs = [m.span() for m in _HIDDEN.finditer(text)]
    if runs:
        edits["gaps"] = edits.get("gaps", 0) + len(runs)
    return [(*m.span(), "") for start, end in runs for m in _SEPARATORS.finditer(text, start, end)]


_STEPS: tuple[_Step, ...] = (
    choose, undecorate, _space, _close_gaps, _close, _close_rest, close_parts, reassemble, spell_out, to_mandarin,
)  # fmt: skip
_REPEATED = frozenset((reassemble, spell_out, to_mandarin))
_ROUNDS = 32  # nested faces ([[微笑]微笑]) take one each: a long message of them would stall a gateway
