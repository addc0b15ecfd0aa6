"""Decoration: what a message holds for its tone alone, which anybody can put on any message.

Laughter and tone particles at the end of a clause (好的哈, 哈哈), faces wherever they stand (😊, [微笑], ^_^). A classifier
that sees them learns that who laughs does not threaten, and is then defeated by 哈 at the end: it must not see them.
What has a meaning of its own stays: the questioning 吗 and ?, 吧 (also a bar, 网吧), pictures of things (💰 stands for a
word).
"""

import re
from collections.abc import Iterator
from importlib.resources import files

from jingyin.model.masks import Edit

_NAMES = files("jingyin.model").joinpath("tables/faces.txt").read_text(encoding="utf-8").split()  # WeChat's and QQ's
_PICTURES = (
    "\U0001f600-\U0001f64f\U0001f910-\U0001f917\U0001f920-\U0001f92f\U0001f970-\U0001f97a\u2639-\u263b\u2661\u2665"
    "\u2764\U0001f493-\U0001f49f\U0001f44b-\U0001f450\U0001f338-\U0001f33b\U0001f490"
)
_MARKS_OF_FACES = (
    r"\([^()\w ]{2,6}[^()\w ,.!?:;]\)|\(?\^+[_.o-]?\^+\)?|\(\^[a-z_]\^\)|>_?<|=_=|-_-(?:\|\|)?|@_@|[:;]-?[()]"
)
_FACE = rf"[{_PICTURES}]|\[(?:{'|'.join(_NAMES)})\]|{_MARKS_OF_FACES}"
_PARTICLES = "哈呵嘻嘿啊呀啦嘛呢哦噢喔哟哒喽呐咯捏呗哇咧"
_FACES = re.compile(f"(?:{_FACE})+")
_TONE = re.compile(f"[{_PARTICLES}~](?:[{_PARTICLES}~]|{_FACE})*")
_CLAUSE_ENDS = frozenset(" ,.!?;:。、)")
_MAY_BEGIN = re.compile(rf"[{_PICTURES}{_PARTICLES}~\[(^>=@:;-]")
_MARKS = " ,.!?;:。、~"


def undecorate(text: str, edits: dict[str, int]) -> list[Edit]:
    """Drop decoration from folded text, and the marks after one that the message begins with.

    A message that is nothing else stays.
    """
    found: list[Edit] = []
    at, leads = 0, True
    for start, end in _decorations(text):
        if start < at:  # among the marks after the first
            continue
        leads = leads and _is_bare(text[at:start])
        at = end
        while leads and at < len(text) and text[at] in _MARKS:
            at += 1
        found.append((start, at, ""))
    ends, starts = [0, *(end for _, end, _ in found)], [*(start for start, _, _ in found), len(text)]
    if not found or all(_is_bare(text[end:start]) for end, start in zip(ends, starts, strict=True)):
        return []
    edits["decoration"] = edits.get("decoration", 0) + len(found)
    return found


def _decorations(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each face, and each run of particles (and faces) that ends a clause, starts and ends."""
    at = 0
    for beginning in _MAY_BEGIN.finditer(text):
        start = beginning.start()
        if start < at:
            continue
        if match := _FACES.match(text, start):
            at = match.end()
            yield start, at
        elif match := _TONE.match(text, start):
            at = match.end()
            if at == len(text) or text[at] in _CLAUSE_ENDS:
                yield start, at
            else:
                yield from (face.span() for face in _FACES.finditer(text, start, at))


def _is_bare(text: str) -> bool:
    """Whether nothing but marks is in `text`."""
    return not text.strip(_MARKS)
