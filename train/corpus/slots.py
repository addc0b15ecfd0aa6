"""Values for the slots of authored messages: {name}, {lender}, {amount} and so on.

Every value is invented or drawn from lists that all labels share, so that no name, lender or sum gives a
label away. Numbers are random digits in the forms of real messages.
"""

import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from random import Random

from jingyin.model.errors import InputError


@cache
def lines(name: str) -> tuple[str, ...]:
    """Return the lines of tables/<name>.txt, one or more entries each; "#" opens a comment line."""
    text = files("jingyin.train.corpus").joinpath(f"tables/{name}.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip() and not line.startswith("#"))


@cache
def table(name: str) -> tuple[tuple[str, ...], ...]:
    """Return the lines of a table, each split at spaces."""
    return tuple(tuple(line.split()) for line in lines(name))


@cache
def words(name: str) -> tuple[str, ...]:
    """Return all entries of a table, in order."""
    return tuple(word for line in table(name) for word in line)


@cache
def substitutes(name: str) -> dict[str, tuple[str, ...]]:
    """Return a table of "KEY SUBSTITUTE..." lines as a mapping; a repeated key has the substitutes of all its lines."""
    mapping: dict[str, tuple[str, ...]] = {}
    for key, *instead in table(name):
        mapping[key] = mapping.get(key, ()) + tuple(instead)
    return mapping


def alternatives(entries: Iterable[str]) -> str:
    """Return a pattern of any of the entries, longer ones first."""
    return "|".join(sorted(set(entries), key=lambda entry: (-len(entry), entry)))


_CHOICE = re.compile(r"\(([^()]*)\)")
_TOKEN = re.compile(r"<(\d+)-(\d+)>|\[(\w+)(?:\.(-?\d))?\]|\{(\w+)\}|[#@~%]")
_LETTERS = "abcdefghijkmnopqrstuvwxyz"
_SIGNS = {
    "#": "0123456789",
    "@": _LETTERS,
    "~": f"{_LETTERS}ABCDEFGH23456789",
    "%": "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789",
}


def choose(pattern: str, rng: Random, separator: str = "|") -> str:
    """Return a pattern with one of the alternatives in place of each (a|b)."""
    return _CHOICE.sub(lambda choice: rng.choice(choice[1].split(separator)), pattern)


def _drawn(name: str) -> Callable[[Random], str]:
    """Return a slot whose values are made from its patterns in tables/slots.txt, which explains their syntax."""

    def token(match: re.Match[str], rng: Random) -> str:
        low, high, entry, line, slot = match.groups()
        if low:
            return str(rng.randint(int(low), int(high))).zfill(len(low) if low[0] == "0" else 1)
        if entry:
            return rng.choice(table(entry)[int(line)] if line else words(entry))
        return SLOTS[slot](rng) if slot else rng.choice(_SIGNS[match[0]])

    def value(rng: Random) -> str:
        return _TOKEN.sub(lambda match: token(match, rng), choose(rng.choice(patterns), rng))

    patterns = [line.partition(" ")[2] for line in lines("slots") if line.partition(" ")[0] == name]
    return value


_HAN_DIGITS = "零一二三四五六七八九"


def _amount(rng: Random) -> str:
    """Draw an exact debt, log-uniform from 50 to 200,000 yuan."""
    value = round(10 ** rng.uniform(1.7, 5.3), 2)
    whole = int(value)
    forms = (
        f"{value:.2f}元", f"{value:.2f}元", f"{value:,.2f}元", f"{whole}元", f"{whole}元", f"{whole:,}元",
        f"人民币{value:.2f}元", f"¥{value:.2f}", f"￥{whole}", f"{value:.1f}元", f"{whole}.00元", f"{whole}块",
    )  # fmt: skip
    return rng.choice(forms)


def _price(rng: Random) -> str:
    """Draw a round sum as said in chat, 100 to 95,000 yuan."""
    digit, power = rng.randint(1, 9), rng.choice((2, 2, 2, 3, 3, 4))
    value = digit * 10**power
    unit = "百千万"[power - 2]
    spoken = ("两" if digit == 2 else _HAN_DIGITS[digit]) + unit
    forms = (
        f"{value}块", f"{value}", f"{value}元", f"{value}块钱", spoken, spoken, f"{spoken}块", f"{spoken}块钱",
        f"{digit}{unit}", f"{value + 5 * 10 ** (power - 1)}", f"{value + 2 * 10 ** (power - 1)}块",
    )  # fmt: skip
    if power > 2 and rng.random() < 0.2:
        return f"{digit}{'kw'[power - 3]}"
    return rng.choice(forms)


SLOTS: dict[str, Callable[[Random], str]] = {
    **{name: _drawn(name) for name, *_ in table("slots")},
    "amount": _amount,
    "price": _price,
}
"""Slot name -> a function that draws a value."""

SLOT = re.compile(r"\{(\w+)\}")

# A message that names one of these twice means the same one; two times or two prices are two.
_SAME = frozenset(("name", "lender", "bank", "company", "lawfirm", "court", "school", "amount", "days", "plate"))
# A value may end in the word that follows it in the message: "{deadline}前" and "今天18:00前".
_DOUBLED = (
    (re.compile(r"(?:之前|以前|前)(之前|以前|前)"), r"\1"),
    (re.compile(r"(之前|以前|前)(?:之内|以内|内)"), r"\1"),
    (re.compile(r"(之内|以内|内)(?:之内|以内|内|之前|以前|前)"), r"\1"),
    (re.compile(r"(元|块钱|块)(?:元整|元|块钱|块)"), r"\1"),
    (re.compile(r"(?<=\d)([日号])[日号]"), r"\1"),
    (re.compile(r"([:：]\d\d|点半?)(?:点钟|点整|点)"), r"\1"),
)


def fill_slots(text: str, rng: Random) -> str:
    """Return `text` with every slot filled; the same seed gives the same values.

    A word with which a value ends and the text after it begins is dropped once. Raises InputError for an unknown slot.
    """
    filled, *rest = SLOT.split(text)
    for (_, value), literal in zip(slot_values(text, rng), rest[1::2], strict=True):
        seam = len(filled) + len(value)
        filled += value + literal
        for pattern, once in _DOUBLED:
            match = pattern.search(filled, max(0, seam - 4))
            if match and match.start() < seam < match.end():
                filled = filled[: match.start()] + match.expand(once) + filled[match.end() :]
                break
    return filled


def slot_values(text: str, rng: Random) -> list[tuple[str, str]]:
    """Return (slot, value) for each slot of `text`, in order."""
    same: dict[str, str] = {}
    values = []
    for match in SLOT.finditer(text):
        slot = match[1]
        if slot not in SLOTS:
            raise InputError(f"unknown slot {{{slot}}}; known: {', '.join(sorted(SLOTS))}")
        value = SLOTS[slot](rng)
        if slot in _SAME:
            value = same.setdefault(slot, value)
        values.append((slot, value))
    return values


# Fills the masks of public corpora with synthetic values, so that their messages look like traffic.

# Largest values by the unit after a number: "在 <#> 点" filled with 760 is unlike real traffic, and networks flag it.
_LARGEST = {
    "秒": 59, "分": 59, "点": 23, "时": 23, "日": 31, "号": 31, "月": 12, "折": 9, "楼": 20, "万": 30, "岁": 80,
    "来": 60,
}  # fmt: skip


def _numbered(text: str, mask: str, rng: Random) -> str:
    """Fill each `mask` with a number that is plausible before the unit after it."""

    def number(match: re.Match[str]) -> str:
        return str(rng.randint(1, _LARGEST.get(match[1]) or 10 ** rng.choice((1, 2, 2, 3, 4)) - 1))

    return re.sub(rf"{mask}(?=\s*([{''.join(_LARGEST)}]?))", number, text)


def _service(rng: Random) -> str:
    return f"{rng.choice(('400', '95', '10'))}{rng.randint(100, 9_999)}"


_TAGS: dict[str, Callable[[Random], str]] = {
    "DECIMAL": lambda rng: f"{rng.randint(0, 999)}.{rng.randint(1, 9)}",
    "TIME": SLOTS["time"],
    "DATE": SLOTS["date"],
    "EMAIL": lambda rng: f"{SLOTS['wechat'](rng)}@mail.cn",
    "URL": SLOTS["link"],
    "IP": lambda rng: ".".join(str(rng.randint(1, 254)) for _ in range(4)),
}
_WORDS: dict[str, Callable[[Random], str]] = {
    "CELLPHONE": SLOTS["phone"],
    "HOTLINE": _service,
    "WECHAT": SLOTS["wechat"],
    "PHONE": _service,
    "PLACE": SLOTS["city"],
    "NAME": SLOTS["name"],
    "BANK": SLOTS["bank"],
    "URL": SLOTS["link"],
    "QQ": SLOTS["qq"],
}
_TAG = re.compile(f"<({'|'.join(_TAGS)})>")
_WORD = re.compile(alternatives(_WORDS))
# A lone x after a Latin letter may be the end of a word; runs of x are digits wherever they stand.
_RUN = re.compile(r"(?<![A-Za-z])[xX](?![A-Za-z])|[xX]{2,}")


def fill_tags(text: str, rng: Random) -> str:
    """Fill the masks of the NUS SMS Corpus: <#>, <DECIMAL>, <TIME> and so on."""
    return _TAG.sub(lambda match: _TAGS[match[1]](rng), _numbered(text, "<#>", rng))


def fill_words(text: str, rng: Random) -> str:
    """Fill the masks of FBS: NAME, PLACE, DIGIT, URL, CELLPHONE and so on, upper case amid Chinese."""
    return _WORD.sub(lambda match: _WORDS[match[0]](rng), _numbered(text, "DIGIT", rng))


def fill_digits(text: str, rng: Random) -> str:
    """Fill the masks of the 800k set: each x of a run is a digit; eleven are a mobile number."""

    def digits(match: re.Match[str]) -> str:
        count = len(match[0])
        first = "1" + rng.choice("35789") if count == 11 else rng.choice("123456789")
        return first + "".join(rng.choice("0123456789") for _ in range(count - len(first)))

    return _RUN.sub(digits, text)


def fill_stars(text: str, rng: Random) -> str:
    """Fill the masks of ATEC: *** is a number."""
    return _numbered(text, r"\*{2,}", rng)
