"""Makes model/tables/simplified.txt from the character tables of OpenCC (Apache-2.0).

    pip install opencc-python-reimplemented
    python -m jingyin.train.vocabulary.simplified model/tables/simplified.txt

A line is a traditional or variant character followed by its simplified form. Where OpenCC offers several,
its first is taken: words can't help, since the normaliser works character by character.
"""

import sys
from pathlib import Path

EXTRA = {
    "妳": "你", "祂": "他", "牠": "它", "喫": "吃", "姪": "侄", "揹": "背", "佔": "占", "佈": "布", "託": "托",
    "週": "周", "痠": "酸", "嚐": "尝", "乾": "干", "捲": "卷", "昇": "升", "甦": "苏", "麽": "么", "麼": "么",
    "裡": "里", "裏": "里", "峯": "峰", "羣": "群", "着": "着", "著": "着", "衆": "众", "爲": "为", "綫": "线",
    "砲": "炮", "畧": "略", "啓": "启", "産": "产", "擡": "抬", "殺": "杀", "緖": "绪", "說": "说", "淸": "清",
    "囬": "回", "扥": "托", "囯": "国", "迲": "去", "菿": "到", "尒": "尔", "侽": "男", "妏": "文", "媞": "是",
}  # fmt: skip
"""Variants that OpenCC leaves alone, some of them 'Martian script' used to slip past filters."""


def read_table(path: Path) -> dict[str, str]:
    """Read an OpenCC dictionary of single characters, the first candidate of each."""
    pairs = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if "\t" in line)
    return {key: value.split(" ")[0] for key, value in pairs if len(key) == 1}


def simplified_table(dictionary: Path) -> dict[str, str]:
    """Return character -> simplified character from OpenCC's `dictionary` folder and EXTRA.

    Regional variants (Taiwan, Hong Kong, Japan) are followed to the standard traditional form first.
    """
    simplified = read_table(dictionary / "TSCharacters.txt")
    table = dict(simplified)
    for name in ("TWVariantsRev.txt", "HKVariantsRev.txt"):
        for variant, standard in read_table(dictionary / name).items():
            table.setdefault(variant, simplified.get(standard, standard))
    for standard, variant in read_table(dictionary / "JPVariants.txt").items():
        table.setdefault(variant, simplified.get(standard, standard))
    # Variants within GB2312 are simplified Chinese already: 欠 would become 缺, 么 would become 幺.
    table = {k: v for k, v in table.items() if k in simplified or not k.encode("gb2312", "ignore")} | EXTRA
    # One pass must be enough, or cleaning twice would not be cleaning once.
    settled = {key: table.get(value, value) for key, value in table.items()}
    return {k: v for k, v in sorted(settled.items()) if k != v and len(v) == 1 and ord(v) < 0x10000}


def main() -> None:
    """Write the table to the path given on the command line."""
    import opencc  # a development dependency, needed here only

    table = simplified_table(Path(opencc.__file__).parent / "dictionary")
    Path(sys.argv[1]).write_text("".join(f"{k}{v}\n" for k, v in table.items()), encoding="utf-8")


if __name__ == "__main__":
    main()
