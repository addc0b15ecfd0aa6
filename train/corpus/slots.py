"""Values for the slots of authored messages: {name}, {lender}, {amount} and so on.

Every value is invented or drawn from lists that all labels share, so that no name, lender or sum tells a
label. Numbers are random digits in the forms that real messages write them in.
"""

import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from random import Random

from jingyin.model.errors import InputError

# Reads the word lists in tables/: one or more entries a line, "#" opens a comment line.


@cache
def table(name: str) -> tuple[tuple[str, ...], ...]:
    """Return the lines of tables/<name>.txt, each split at spaces."""
    text = files("jingyin.train.corpus").joinpath(f"tables/{name}.txt").read_text(encoding="utf-8")
    return tuple(tuple(line.split()) for line in text.splitlines() if line.strip() and not line.startswith("#"))


@cache
def words(name: str) -> tuple[str, ...]:
    """Return all entries of a table, in order."""
    return tuple(word for line in table(name) for word in line)


@cache
def substitutes(name: str) -> dict[str, tuple[str, ...]]:
    """Return a table of "what instead..." lines as a mapping; a key that comes twice keeps both lines."""
    mapping: dict[str, tuple[str, ...]] = {}
    for key, *instead in table(name):
        mapping[key] = mapping.get(key, ()) + tuple(instead)
    return mapping


_HAN_DIGITS = "零一二三四五六七八九"
_LETTERS = "abcdefghijkmnpqrstuvwxyz"


def _digits(rng: Random, count: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(count))


def _two_parts(name: str) -> Callable[[Random], str]:
    """Return a slot whose value joins an entry of a table's first line and one of its last."""

    def draw(rng: Random) -> str:
        return rng.choice(table(name)[0]) + rng.choice(table(name)[-1])

    return draw


def _one_of(name: str) -> Callable[[Random], str]:
    def draw(rng: Random) -> str:
        return rng.choice(words(name))

    return draw


def _name(rng: Random) -> str:
    return rng.choice(words("surnames")) + rng.choice(words("given"))


def _bank(rng: Random) -> str:
    if rng.random() < 0.3:
        return rng.choice(words("cities")) + rng.choice(("银行", "农商银行", "商业银行"))
    return rng.choice(words("banks"))


def _company(rng: Random) -> str:
    city = rng.choice(words("cities")) if rng.random() < 0.4 else ""
    return city + _two_parts("companies")(rng)


def _lawfirm(rng: Random) -> str:
    city = rng.choice(words("cities")) if rng.random() < 0.4 else ""
    return city + _two_parts("lawfirms")(rng)


def _court(rng: Random) -> str:
    city, district = rng.choice(words("cities")), rng.choice(words("districts"))
    return rng.choice(
        (f"{city}市{district}人民法院", f"{district}人民法院", f"{city}市中级人民法院", f"{district}法院")
    )


def _police(rng: Random) -> str:
    city, district = rng.choice(words("cities")), rng.choice(words("districts"))
    return rng.choice(
        (f"{city}市公安局{district[:-1]}分局", f"{city}市公安局", f"{district}公安局", f"{district}派出所")
    )


def _school(rng: Random) -> str:
    place = rng.choice(words("districts"))[:-1] if rng.random() < 0.5 else rng.choice(words("cities"))
    return place + rng.choice(words("schools"))


def _carrier(rng: Random) -> str:
    return rng.choice(("中国移动", "中国联通", "中国电信", "中国广电", "移动", "联通", "电信"))


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


def _days(rng: Random) -> str:
    return str(rng.choice((rng.randint(1, 9), rng.randint(3, 40), rng.randint(10, 400))))


def _date(rng: Random) -> str:
    month, day = rng.randint(1, 12), rng.randint(1, 28)
    return rng.choice((f"{month}月{day}日", f"{month}月{day}日", f"{month}月{day}号", f"{month:02d}月{day:02d}日"))


def _time(rng: Random) -> str:
    hour, minute = rng.randint(8, 21), rng.choice(("00", "00", "30", "15", "45"))
    return rng.choice((f"{hour}:{minute}", f"{hour}:{minute}", f"{hour}：{minute}", f"{hour}点", f"{hour}点半"))


def _deadline(rng: Random) -> str:
    """Draw a deadline: a point in time before which, or a span within which."""
    hour = rng.randint(9, 22)
    noon = rng.randint(1, 6)
    day = rng.choice(("今天", "今天", "今日", "今晚", "明天", "明日", "本周五", "周日", "后天", _date(rng)))
    clock = rng.choice((f"{hour}:00", f"{hour}点", f"{hour}时", f"{hour}:30"))
    part = rng.choice(("中午12点", f"下午{noon}点", f"晚上{noon + 5}点", "下班", "天黑", f"下午{_HAN_DIGITS[noon]}点"))
    before = rng.choice(("前", "前", "之前", "以前"))
    number = rng.choice((1, 2, 3, 6, 12, 24, 48))
    span = rng.choice((f"{number}小时", f"{number}个小时", "两小时", "半小时", "十五分钟", "30分钟", "三天", "两日",
                       "一个工作日", "3日", "七日", "24小时"))  # fmt: skip
    within = rng.choice(("内", "内", "之内", "以内"))
    return rng.choice((f"{day}{clock}{before}", f"{day}{part}{before}", f"{span}{within}", f"{day}{before}"))


def _mobile(rng: Random) -> str:
    return "1" + rng.choice(("3", "5", "7", "8", "9")) + _digits(rng, 9)


def _phone(rng: Random) -> str:
    mobile = _mobile(rng)
    area = rng.choice(("010", "021", "0755", "0571", "028", "0731", "0371", "0591", "0451", "0991"))
    line = str(rng.randint(2, 8)) + _digits(rng, 7)
    service = f"400{rng.randint(1, 9)}{_digits(rng, 6)}"
    forms = (
        mobile, mobile, mobile, mobile, f"{mobile[:3]} {mobile[3:7]} {mobile[7:]}",
        f"{mobile[:3]}-{mobile[3:7]}-{mobile[7:]}", f"{mobile[:3]}****{mobile[7:]}", "1xxxxxxxxxx",
        f"{mobile[:3]}xxxx{mobile[7:]}", f"{area}-{line}", f"{area}{line}", service,
        f"{service[:3]}-{service[3:6]}-{service[6:]}", f"95{_digits(rng, 3)}", f"+86{mobile}",
    )  # fmt: skip
    return rng.choice(forms)


def _handle(rng: Random) -> str:
    sound = rng.choice(("ak", "xiao", "lao", "zz", "wx", "ok", "mm", "dd", "feng", "yun", "long", "hui", "jun"))
    return rng.choice((
        f"{sound}{_digits(rng, rng.randint(3, 6))}", f"{sound}_{_digits(rng, 4)}",
        f"{sound}{rng.choice(_LETTERS)}{_digits(rng, 4)}", _mobile(rng),
        f"{sound}-{rng.choice(_LETTERS)}{_digits(rng, 3)}",
    ))  # fmt: skip


def _qq(rng: Random) -> str:
    return str(rng.randint(1, 9)) + _digits(rng, rng.randint(7, 9))


def _link(rng: Random) -> str:
    host = "".join(rng.choice(_LETTERS) for _ in range(rng.randint(2, 6)))
    end = rng.choice(("cn", "com", "cc", "top", "net", "vip", "xyz", "co"))
    path = "".join(rng.choice(_LETTERS + "ABCDEFGH23456789") for _ in range(rng.randint(4, 7)))
    return rng.choice(("http://", "https://", "", "")) + f"{host}.{end}/{path}"


def _code(rng: Random) -> str:
    return _digits(rng, rng.choice((4, 4, 6, 6, 6, 5)))


def _case(rng: Random) -> str:
    year, number = rng.randint(2019, 2026), rng.randint(12, 9899)
    court = rng.choice("京沪粤浙苏鲁川豫湘鄂") + f"{rng.randint(1, 20):02d}{rng.randint(0, 99):02d}"
    kind = rng.choice(("民初", "执", "民诉前调", "民特", "执恢"))
    return rng.choice(
        (f"（{year}）{court}{kind}{number}号", f"({year}){court}{kind}{number}号", f"（{year}）{kind}字第{number}号")
    )


def _idtail(rng: Random) -> str:
    first, last = str(rng.randint(1, 6)) + _digits(rng, 5), _digits(rng, 3) + rng.choice("0123456789X")
    return rng.choice(
        (f"{first[:3]}***********{last}", f"{first}********{last}", f"**************{last}", f"尾号{last}")
    )


def _site(rng: Random) -> str:
    host = rng.choice(("mall", "game", "shop", "bbs", "xin", "hao", "cai", "you", "le", "mei")) + rng.choice(_LETTERS)
    named = rng.choice(words("companies")[:20]) + rng.choice(("商城", "论坛", "官网", "游戏网", "网校", "社区"))
    return rng.choice((f"www.{host}{rng.randint(1, 99)}.com", f"{host}{rng.choice(_LETTERS)}.cn", named))


def _plate(rng: Random) -> str:
    tail = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789") for _ in range(5))
    return rng.choice("京沪粤浙苏鲁川豫湘鄂冀皖闽赣渝陕") + rng.choice("ABCDEFGH") + tail


SLOTS: dict[str, Callable[[Random], str]] = {
    "name": _name,
    "surname": _one_of("surnames"),
    "lender": _two_parts("lenders"),
    "bank": _bank,
    "company": _company,
    "lawfirm": _lawfirm,
    "court": _court,
    "police": _police,
    "city": _one_of("cities"),
    "district": _one_of("districts"),
    "village": _one_of("villages"),
    "school": _school,
    "carrier": _carrier,
    "amount": _amount,
    "price": _price,
    "days": _days,
    "date": _date,
    "time": _time,
    "deadline": _deadline,
    "phone": _phone,
    "wechat": _handle,
    "qq": _qq,
    "link": _link,
    "code": _code,
    "case": _case,
    "card": lambda rng: _digits(rng, 4),
    "idtail": _idtail,
    "site": _site,
    "shop": _one_of("shops"),
    "plate": _plate,
}
"""Slot name -> a function that draws a value."""


# Fills the slots of an authored message with drawn values.


SLOT = re.compile(r"\{(\w+)\}")

# A message that names one of these twice means the same one; two times or two prices are two.
_SAME = frozenset(("name", "lender", "bank", "company", "lawfirm", "court", "school", "amount", "days", "plate"))
# A value may end in the word that the message goes on with: "{deadline}前" and "今天18:00前".
_DOUBLED = (
    (re.compile(r"(?:之前|以前|前)(之前|以前|前)"), r"\1"),
    (re.compile(r"(之前|以前|前)(?:之内|以内|内)"), r"\1"),
    (re.compile(r"(之内|以内|内)(?:之内|以内|内|之前|以前|前)"), r"\1"),
    (re.compile(r"(元|块钱|块)(?:元整|元|块钱|块)"), r"\1"),
    (re.compile(r"(?<=\d)([日号])[日号]"), r"\1"),
    (re.compile(r"([:：]\d\d|点半?)(?:点钟|点整|点)"), r"\1"),
)


def expand(text: str, rng: Random) -> str:
    """Return `text` with every slot filled; the same seed fills it alike.

    Raises InputError for a slot that no list is known for.
    """
    values = draw(text, rng)
    if not values:
        return text
    filled = iter(value for _, value in values)
    pieces = SLOT.split(text)
    pieces[1::2] = filled
    return _undouble(pieces)


def draw(text: str, rng: Random) -> list[tuple[str, str]]:
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


def _undouble(pieces: list[str]) -> str:
    """Join literal text and values, dropping a word that a value and the text behind it both say."""
    text = pieces[0]
    for value, literal in zip(pieces[1::2], pieces[2::2], strict=True):
        seam = len(text) + len(value)
        text += value + literal
        for pattern, once in _DOUBLED:
            match = pattern.search(text, max(0, seam - 4))
            if match and match.start() < seam < match.end():
                text = text[: match.start()] + match.expand(once) + text[match.end() :]
                break
    return text


# Fills the masks of public corpora with synthetic values, so that their messages look like traffic.


_Draw = Callable[[Random], str]


# Largest values by the unit behind a number: "在 <#> 点" filled with 760 is like no traffic, and networks flag it.
_LARGEST = {
    "秒": 59, "分": 59, "点": 23, "时": 23, "日": 31, "号": 31, "月": 12, "折": 9, "楼": 20, "万": 30, "岁": 80, "来": 60,
}  # fmt: skip


def _number(rng: Random, unit: str) -> str:
    return str(rng.randint(1, _LARGEST.get(unit) or 10 ** rng.choice((1, 2, 2, 3, 4)) - 1))


def _numbered(text: str, mask: str, rng: Random) -> str:
    """Fill each `mask` with a number that may stand before the unit behind it."""
    return re.sub(rf"{mask}(?=\s*([{''.join(_LARGEST)}]?))", lambda match: _number(rng, match[1]), text)


def _service(rng: Random) -> str:
    return f"{rng.choice(('400', '95', '10'))}{rng.randint(100, 9_999)}"


_TAGS: dict[str, _Draw] = {
    "DECIMAL": lambda rng: f"{rng.randint(0, 999)}.{rng.randint(1, 9)}",
    "TIME": SLOTS["time"],
    "DATE": SLOTS["date"],
    "EMAIL": lambda rng: f"{SLOTS['wechat'](rng)}@mail.cn",
    "URL": SLOTS["link"],
    "IP": lambda rng: ".".join(str(rng.randint(1, 254)) for _ in range(4)),
}
_WORDS: dict[str, _Draw] = {
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
_WORD = re.compile("|".join(sorted(_WORDS, key=len, reverse=True)))
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
