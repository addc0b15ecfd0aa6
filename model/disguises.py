"""Steps 2 and 6 to 8 of cleaning: drop decoration, join split characters, write out spellings, translate dialect.

Each undoes forms from a closed table, which honest Mandarin text does not contain, and has a quick test for them.
"""

import re
from collections.abc import Iterator
from importlib.resources import files

from jingyin.model.masks import Edit


def _lines(name: str) -> Iterator[list[str]]:
    table = files("jingyin.model").joinpath(f"tables/{name}.txt").read_text(encoding="utf-8")
    return (line.split(" ") for line in table.splitlines())


# ---- step 6: reassemble

_PARTS: dict[str, str] = {}
# Parts that honest text contains too, such as 车专, are joined only if the result makes a word with a neighbour.
_BESIDE: dict[str, tuple[str, str]] = {}
for _first, *_beside in _lines("parts"):
    _PARTS[_first[1:]] = _first[0]
    if _beside:
        _BESIDE[_first[1:]] = (_beside[0], _beside[1])
# Parts after a surname at the start of a message, or after a mark, are a given name: 李口乎.
_SURNAME = re.compile(
    "(?<![\u3400-\u4dbf\u4e00-\u9fff])"
    "[李王张刘陈杨赵吴徐孙胡郭梁宋郑谢冯董曹袁邓傅沈彭吕蒋蔡贾魏薛阎潘姚谭廖邹郝崔邱侯邵孟尹黎贺赖龚]"
)
_ENDS = frozenset(parts[-1] for parts in _PARTS)
# A quick test: few messages contain such a pair, and few of the first characters are common.
_SIDE_BY_SIDE = re.compile(
    f"[{''.join({parts[0] for parts in _PARTS})}](?=[{''.join({parts[1] for parts in _PARTS})}])"
)
_BETWEEN = re.compile(
    rf"[.+·*/_|&=-](?<=[{''.join({parts[0] for parts in _PARTS})}].)(?=[{''.join({parts[1] for parts in _PARTS})}])"
)


def close_parts(text: str, edits: dict[str, int]) -> list[Edit]:
    """Drop a mark between two parts of a character (扌+戈); if honest text has both (木-目), only beside others."""
    found = {m.span(): text[m.start() - 1] + text[m.end()] for m in _BETWEEN.finditer(text)}
    marks = [mark for mark, parts in found.items() if parts in _PARTS]
    if not marks or (len(marks) == 1 and found[marks[0]] in _BESIDE):
        return []
    edits["gaps"] = edits.get("gaps", 0) + len(marks)
    return [(*mark, "") for mark in marks]


def _reads_as(parts: str, previous: str, text: str, end: int) -> str | None:
    """Return the character composed of `parts`, which end at `end` of `text` and follow `previous`, or None."""
    character = _PARTS.get(parts)
    if character and previous and _SURNAME.match(text, max(0, end - len(parts) - 1)):
        return None
    if character and parts in _BESIDE:
        left, right = _BESIDE[parts]
        # The next character may be split too (车专贝长).
        following = (text[end : end + 1], _PARTS.get(text[end : end + 2], ""))
        if not (previous and previous in left) and not any(each and each in right for each in following):
            return None
    return character


def _holds_parts(text: str) -> bool:
    for match in _SIDE_BY_SIDE.finditer(text):
        at = match.start()
        for end in (at + 2, at + 3):
            if (
                end <= len(text)
                and text[at:end] in _PARTS
                and _reads_as(text[at:end], text[max(0, at - 1) : at], text, end)
            ):
                return True
    return False


def reassemble(text: str, edits: dict[str, int]) -> list[Edit]:
    """Join characters that were split into parts (口乎死亻尔)."""
    if not _holds_parts(text):
        return []
    # Shift and reduce: the result may itself be a part, and is checked again.
    done: list[Edit] = []
    for i, character in enumerate(text):
        done.append((i, i + 1, character))
        while done[-1][2] in _ENDS and (reduced := _reduce(done, text)):
            done[-len(reduced) :] = [(reduced[0][0], i + 1, _PARTS["".join(each[2] for each in reduced)])]
    reassembled = [each for each in done if each[1] - each[0] > 1]
    edits["reassembled"] = edits.get("reassembled", 0) + len(reassembled)
    return reassembled


def _reduce(done: list[Edit], text: str) -> list[Edit]:
    """Return the last characters if they are the parts of one character, else none."""
    for size in (3, 2):
        last = done[-size:]
        before = done[-size - 1][2] if len(done) > size else ""
        if len(last) == size and _reads_as("".join(each[2] for each in last), before, text, last[-1][1]):
            return last
    return []


# ---- step 7: spell out


def _spellings() -> dict[str, list[tuple[str, str, str]]]:
    """Return letters -> their readings by the characters around them: (before, after, reading)."""
    table: dict[str, list[tuple[str, str, str]]] = {}
    for spelling, reading in _lines("spellings"):
        before, letters, after = re.split("([a-z]+)", spelling)
        table.setdefault(letters, []).append((before, after, reading))
    for found in table.values():
        found.sort(key=lambda each: (len(each[0] + each[1]), each[0]), reverse=True)
    return table


_SPELLINGS = _spellings()
_LETTERS = re.compile("[a-z]+")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
# Letters with these neighbours are part of a link, an address or a code.
_STARTS = re.compile("(?<![0-9@._/-])")
_ENDS_HERE = re.compile("(?![@_/]|[.:-][a-z0-9])")


def spell_out(text: str, edits: dict[str, int]) -> list[Edit]:
    """Write out words that are spelled in pinyin or by initials next to Han characters (bao光, 爆txl)."""
    if _SPELLINGS.keys().isdisjoint(_LETTERS.findall(text)):
        return []
    changes: list[Edit] = []
    for match in _LETTERS.finditer(text):
        change = _spelling_at(text, *match.span()) if match[0] in _SPELLINGS else None
        if change and (not changes or change[0] >= changes[-1][1]):
            changes.append(change)
    if changes:
        edits["spelled"] = edits.get("spelled", 0) + len(changes)
    return changes


def _spelling_at(text: str, start: int, end: int) -> Edit | None:
    """Return the reading of the letters text[start:end] with the characters next to them, if they are a spelling."""
    if not _STARTS.match(text, start) or not _ENDS_HERE.match(text, end):
        return None
    beside = text[max(0, start - 2) : start].strip()[-1:] + text[end : end + 2].strip()[:1]  # a space may be between
    for before, after, reading in _SPELLINGS[text[start:end]]:
        fits = text.endswith(before, 0, start) and text.startswith(after, end)
        if fits and (before or after or _HAN.search(beside)):
            return start - len(before), end + len(after), reading
    return None


# ---- step 8: to Mandarin

_DIALECT = {word: mandarin for word, mandarin, *_ in _lines("dialect")}
_SHARED = {line[0] for line in _lines("dialect") if len(line) > 2}  # words of Mandarin too: a tilde ends their lines
_LONGEST_FIRST = sorted(_DIALECT, key=lambda each: (-len(each), each))
_DIALECT_ONLY = re.compile("|".join(each for each in _LONGEST_FIRST if each not in _SHARED))
_DIALECT_WORD = re.compile("|".join(_LONGEST_FIRST))


def to_mandarin(text: str, edits: dict[str, int]) -> list[Edit]:
    """Translate function words of Cantonese to Mandarin; those that exist in both only next to one that doesn't."""
    if not _DIALECT_ONLY.search(text):
        return []
    translated = [(*match.span(), _DIALECT[match[0]]) for match in _DIALECT_WORD.finditer(text)]
    edits["dialect"] = edits.get("dialect", 0) + len(translated)
    return translated


# Decoration: characters that only set the tone, and can be added to any message.
#
# Laughter and tone particles at the end of a clause (好的哈, 哈哈), faces wherever they stand (😊, [微笑], ^_^). A
# classifier that sees them learns that people who laugh don't threaten, and a 哈 at the end then defeats it: they are
# removed. Characters with a meaning of their own stay: the questioning 吗 and ?, 吧 (also a bar, 网吧), pictures of
# things (💰 stands for a word).


_NAMES = files("jingyin.model").joinpath("tables/faces.txt").read_text(encoding="utf-8").split()  # WeChat's and QQ's
_PICTURES = (
    "\U0001f600-\U0001f64f\U0001f910-\U0001f917\U0001f920-\U0001f92f\U0001f970-\U0001f97a\u2639-\u263b\u2661\u2665"
    "\u2764\U0001f493-\U0001f49f\U0001f44b-\U0001f450\U0001f338-\U0001f33b\U0001f490"
)
_MARKS_OF_FACES = (
    r"\([^()\w ]{2,6}[^()\w ,.!?:;]\)|\(?\^+[_.o-]?\^+\)?|\(\^[a-z_]\^\)|>_?<|=_=|-_-(?:\|\|)?|@_@|[:;]-?[()]"
)
_MARKS = " ,.!?;:。、~"
_FACE = rf"[{_PICTURES}]|\[(?:{'|'.join(_NAMES)})\]|{_MARKS_OF_FACES}"
_PARTICLES = "哈呵嘻嘿啊呀啦嘛呢哦噢喔哟哒喽呐咯捏呗哇咧"
_FACES = re.compile(f"(?:{_FACE})+")
_TONE = re.compile(f"[{_PARTICLES}~](?:[{_PARTICLES}~]|{_FACE})*")
# Words that end in a tone particle: 花呗 is a loan, 干嘛 a question.
_WORDS = re.compile("(?<=[花借])呗|(?<=[干喇])嘛|(?<=娃)哈哈|(?<=马大)哈|(?<=唢)呐|(?<=大)咧咧|(?<=[拿揉])捏")
_ASKS = re.compile(f"(?:^|[{re.escape(_MARKS)}])(?:[我你他]们?的)?[^{re.escape(_MARKS)}]{{1,2}}$")  # 钱呢, 我的钱呢
_CLAUSE_ENDS = frozenset(" ,.!?;:。、)")
_MAY_BEGIN = re.compile(
    rf"[{_PICTURES}{_PARTICLES}~\[(^>=@:;-]"
    rf"(?:(?<=[{_PICTURES}{_PARTICLES}~^])|(?<=\[)(?=[{''.join({name[0] for name in _NAMES})}])|(?<=\()(?![\w )])"
    r"|(?<=[:;])(?=[-()])|(?<=[>=@-])(?=[_<]))"
)


def undecorate(text: str, edits: dict[str, int]) -> list[Edit]:
    """Drop decoration from folded text, and the marks after decoration at the start of the message.

    A message that is all decoration stays as it is.
    """
    dropped: list[Edit] = []
    at, leads = 0, True
    for start, end in _decorations(text):
        if start < at:  # already dropped, as a mark after leading decoration
            continue
        leads = leads and _is_bare(text[at:start])
        at = end
        while leads and at < len(text) and text[at] in _MARKS:
            at += 1
        dropped.append((start, at, ""))
    if not dropped:
        return []
    ends, starts = [0, *(end for _, end, _ in dropped)], [*(start for start, _, _ in dropped), len(text)]
    if all(_is_bare(text[end:start]) for end, start in zip(ends, starts, strict=True)):
        return []
    edits["decoration"] = edits.get("decoration", 0) + len(dropped)
    return dropped


def _decorations(text: str) -> Iterator[tuple[int, int]]:
    """Yield the range of each face, and of each run of particles (and faces) that ends a clause."""
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
            if word := _WORDS.match(text, start):
                start = word.end()
            elif match[0] == "呢" and _ASKS.search(text, max(0, start - 6), start):
                start += 1
            if at == len(text) or text[at] in _CLAUSE_ENDS:
                if start < at:
                    yield start, at
            else:
                yield from (face.span() for face in _FACES.finditer(text, start, at))


def _is_bare(text: str) -> bool:
    """Whether `text` consists of marks only."""
    return not text.strip(_MARKS)
