"""Turns a raw message into the clean text that everything else sees.

The steps, each a function from text to a list of edits, run in this order:

1. fold: character by character to compatibility forms (full-width, circled, mathematical letters, radicals),
   simplified Chinese and lower case; invisible characters, combining marks and private use are dropped
2. space: white space becomes one space, none at the ends
3. close gaps: a run of single Han characters with one separator between them is closed up (呼.死.你)
4. close: a space between two Han characters is dropped, as BERT tokenizers for Chinese do
5. reassemble: the parts of a character, one after another, become that character (口乎死亻尔)
6. mask: links, numbers and amounts become placeholders (model/masks.py)

Placeholders are private-use characters. Step 1 drops private use from what arrives, so nobody can type one.
The text of a CleanText is a CleanString, which `clean` returns as it is: cleanness is carried by the type, as
markupsafe.Markup carries escapedness, and that is what makes cleaning idempotent without trusting input.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

from jingyin.model.errors import InputError
from jingyin.model.fold import FOLD, fold_edits
from jingyin.model.masks import Edit, mask

_Step = Callable[[str, dict[str, int]], Iterable[Edit]]


class CleanString(str):
    """A string made by `clean`; the only kind in which a placeholder is a placeholder."""

    __slots__ = ()


@dataclass(frozen=True)
class CleanText:
    """A cleaned message: its clean `text`, the `original`, and `edits`, what each step did, by kind."""

    text: CleanString
    original: str
    edits: dict[str, int]

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
    edits = fold_edits(text)
    out = text.translate(FOLD)
    for step in _STEPS:
        out = _splice(out, step(out, edits))
    return CleanText(CleanString(out), text, edits)


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
        piece = character.translate(FOLD)
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


# ---- steps 2 to 4: space, gaps

_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_SPACES = re.compile(" {2,}|^ | $")
_RUN = re.compile(rf"[{_HAN}]([^{_HAN}a-z0-9\n])[{_HAN}](?:\1[{_HAN}])+")
_GAP = re.compile(rf"(?<=[{_HAN}]) (?=[{_HAN}])")


def _space(text: str, edits: dict[str, int]) -> list[Edit]:
    if " " not in text:
        return []
    edge = (0, len(text))
    return [(m.start(), m.end(), "" if m.start() in edge or m.end() in edge else " ") for m in _SPACES.finditer(text)]


def _close_gaps(text: str, edits: dict[str, int]) -> list[Edit]:
    runs = [m.span() for m in _RUN.finditer(text)]
    if runs:
        edits["gaps"] = len(runs)
    # In a run every second character is the separator.
    return [(i, i + 1, "") for start, end in runs for i in range(start + 1, end, 2)]


def _close(text: str, edits: dict[str, int]) -> list[Edit]:
    return [(m.start(), m.end(), "") for m in _GAP.finditer(text)] if " " in text else []


# ---- step 5: reassemble


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


def _reassemble(text: str, edits: dict[str, int]) -> list[Edit]:
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
    reassembled = [each for each in done if each[1] - each[0] > 1]
    edits["reassembled"] = len(reassembled)
    return reassembled


_STEPS: tuple[_Step, ...] = (_space, _close_gaps, _close, _reassemble, mask)
