"""Contacts: the numbers, accounts and links in a message by which its writer is paid or reached.

They are the items that the normaliser masks (model/masks.py): phones, bank cards, e-mail addresses, long numbers (QQ,
accounts, handles with digits) and links; and handles without digits after a word such as 微信. Each is brought to one
form: 138-1234-5678 and +8613812345678 are equal, and a link counts by its registered domain. Numbers sent masked,
codes, amounts, dates and five-digit service numbers aren't contacts.
"""

import re

from jingyin.model.fold import FOLD
from jingyin.model.masks import PLACEHOLDERS, mask

MOST = 8
"""Most contacts of a message that count."""
CHARACTERS = 1_000
"""Characters of a message that are searched."""

_KINDS = {PLACEHOLDERS[kind]: kind for kind in ("phone", "bank_card", "email", "link", "number")}
MASKS = frozenset(_KINDS)
"""Placeholders that stand for contacts in clean text."""
_WORDS = "微信|薇信|威信|v信|wechat|weixin|vx|wx|qq|扣扣|telegram|tg|飞机"
_HANDLE = re.compile(rf"(?:{_WORDS})[号:：是加为@ ]{{0,4}}([a-z][a-z0-9_-]{{5,19}})")
_SECOND_LEVEL = frozenset(("com", "net", "org", "gov", "edu", "ac", "co", "idv"))


def contacts(text: str) -> list[str]:
    """Return the contacts of a message, at most MOST, each prefixed with its kind."""
    folded = text[:CHARACTERS].translate(FOLD)
    found = [f"handle {match[1]}" for match in _HANDLE.finditer(folded)]
    for start, end, placeholder in mask(folded, {}):
        if (kind := _KINDS.get(placeholder)) and (form := _form(kind, folded[start:end])):
            found.append(form)
    return list(dict.fromkeys(found))[:MOST]


def has_contact(clean_text: str) -> bool:
    """Whether `contacts` might find something; looks only at the clean text, which is much cheaper."""
    return not MASKS.isdisjoint(clean_text) or _HANDLE.search(clean_text) is not None


def _form(kind: str, written: str) -> str | None:
    """Return the canonical form of a contact, or None if it isn't one."""
    if kind == "link":
        return f"link {_domain(written)}"
    if kind == "email":
        return f"email {written}"
    if kind == "number":
        if not re.fullmatch(r"(?:qq|wx|vx|v)?[\d,.]+", written):
            return f"handle {written}"
    elif re.search("[*x]", written):  # sent masked
        return None
    digits = re.sub(r"\D", "", written)
    if kind == "phone":
        digits = re.sub(r"^(?:00)?86(?=1\d{10}$)", "", digits)
    return f"number {digits}" if len(digits) >= 6 else None


def _domain(link: str) -> str:
    """Return the registered domain of a link, or the whole host if it is an IP address."""
    host = re.sub(r"^https?://", "", link)
    host = re.split(r"[/?#:]", host, maxsplit=1)[0].rpartition("@")[2].strip(".")
    labels = host.split(".")
    if labels[-1].isdigit():
        return host
    kept = 3 if len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVEL else 2
    return ".".join(labels[-kept:])
