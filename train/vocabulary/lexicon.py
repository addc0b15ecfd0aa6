"""Makes model/tables/lexicon.txt from jieba's dictionary, slang.txt and word counts of SMS.

    python -m jingyin.train.vocabulary.lexicon model/tables/lexicon.txt 15500 TEXTS...

TEXTS are JSON lines with a `text`, gzip or not. Only counts of words that jieba's dictionary or slang.txt
already hold go into the lexicon, never text. The format is jieba's userdict: word, frequency, part of speech.
"""

import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Literal

import jieba
from tqdm import tqdm

from jingyin.model.text import clean

Entry = tuple[int, str]
"""Frequency and part of speech, as jieba's dictionary gives them."""


def read_texts(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the text of every row of the JSON lines files, as it came."""
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for line in tqdm(lines, desc=path.name, unit=" rows", disable=None):
                yield json.loads(line)["text"]


def jieba_entries() -> dict[str, Entry]:
    """Return jieba's own dictionary, its words folded as messages are, slang.txt added."""
    entries: dict[str, Entry] = {}
    dictionary = Path(jieba.__file__).with_name("dict.txt").read_text(encoding="utf-8")
    slang = files("jingyin.model").joinpath("tables/slang.txt").read_text(encoding="utf-8")
    for line in (*dictionary.splitlines(), *slang.splitlines()):
        word, frequency, part_of_speech = line.split(" ")
        folded = clean(word).text
        if folded.isalpha():
            entries[folded] = max(entries.get(folded, (0, "")), (int(frequency), part_of_speech))
    return entries


def level1(coding: Literal["gb2312", "big5"]) -> set[str]:
    """Return the level-1 characters of a coding, those of everyday use."""
    rows, cells = {"gb2312": (range(0xB0, 0xD8), 0xA1), "big5": (range(0xA4, 0xC7), 0x40)}[coding]
    decoded = (bytes((row, cell)).decode(coding, "ignore") for row in rows for cell in range(cells, 0xFF))
    return {character for character in decoded if character}


def characters() -> set[str]:
    """Return the level-1 characters of GB2312 and Big5, folded, and printable ASCII and punctuation."""
    marks = (
        "".join(map(chr, range(0x21, 0x7F)))
        + "。、《》【】「」『』“”‘’…—·～~£€℃√★☆●■◆▲▼→←↑↓♥❤✅❌⚠☎📞💰🔥😊😂🙏👍😭😄😘🌹💣🔪💀📱🚫❗❓"
    )
    folded = {clean(c).text for c in (*level1("gb2312"), *level1("big5"), *marks)}
    return {c for c in folded if len(c) == 1}


def lexicon(texts: Iterable[str], size: int) -> dict[str, Entry]:
    """Return the `size` most useful entries: all characters() and slang, then words by count in `texts`."""
    entries = jieba_entries()
    tokenizer = jieba.Tokenizer()
    tokenizer.initialize()
    for word, (frequency, _) in entries.items():
        tokenizer.add_word(word, frequency)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word in tokenizer.cut(text, HMM=False) if word in entries)
    slang = files("jingyin.model").joinpath("tables/slang.txt").read_text(encoding="utf-8")
    must = characters() | {line.split(" ")[0] for line in slang.splitlines()}
    must |= {c for word in must for c in word}
    chosen = list(must)
    for word, _ in counts.most_common():
        new = [w for w in (word, *word) if w not in must]
        if len(chosen) + len(new) > size:
            break
        must.update(new)
        chosen += dict.fromkeys(new)
    return {word: entries.get(word, (1, "x")) for word in sorted(chosen)}


def main() -> None:
    """Write the lexicon to the path given on the command line."""
    out, size, *paths = sys.argv[1:]
    table = lexicon((clean(text).text for text in read_texts(map(Path, paths))), int(size))
    lines = (f"{word} {frequency} {part_of_speech}\n" for word, (frequency, part_of_speech) in table.items())
    Path(out).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
