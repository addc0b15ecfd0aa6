"""Conversations: the last messages from one sender to one receiver, so that a threat in parts is read as one text too.

Off unless the settings have `conversations`, and then for messages with a key: whatever a gateway makes of sender and
receiver. What is done with a joined text is in joined.py.

Kept in memory, and nowhere else: up to EARLIER clean texts of a conversation, in which numbers, links and amounts are
masked, by a hash of its key. Each goes after `seconds`, at most ten minutes, or before that, the oldest first, when
`megabytes` are full. The hash is keyed with a salt of the process: nobody can look up a sender without it, and nobody
can prepare keys that collide. Each worker keeps the conversations that it sees itself.
"""

import secrets
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from jingyin.model.text import CleanString, clean

EARLIER = 2
"""Messages that a new one is joined with, at most."""
CHARACTERS = 500
"""So much of each message is joined: seven parts of an SMS."""

_ENTRY_BYTES = 300  # of a text in the map: its slot, its number and time, and their part of the table
_MARKS = tuple(" ,.!?;:。、")


class ConversationSettings(BaseModel):
    """How long, and in how much memory, messages are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: Annotated[float, Field(gt=0, le=600)] = 600.0
    """Age at which a message is forgotten."""
    megabytes: Annotated[int, Field(ge=1, le=16_384)] = 64
    """MiB of each worker; a message of 30 characters takes half a kilobyte."""


class JoinedText(CleanString):
    """The clean text of several messages: scored, but neither cached nor counted as a message."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Kept:
    number: int
    arrival: float
    text: str = field(repr=False)


class Conversations:
    """The last clean texts of conversations, in bounded memory; not safe to share between threads.

    A time `now` is in seconds and never falls. `used` and `budget` are in bytes.
    """

    def __init__(self, settings: ConversationSettings) -> None:
        self.budget = settings.megabytes << 20
        self.used = 0
        self._seconds = settings.seconds
        self._salt = secrets.token_bytes(32)
        self._numbers = count()
        # By slot, in order of arrival. A conversation has EARLIER slots: its hash and a number.
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def join(self, key: str, text: str, now: float, *, keep: bool) -> JoinedText | None:
        """Return message `text` behind those that came before it in the conversation `key`, None if none did.

        With `keep` it is joined with those after it. A text that comes again is joined once.
        """
        self.expire(now)
        piece = _piece(text)
        if not piece:
            return None
        slots = self._slots(key)
        before = sorted((slot for slot in slots if slot in self._kept), key=lambda slot: self._kept[slot].number)
        same = [slot for slot in before if self._kept[slot].text == piece]
        earlier = [self._kept[slot].text for slot in before if slot not in same]
        if keep:
            free = same or [slot for slot in slots if slot not in before] or before
            self._put(free[0], _Kept(next(self._numbers), now, piece))
        return _join([*earlier, piece]) if earlier else None

    def forget(self, key: str, text: str) -> None:
        """Forget message `text` of the conversation `key`."""
        piece = _piece(text)
        for slot in self._slots(key):
            if slot in self._kept and self._kept[slot].text == piece:
                self._drop(slot)

    def expire(self, now: float) -> None:
        """Forget what is too old."""
        while self._kept and now - self._kept[self._oldest()].arrival >= self._seconds:
            self._drop(self._oldest())

    def _slots(self, key: str) -> list[bytes]:
        digest = blake2b(key.encode("utf-8", "surrogatepass"), key=self._salt, digest_size=16).digest()
        return [digest + bytes([number]) for number in range(EARLIER)]

    def _oldest(self) -> bytes:
        return next(iter(self._kept))

    def _put(self, slot: bytes, kept: _Kept) -> None:
        if slot in self._kept:
            self._drop(slot)
        self._kept[slot] = kept
        self.used += _size(kept)
        while self.used > self.budget:
            self._drop(self._oldest())

    def _drop(self, slot: bytes) -> None:
        self.used -= _size(self._kept.pop(slot))


def _piece(text: str) -> str:
    """Return what of a message is joined; a plain string, which takes half of the memory of its subclass."""
    return str(clean(text[:CHARACTERS]).text[:CHARACTERS])


def _join(pieces: list[str]) -> JoinedText:
    """Join with a comma behind each piece that has no mark there: what was cut at a comma is as it was."""
    marked = [piece if piece.endswith(_MARKS) else f"{piece}," for piece in pieces[:-1]]
    return JoinedText("".join([*marked, pieces[-1]]))


def _size(kept: _Kept) -> int:
    return sys.getsizeof(kept.text) + _ENTRY_BYTES
