"""Masks: links, numbers and amounts become placeholders before anything else sees a message.

A placeholder is one private-use character, so no personal number reaches the model, the cache or a log, and
templated traffic collapses to few distinct clean texts. Amounts keep a bucket: a round 300 is a price, an
exact 1,783.52 is a debt, and the two mean different things here.
"""

import re
from bisect import bisect
from collections.abc import Iterable, Iterator

Edit = tuple[int, int, str]
"""Replace text[start:end] by a string; edits of one step don't overlap and come in order."""

_MAGNITUDES = (1_000, 10_000, 100_000)
_SIZES = ("below_1k", "below_10k", "below_100k", "more")
_BUCKETS = tuple(f"{kind}_{size}" for kind in ("round", "exact") for size in _SIZES)

PLACEHOLDERS: dict[str, str] = {
    name: chr(0xE000 + i)
    for i, name in enumerate(
        ("link", "email", "phone", "id_card", "bank_card", "code", "datetime", "number", "number_round",
         "number_exact", "redacted", *(f"amount_{bucket}" for bucket in _BUCKETS))
    )
}  # fmt: skip
"""Mask name -> its private-use character."""

_NAMES = {character: name for name, character in PLACEHOLDERS.items()}

_NUMERAL = "零〇一二两俩三仨四五六七八九十百千万亿几数半壹贰叁肆伍陆柒捌玖拾佰仟"
_COUNTED = "一二两俩三四五六七八九十几"
_TLD = (
    "com|cn|net|org|cc|top|xyz|vip|tv|me|ly|im|io|info|club|site|shop|store|online|link|app|co|tk|hk|tw|us|gov|edu"
    "|biz|pw|la|so|mobi|wang|ink|fun|work|ltd|asia|url|icu|pro|live|win|bid|tech|dev"
)
_CURRENCY = "元|圆|块|rmb|人民币|美金|美元|港币|港元|台币|新台币|usdt|u(?![a-z])|蚊(?![子虫香鱼帐])"
# An amount without a currency counts as one unless a measure word follows: 三百 but not 三百人, 一千个.
_NUMBER = "零〇一二两三四五六七八九十百千万亿几"
_DEVICE = "(?! ?(?:无线|超级)?(?:[充快闪金屏]|功率|灯|瓦|电视|显示|分辨率|画质|高清|视频))"  # 65w充电器, 4k电视, 18k金
_MEASURE = "[个人年月天日次遍倍里米度岁分秒位名家户条封件只斤克吨平多字页公股票种份张台辆座所周火]"
_MASKED = r"[\d*x]"  # numbers come masked in forwarded messages: 138****2046, 1xxxxxxxxxx

# Runs are bounded. Without bounds a message of one character over and over takes quadratic time.
_SUBDOMAIN = "[a-z0-9-]{1,63}"
_INTEGER = r"\d[\d,]{0,30}(?!\d)"  # a longer run isn't an amount; it is masked whole, as a number
_FRACTION = r"(?:\.\d{1,30}(?!\d))?"
_EMAIL = rf"[a-z0-9._+-]{{1,64}}+@{_SUBDOMAIN}(?:\.{_SUBDOMAIN}){{1,8}}"
_HOST = rf"{_SUBDOMAIN}+(?:\.{_SUBDOMAIN}){{0,8}}\.(?:{_TLD})(?![a-z0-9-])(?:[/?:][a-z0-9._~:/?#@!$&'*+;=%-]*)?"
_PRICE = rf"(?:(?:hk|nt|us)?[¥$]|rmb) ?{_INTEGER}{_FRACTION}(?: ?[万千百wk](?![a-z]))?(?: ?(?:{_CURRENCY}))?"
_ID_CARD = (
    rf"\d{{6}}{_MASKED}{{8}}\d{{2,3}}[\dx](?![\d*x])|\d{{3,6}}[*x]{{7,14}}\d{{0,3}}[\dx]?(?![\d*x])|\d{{15}}(?!\d)"
)
_PHONE = (
    rf"(?:\+?86[ -]?)?1[3-9*x]{_MASKED}[ -]?{_MASKED}{{4}}[ -]?{_MASKED}{{4}}(?![\d*x])"
    rf"|(?:\+?86[ -]?)?1[3-9*x]{_MASKED}{{2}}[ -]?{_MASKED}{{3}}[ -]?{_MASKED}{{4}}(?![\d*x])"
    r"|[48]00[ -]?\d{3,4}[ -]?\d{3,4}(?!\d)|\(?0\d{2,3}\)?[ -]?\d{7,8}(?:[ -]?\d{1,5})?(?!\d)"
    r"|09\d{2}[ -]?\d{3}[ -]?\d{3}(?!\d)|\+\d{6,14}(?!\d)"
    r"|(?<!\d:)(?:95\d{3,4}|100\d\d|123\d\d|9[67]\d{3,4})(?!\d)"
)
_BANK_CARD = r"\d{4}[ -]?\d{4}[ -]?\d{4}[ -]?\d{4}(?:[ -]?\d{1,3})?(?!\d)|\d{4,6}[*x]{4,12}\d{3,4}(?![\d*x])"
_REDACTED = r"[x*×□#_]{2,}(?![a-z0-9])|[×□](?![a-z0-9])"
# Grouped by first character, which halves the time; the first pattern that fits counts.
_PATTERNS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (r"\d", (
        ("email", _EMAIL),
        ("link", _HOST),
        ("datetime",
         r"(?:19|20)\d\d ?[-/.年] ?\d{1,2} ?[-/.月] ?\d{1,2}(?!\d)[日号]?(?: ?\d{1,2}:\d\d(?::\d\d)?)?"
         r"|\d{1,2}月\d{1,2}[日号]?(?: ?\d{1,2}:\d\d(?::\d\d)?)?|\d{1,2}:\d\d(?::\d\d)?(?![\d:])"
         r"|(?:19|20)\d\d年(?:\d{1,2}月)?"),
        ("amount",
         # A quick test: few numbers are followed by a character that all of these need; none allows a longer number.
         r"(?=[\d,.]{1,62}+ {0,2}[万千百wk元圆块r人美港台新u蚊刀个])"
         # 刀 is a dollar, but also a stab (捅你3刀, 砍你两刀); 一块 is a yuan, but also "together" (一块吃饭).
         rf"(?:\d{{1,4}}(?:[百千]万|[万千])(?:\d[千百十]){{1,3}}(?:{_CURRENCY}|(?!{_MEASURE}))[整钱]?"
         rf"|(?!\d刀){_INTEGER}{_FRACTION} ?(?:(?:[百千]万|[万千百wk](?![a-z]))[多余几来]?)? ?(?:{_CURRENCY}|刀)[整钱]?"
         rf"|\d{{1,30}}{_FRACTION} ?(?:[百千]万|(?![百千]万)[万百千](?:\d(?!\d))?|[wk]\d?(?![a-z0-9]))"
         rf"(?!{_MEASURE}){_DEVICE}"
         # Senders who avoid 万 and 千 write 6.5个w, 两个半k, 三w.
         rf"|\d{{1,30}}{_FRACTION} ?个半? ?[wk](?![a-z0-9歌]))"),
        ("id_card", _ID_CARD),
        ("phone", _PHONE),
        ("bank_card", _BANK_CARD),
        ("number", rf"{_INTEGER}\.\d+|\d{{5,}}"),
        ("small", r"\d{3,4}(?!\d)"),
    )),
    ("[a-z]", (
        ("email", _EMAIL),
        ("link", rf"(?:https?://|www\.)[a-z0-9._~:/?#@!$&'()*+;=%-]+|{_HOST}"),
        ("amount", _PRICE),
        ("number", r"[a-z]{1,3}\d{5,}[a-z0-9]*"),
        ("redacted", _REDACTED),
    )),
    (f"[{_NUMERAL}]", (
        ("amount",
         rf"[{_COUNTED}十百]{{1,4}}(?: ?个半? ?[wk]|w)(?![a-z0-9歌])"
         rf"|(?!一块(?![钱大整\d{_COUNTED}]))[{_NUMERAL}]{{1,30}}[多余来]?(?:块大洋|{_CURRENCY})[钱整]?"
         rf"|[{_COUNTED}十][{_NUMERAL}]{{0,28}}[百千万][多余来]?刀"
         # A whole numeral or nothing: 三百五十人 and 第二百七十四条 are not split.
         rf"|(?<![第{_NUMBER}])(?=[{_NUMBER}]{{1,29}}?[百千万])[{_COUNTED}十][{_NUMBER}]{{1,29}}"
         rf"(?:多(?!{_MEASURE}))?(?![{_NUMBER}]|多?{_MEASURE})"),
    )),
    ("[¥$+(×□#_*]", (("email", _EMAIL), ("amount", _PRICE), ("phone", _PHONE), ("redacted", _REDACTED))),
)  # fmt: skip

# Directly after letters (wx13812345678, mate300) only digits as long as a personal number are masked.
_PERSONAL = (("id_card", _ID_CARD), ("phone", _PHONE), ("bank_card", _BANK_CARD), ("number", r"\d{5,}"))
_KINDS: dict[str | None, str] = {}
"""Name of a group -> its kind; names of groups must be unique."""


def _any(patterns: Iterable[tuple[str, str]]) -> str:
    groups = []
    for kind, pattern in patterns:
        name = f"{kind}_{len(_KINDS)}"
        _KINDS[name] = kind
        groups.append(f"(?P<{name}>{pattern})")
    return "|".join(groups)


_MASK = re.compile(
    rf"(?=[\d¥$+(×□#_*a-z{_NUMERAL}])"
    rf"(?:(?<![a-z0-9@])(?:{'|'.join(f'(?={first})(?:{_any(patterns)})' for first, patterns in _PATTERNS)})"
    rf"|(?<=[a-z@])(?=\d)(?:{_any(_PERSONAL)}))"
)
_CODE = re.compile(
    r"(?:验证码|校验码|动态码|取件码|取货码|提货码|激活码|随机码|密码|code)[^\d一-鿿]{0,3}(?:[为是]|您的)?[^\d一-鿿]{0,3}$"
)
_SERIAL = re.compile("(?:[房单编工学尾座批牌卡股车票]号|编码|代码)[:是为 ]{0,2}$")  # 房号12345 isn't a service number
_CALLED = re.compile("(?:[询拨]|电话|致电|热线|客服)[打:是 ]{0,2}$")  # 拿10000来 is a sum, 详询10000 a service number
# Emergency and short service numbers, and numbers used as words (996, 520), carry meaning and stay as they are.
_PLAIN = frozenset(
    ("110", "119", "120", "122", "315", "360", "911", "996", "985", "211", "404", "618", "520", "1314", "886")
)
_VALUE = re.compile(r"\d[\d,]*(?:\.\d+)?")
_UNITS = {"百": 100, "千": 1_000, "万": 10_000, "w": 10_000, "k": 1_000, "佰": 100, "仟": 1_000, "亿": 10**8}
_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {
    c: i for i, c in enumerate("〇壹贰叁肆伍陆柒捌玖")
} | {str(i): i for i in range(10)} | {"两": 2, "俩": 2, "仨": 3, "几": 3, "数": 3}  # fmt: skip


def mask(text: str, edits: dict[str, int]) -> Iterator[Edit]:
    """Yield the edits that put placeholders into folded `text`, and count them in `edits` by kind."""
    for match in _MASK.finditer(text):
        name = _placeholder(text, match)
        if name:
            kind = name.split("_")[0] if name.startswith(("amount", "number")) else name
            edits[kind] = edits.get(kind, 0) + 1
            yield match.start(), match.end(), PLACEHOLDERS[name]


def readable(text: str) -> str:
    """Spell the placeholders in clean `text` out, as ‹phone›, for people."""
    return "".join(f"‹{_NAMES[c]}›" if c in _NAMES else c for c in text)


def _placeholder(text: str, match: re.Match[str]) -> str | None:
    kind, written, start = _KINDS[match.lastgroup], match[0], match.start()
    if kind == "amount":
        return f"amount_{bucket(amount_value(written))}"
    if kind == "phone" and len(written) <= 6:
        called = not written.endswith("000") or _CALLED.search(text, max(0, start - 5), start)
        return "phone" if called and not _SERIAL.search(text, max(0, start - 5), start) else "number"
    if kind in ("small", "number") and written.isdigit():
        before = text[max(0, start - 12) : start]
        if len(written) <= 8 and ("码" in before or "code" in before) and _CODE.search(before):
            return "code"
        if kind == "small":
            return None if written in _PLAIN else "number_round" if written.endswith("0") else "number_exact"
    return kind


def bucket(value: float) -> str:
    """Name the bucket of an amount: its size, and whether it is round (at most two leading digits)."""
    value = min(value, 1e15)  # 亿亿亿…元 and a number of 300 digits are infinite
    step = 10 ** max(1, len(str(int(value))) - 2)
    return _BUCKETS[bisect(_MAGNITUDES, value) + (0 if value % step == 0 else len(_SIZES))]


def amount_value(written: str) -> float:
    """Return the value of an amount as written: "1,783.52元", "3.5万", "两百块", "一千二", "6.5个w"."""
    number = _VALUE.search(written)
    if number:
        value = float(number[0].replace(",", ""))
        unit = 1
        for at, character in enumerate(written[number.end() :], number.end()):
            if character.isdigit():  # 2万8 is 28,000, 2万8百 is 20,800
                scaled = written[at + 1 : at + 2] in ("千", "百", "十")
                return value + (_chinese_value(written[at:]) if scaled else int(character) * unit / 10)
            unit = _UNITS.get(character, 1)
            value *= unit
        return value
    return _chinese_value(written)


def _chinese_value(written: str) -> float:
    total, section, digit, unit = 0.0, 0.0, 0.0, 1
    for character in written:
        if character == "半":  # 半千, 两个半k; after a unit half of that: 一千半
            digit = digit + 0.5 if digit or unit < 100 else 5
        elif character in _DIGITS:
            digit = _DIGITS[character]
            unit = unit if digit else 1  # 一百零五 is 105, 一百五 is 150
        elif character in "十拾":
            section, digit, unit = section + (digit or 1) * 10, 0, 10
        elif character in ("万", "亿", "w", "k"):
            unit, counted = _UNITS[character], section + digit
            if counted and total >= unit:  # 一亿三千万: the 万 multiplies what follows the 亿
                total += counted * unit
            else:
                total = (total + counted or 1) * unit
            section, digit = 0.0, 0
        elif character in _UNITS:
            unit = _UNITS[character]
            section, digit = section + (digit or 1) * unit, 0
    # 一千二 is 1,200: a digit after a unit counts tenths of it.
    return total + section + digit * (unit / 10 if unit >= 100 else 1)
