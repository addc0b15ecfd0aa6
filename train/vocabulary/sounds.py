"""Makes model/tables/sounds.txt, which characters sound alike, from pypinyin (MIT).

    python -m jingyin.train.vocabulary.sounds model/tables/sounds.txt

A line is a toneless syllable of pinyin and the characters of GB2312 that are read so, each by its most usual reading.
"""

import sys
from collections import defaultdict
from pathlib import Path

from pypinyin import lazy_pinyin

ROWS = range(0xB0, 0xF8)
"""Rows of GB2312 that hold Han characters."""


def sounds() -> dict[str, str]:
    """Return syllable -> characters."""
    coded = bytes(byte for row in ROWS for cell in range(0xA1, 0xFF) for byte in (row, cell))
    table: dict[str, str] = defaultdict(str)
    for character in coded.decode("gb2312", "ignore"):
        table[lazy_pinyin(character)[0]] += character
    return dict(sorted(table.items()))


def main() -> None:
    """Write the table to the path given on the command line."""
    lines = (f"{syllable} {characters}\n" for syllable, characters in sounds().items())
    Path(sys.argv[1]).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
