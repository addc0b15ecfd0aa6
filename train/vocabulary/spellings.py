"""Makes model/tables/spellings.txt, how senders spell words that filters look for, in Latin letters beside Han.

    python -m jingyin.train.vocabulary.spellings model/tables/spellings.txt

A line is a spelling and the word that it stands for. Some characters of a word side by side, or all of them, are
written by their syllables (bao光, cui收, tongxunlu), a word of four characters or more also by the initials of all
(dhhz); the rest is EXTRA. A spelling that another word of the lexicon has too stays out: zhuan钱 is 转钱 or 赚钱.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.resources import files
from itertools import combinations
from pathlib import Path

from pypinyin import lazy_pinyin

WORDS = (
    "警察", "报警", "公安", "法院", "律师", "起诉", "坐牢", "家人", "家属", "亲戚", "朋友", "同事", "父母", "爸妈", "老婆", "老公", "孩子",
    "单位", "村里", "照片", "裸照", "视频", "手机", "短信", "微信", "支付宝", "棺材", "油漆", "举报", "杀你", "杀了你", "砍你", "抓你",
    "断手", "断腿", "手脚", "封号", "停用", "利息", "贷款", "借款", "老板", "领导", "名单", "公司", "死全家", "丢人", "没脸", "后果",
)  # fmt: skip
"""Words of threats beside those of slang.txt."""
EXTRA = {
    "txl": "通讯录", "hsn": "呼死你", "gld": "高利贷", "打q": "打钱", "转q": "转钱", "还q": "还钱", "欠q": "欠钱",
    "v我": "转我", "加v": "加微信", "加vx": "加微信", "加wx": "加微信", "加v信": "加微信", "加我v": "加我微信", "加我vx": "加我微信", "微vx": "微信",
    "vx号": "微信号", "vx群": "微信群", "wx": "微信", "v信": "微信", "zfb": "支付宝",
}  # fmt: skip
"""Spellings by initials and drawn letters."""
SHORTEST = 6
"""Letters of a word that is all letters."""


def words(table: str) -> list[str]:
    """Return the words of a table of the package."""
    lines = files("jingyin.model").joinpath(f"tables/{table}.txt").read_text(encoding="utf-8").splitlines()
    return [line.split(" ")[0] for line in lines]


def spellings(word: str) -> Iterator[str]:
    """Yield the spellings of a word that have one run of letters."""
    syllables = lazy_pinyin(word)
    for start, end in combinations(range(len(word) + 1), 2):
        letters = "".join(syllables[start:end])
        if len(letters) >= (SHORTEST if end - start == len(word) else 2):
            yield word[:start] + letters + word[end:]
    if len(word) >= 4:
        yield "".join(syllable[0] for syllable in syllables)


def spellings_table(asked: Iterable[str], lexicon: Iterable[str]) -> dict[str, str]:
    """Return spelling -> word for the `asked` words, without the spellings that another word of `lexicon` has."""
    readings: dict[str, set[str]] = defaultdict(set)
    asked = [word for word in dict.fromkeys(asked) if len(word) > 1]
    longest = max(map(len, asked))
    for word in {*asked, *(word for word in lexicon if 1 < len(word) <= longest)}:
        if all("\u4e00" <= character <= "\u9fff" for character in word):
            for spelling in spellings(word):
                readings[spelling].add(word)
    table = {spelling: word for word in asked for spelling in spellings(word) if len(readings[spelling]) == 1}
    return dict(sorted((table | EXTRA).items()))


def main() -> None:
    """Write the table to the path given on the command line."""
    table = spellings_table((*words("slang"), *WORDS), words("lexicon"))
    Path(sys.argv[1]).write_text("".join(f"{key} {value}\n" for key, value in table.items()), encoding="utf-8")


if __name__ == "__main__":
    main()
