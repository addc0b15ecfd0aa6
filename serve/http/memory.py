"""Conversations: the last messages from one sender to one receiver, so that a threat in parts is read as one text too.

Off unless the settings have `conversations`, and then for messages with a key: whatever a gateway makes of sender and
receiver. What is done with a joined text is in joined.py.

Kept in memory, and nowhere else: up to EARLIER clean texts of a conversation, in which numbers, links and amounts are
masked, by a hash of its key. Each goes after `seconds`, at most ten minutes, or before that, the oldest first, when
`megabytes` are full. The hash is keyed with a salt of the process: nobody can look up a sender without it, and nobody
can prepare keys that collide. Each worker keeps the conversations that it sees itself.
"""

import math
import secrets
import sys
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from jingyin.model.labels import ACTIONS, Verdict
from jingyin.model.text import CleanString, clean

if TYPE_CHECKING:
    from jingyin.serve.http.observe import Metrics
    from jingyin.serve.http.service import Answer, Context
    from jingyin.serve.http.settings import Settings

EARLIER = 2
"""Messages that a new one is joined with, at most."""
CONVERSATION_CHARACTERS = 500
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
    return str(clean(text[:CONVERSATION_CHARACTERS]).text[:CONVERSATION_CHARACTERS])


def _join(pieces: list[str]) -> JoinedText:
    """Join with a comma behind each piece that has no mark there: what was cut at a comma is as it was."""
    marked = [piece if piece.endswith(_MARKS) else f"{piece}," for piece in pieces[:-1]]
    return JoinedText("".join([*marked, pieces[-1]]))


def _size(kept: _Kept) -> int:
    return sys.getsizeof(kept.text) + _ENTRY_BYTES


# Bursts: a wording that the model alone finds only suspicious is held when many messages are nearly the same.
#
# Off unless the settings have `burst`. A message whose risk is at least `burst.risk` is counted; if it would pass and
# more than `burst.count` near-duplicates came before it in the window, it gets the action review and the reason "burst".
# Messages of less risk are neither counted nor held, so bulk senders of codes and advertisements are not even looked at.
#
# The sketch of a message is its KEYS smallest trigram hashes (bottom-k, Broder 1997), over the clean text of its first
# CHARACTERS, so that numbers, links and what the normaliser undoes make no difference. Each hash has a cell of one array
# of counts; no hash, key or text is kept. Near-duplicates share most of their smallest hashes, other messages few of
# them, so a low median of the cells says how many came before. What other messages left in the cells by collision is
# known on average and taken off (count-mean-min, Deng & Rafiei 2007). Counts fade exponentially: the newest weighs 1, one
# that is `window_seconds` old 1/e, so that a steady stream has the count of a sliding window of that length.
#
# The array is all the memory there is: 8 MiB, whatever comes. The hash is salted anew in each process, so nobody can
# prepare messages that collide. Each worker counts what it sees itself: behind a balancer n workers see a campaign's
# n-th part each, so divide `burst.count` by n.


KEYS = 8
"""Hashes of a sketch."""
BURST_CHARACTERS = 500
"""So much of each message is sketched: seven parts of an SMS. It is cleaned on the event loop, while others wait."""
CELLS = 1_048_573
"""Counts that are kept, 8 bytes each; a prime, so that all bits of a hash choose the cell."""

_RANK = 3  # of the ascending counts of KEYS cells: three hashes may be of characters that the sender changed
_WINDOW = np.dtype("<u8")  # four units of UTF-16; the salt's low zeros drop the fourth
_PADDING = "\n\n\n".encode(
    "utf-16-le"
)  # no clean text holds a line feed: the last characters begin trigrams of their own
_STEEP = 500.0  # exponent of a weight from which all counts are scaled down; floats end at 709


class BurstSettings(BaseModel):
    """When a suspicious message that comes in bulk is held."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    risk: Annotated[float, Field(gt=0, le=1)] = 0.2
    """The least risk of a message that is counted and may be held."""
    count: Annotated[int, Field(ge=1)] = 20
    """Near-duplicates in the window above which it is held."""
    window_seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """Age at which a count has faded to 1/e."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedVerdict(Verdict):
    """A verdict on a message that was counted: `near_duplicates` came before it; `held` if it would have passed."""

    near_duplicates: int
    held: bool


class BurstCounter:
    """Counts near-duplicates in a fading window, in fixed memory; not safe to share between threads."""

    def __init__(self, window_seconds: float) -> None:
        self._window = window_seconds
        self._salt = np.uint64((secrets.randbits(48) | 1) << 16)
        self._cells = array("d", bytes(8 * CELLS))
        self._total = 0.0
        self._start: float | None = None

    def count(self, text: str, now: float) -> float:
        """Return how many messages like clean `text` came before it, faded, and count it.

        `now` is a time in seconds that never falls.
        """
        keys = self._keys(text)
        if not keys:
            return 0.0
        # Forward decay (Cormode et al. 2009): new messages weigh ever more instead of all cells ever less.
        weight = self._weight(now)
        cells = self._cells
        found = sorted([cells[key] for key in keys])[len(keys) * _RANK // KEYS] - self._total / CELLS
        for key in keys:
            cells[key] += weight
        self._total += weight * len(keys)
        return found / weight if found > 0 else 0.0

    def _keys(self, text: str) -> set[int]:
        data = text.encode("utf-16-le", "surrogatepass") + _PADDING
        # Overlapping windows of one buffer; a product with an odd number is a hash whose order is as good as random.
        hashes = np.ndarray((len(data) >> 1) - 3, _WINDOW, data, 0, (2,)) * self._salt
        hashes.sort()
        return {each % CELLS for each in hashes[:KEYS].tolist()}

    def _weight(self, now: float) -> float:
        if self._start is None:
            self._start = now
        exponent = (now - self._start) / self._window
        if exponent < _STEEP:
            return math.exp(exponent)
        fade = math.exp(-exponent) if exponent < 700 else 0.0
        cells = np.frombuffer(self._cells, np.float64)
        cells *= fade
        self._total *= fade
        self._start = now
        return 1.0


class Bursts:
    """Counts verdicts on suspicious messages, and holds those that come in bulk."""

    def __init__(self, settings: BurstSettings) -> None:
        self._settings = settings
        self._counter = BurstCounter(settings.window_seconds)

    def judge(self, text: str, verdict: Verdict, now: float) -> Verdict:
        """Return a CountedVerdict if the message is suspicious, held or not, and otherwise the verdict as it is."""
        if verdict.risk < self._settings.risk:
            return verdict
        near = round(self._counter.count(clean(text[:BURST_CHARACTERS]).text, now))
        held = near > self._settings.count and verdict.action == "pass"
        known = {each.name: getattr(verdict, each.name) for each in fields(verdict)}
        return CountedVerdict(
            **{**known, "action": "review" if held else verdict.action}, near_duplicates=near, held=held
        )


# Both of them, for the messages of a service.


class LocalMemory:
    """Bursts and conversations of one worker; see service.Memory."""

    def __init__(
        self, burst: BurstSettings | None, conversations: ConversationSettings | None, metrics: "Metrics"
    ) -> None:
        self._burst = burst
        self._counter = BurstCounter(burst.window_seconds) if burst else None
        self._conversations = Conversations(conversations) if conversations else None
        self._near = metrics.histogram("near_duplicates", "Before a suspicious message.", (1, 2, 4, 8, 16, 32, 64, 256))
        self._joined = metrics.counter("joined_texts", "Joined texts, by what they did to the action.", "outcome")
        self._bytes = metrics.gauge("conversation_bytes", "Memory of messages of conversations.")

    def tend(self) -> None:
        """Forget what will be too old in a second."""
        if self._conversations is not None:
            self._conversations.expire(monotonic() + 1)
            self._bytes.set(self._conversations.used)

    async def judge(self, context: "Context", answer: "Answer") -> "Answer":
        """Hold what is suspicious and comes in bulk; read a message behind those before it, the stronger action counts."""
        from jingyin.serve.http.service import Answer

        scored = answer.scored
        if scored is None:
            return answer
        if self._counter and self._burst and scored.decision.risk >= self._burst.risk:
            near = round(self._counter.count(clean(scored.clean.original[:BURST_CHARACTERS]).text, context.now))
            self._near.observe(near)
            answer = answer._replace(more={"near_duplicates": near})
            if near > self._burst.count and answer.action == "pass":
                answer = answer._replace(action="review", reason="burst")
        sender, receiver = context.origin.sender, context.origin.receiver
        if self._conversations is None or not (sender and receiver and scored.final) or answer.action == "block":
            return answer
        key, text = f"{context.origin.key}\0{sender}\0{receiver}", scored.clean.original
        whole = self._conversations.join(key, text, context.now, keep=answer.action == "pass")
        if whole is None:
            return answer
        joined = await context.read(whole)
        if joined is None:
            self._joined("unscored").inc()
        elif ACTIONS.index(joined.decision.action) > ACTIONS.index(answer.action):
            self._joined("raised").inc()
            self._conversations.forget(key, text)
            return Answer(joined._replace(clean=scored.clean), joined.decision.action, "conversation", answer.more)
        else:
            self._joined("same").inc()
        return answer


def make_memory(settings: "Settings", metrics: "Metrics") -> LocalMemory | None:
    """Return what the settings ask for."""
    kept = settings.burst or settings.conversations
    return LocalMemory(settings.burst, settings.conversations, metrics) if kept else None
