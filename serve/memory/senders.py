"""Suspects: senders and contacts of flagged messages, whose next suspicious message is held.

A message that the model alone would pass gets review

- if its risk is at least `risk`, and its sender or a contact in it occurred in a flagged message less than `seconds`
  ago, or twice that if another was blocked meanwhile;
- if it has COPIED of the triples of a flagged message of its sender: people who edit a stopped message keep most of it;
- if its sender had STRIKES messages flagged, unless OFTEN times as many passed.

Frequent senders and contacts are exempt: a sender with fewer than one flagged message in SHARE, so that a stolen
account does not silence a bank; and a contact, such as a hotline, that passed more often than it was flagged.

Messages that pass are counted by a sample, so that ordinary traffic costs next to nothing.

Contacts are the items that the normaliser masks (model/masks.py): phones, bank cards, e-mail addresses, long numbers
(QQ, accounts, handles with digits) and links; and handles without digits after a word such as 微信. Each is brought to
one form: 138-1234-5678 and +8613812345678 are equal, and a link counts by its registered domain. Numbers sent masked,
codes, amounts, dates and five-digit service numbers aren't contacts.
"""

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from jingyin.model.fold import FOLD
from jingyin.model.labels import Action
from jingyin.model.masks import PLACEHOLDERS, mask
from jingyin.model.near_copies import hashes, share
from jingyin.serve.memory.secret import Secret
from jingyin.serve.memory.state import Op
from jingyin.serve.settings import SenderSettings

SHARE = 500
"""A sender with more messages than this for each flagged one is exempt."""
SAMPLE = 16
"""Of the messages that pass, one in this many is counted, as this many."""
COPIED = 0.4
"""Share of the triples of a flagged message in an edited one."""
STRIKES, OFTEN = 3, 10
"""Flagged messages after which all messages of a sender are held; most messages passed for each of them."""
SENDER, CONTACT = "s:", "c:"
"""Prefixes of the keys of marks; the rest is a hash."""


class Suspects:
    """Looks up the senders and contacts of messages in the state, and records those of flagged messages."""

    def __init__(self, settings: SenderSettings, secret: Secret, chance: Callable[[], float] = random.random) -> None:
        """`chance` gives numbers from 0 to 1, for the sample."""
        self._settings = settings
        self.risk = settings.risk
        self._secret = secret
        self._chance = chance

    def sender(self, key: str, sender: str) -> str:
        """Return the mark of a sender that the API key `key` named."""
        return SENDER + self._secret.hash(key, "sender", sender)

    def marks(self, key: str, sender: str | None, contacts: Sequence[str]) -> list[str]:
        """Return the marks of a message."""
        contact_marks = [CONTACT + self._secret.hash(key, "contact", each) for each in contacts]
        return [self.sender(key, sender), *contact_marks] if sender else contact_marks

    def ask(self, marks: Sequence[str], text: str, action: Action) -> list[Op]:
        """Return the operations for a message with clean `text`; `suspicious` reads the results if it passed."""
        seconds = self._settings.seconds
        copies = [
            Op("shift", f"w:{each.removeprefix(SENDER)}", b"", seconds) for each in marks if each.startswith(SENDER)
        ]
        if action != "pass":
            again = 2 * seconds if action == "block" else seconds
            flagged = [(Op("mark", each, again, seconds), Op("tally", f"f{each}", 1, seconds)) for each in marks]
            sketch = self._secret.seal(" ".join(map(str, set(hashes(text, self._secret.salt)))))
            return [*(op for pair in flagged for op in pair), *(op._replace(value=sketch) for op in copies)]
        looks = [
            (Op("marked", each), Op("tally", f"f{each}", 0, seconds), Op("tally", f"n{each}", 0, seconds))
            for each in marks
        ]
        return [*(op for look in looks for op in look), *copies]

    def passed(self, marks: Sequence[str]) -> list[Op]:
        """Return the operations for a message that finally passes: held ones must not count in its sender's favour."""
        if self._chance() * SAMPLE >= 1:
            return []
        return [Op("tally", f"n{each}", SAMPLE, self._settings.seconds) for each in marks]

    def suspicious(self, marks: Sequence[str], text: str, risk: float, results: Sequence[Any]) -> str | None:
        """Return "sender" or "contact" if a message that passes is to be held, given the results of `ask`."""
        enough = risk >= self.risk
        for i, mark in enumerate(marks):
            marked, flagged, others = results[3 * i : 3 * i + 3]
            is_sender = mark.startswith(SENDER)
            if not marked or others > (SHARE if is_sender else 1) * max(1.0, flagged):
                continue
            strikes = flagged >= STRIKES and others <= OFTEN * flagged
            if enough or (is_sender and (strikes or self._copied(text, results[-1]))):
                return "sender" if is_sender else "contact"
        return None

    def _copied(self, text: str, kept: Sequence[bytes]) -> bool:
        """Whether clean `text` repeats one of the `kept` flagged messages."""
        triples = frozenset(hashes(text, self._secret.salt))
        opened = (set(map(int, (self._secret.open(each) or "").split())) for each in kept)
        return any(share(each, triples) >= COPIED for each in opened)


# ---- the contacts of a message

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
