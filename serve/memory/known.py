"""Known wordings: one human judgement decides on near-copies at once, on every machine.

A wording is kept as hashes of the triples of its clean text, of characters and of sounds, so that numbers, links and
disguises that the normaliser undoes make no difference. The actions match differently:

    block, review   PASS_SHARE of the wording is in the message, and only short slots of the message are outside the
                    wording: then the analyst's word beats the risk. Or
                    BLOCK_SHARE of the wording's triples are in the message, with little around them, and the model
                    finds the message about as suspicious as the wording: a lawful notice may share most of its words
                    with a threat, but its risk differs. If more surrounds the matching part, that part is judged alone.
                    Garbled copies need GARBLED_SHARE, at any risk: garbling lowers the risk, and lawful notices aren't.
    pass            PASS_SHARE of the wording is in the message, and only short slots of the message are outside the
                    wording, at its ends too, so that a threat appended to a known notice does not pass.

Triples rather than pairs: at the same share of near-copies found they hit a third fewer of the lawful twins of threats.
The words that carry a wording's risk (by explanations) separate near-copies from lawful twins no better than the fall
in risk.

A copy is garbled if it differs from the wording by a Han character outside lexicon and GB2312, or, between two parts of
the wording, by letters, marks that ordinary text seldom has, or characters that sound like the wording's. Lawful twins
of threats differ in common words, in letters and marks only next to such words. Each of the four kinds is needed.
"""

import asyncio
import json
import math
import re
import secrets
from collections.abc import Iterable, Sequence
from heapq import nlargest
from itertools import chain, islice
from string import ascii_lowercase
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from jingyin.model.errors import InputError
from jingyin.model.fold import FOLD
from jingyin.model.masks import PLACEHOLDERS
from jingyin.model.near_copies import ALIKE, CHARACTERS, hashes, place, share, units
from jingyin.model.text import CleanString, clean
from jingyin.model.tokenizer import default_lexicon
from jingyin.serve.memory.secret import Secret
from jingyin.serve.memory.state import Op, State

FEWEST = 8
"""Fewest characters of a wording; shorter ones occur in too many messages."""
BLOCK_SHARE, GARBLED_SHARE, PASS_SHARE = 0.65, 0.4, 0.9
LEAST_RISK, FALL = 0.5, 1.25
"""Lowest risk of a near-copy of a threat, and how far its log-odds may fall below the wording's.

Neither applies to a message that explains the wording (see Match).
"""
AROUND, COMPANY = 5, 16
"""Most characters before or after the wording in a near-copy; number from which the matching part is read alone.

A garbled copy with rare characters, which may be at its ends, may have any number below COMPANY around it.
"""
LONGEST_SLOT, COVERED = 3, 0.85
"""Most characters in a row of a message that a wording may leave unexplained; share that it must explain.

Behind a wording to block as many as AROUND may stand (，谢谢配合): a report that quotes it has words before it.
"""

KEPT_SECONDS = 30 * 86_400
"""How long an expired wording is kept: it is back once a clock that was ahead is set right."""

_ANCHORS, _OWNERS = 24, 8  # triples that a wording is looked up by; wordings that one triple leads to
_MET = 0.25  # share of a wording's anchors that a message must contain to be compared with it
_SLOT = re.compile("‹([^‹›]*)›")
# A pattern of kinds, one byte for each unit of UTF-16: "w" in the wording, "r" rare Han, "d" digits, "g" letters, marks
# and what sounds like the wording, "." all else. Letters with digits are codes. Common characters between garbled ones
# may be the wording's, without a whole triple.
_GARBLED = re.compile(rb"(?<=w)g(?:[g.]*g)?(?=w)")

KnownAction = Literal["block", "review", "pass"]


class NewWording(BaseModel):
    """The body of POST /admin/known: either `text`, or `template` as `jingyin campaigns` writes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    action: KnownAction
    text: str | None = Field(None, repr=False)
    template: str | None = Field(None, repr=False)
    note: Annotated[str, Field(max_length=200)] = ""
    seconds: Annotated[float, Field(gt=0, le=10 * 365 * 86_400)] = 30 * 86_400


class Wording(NamedTuple):
    """A judged wording: `odds` are the log-odds of its risk, `until` and `since` Unix seconds.

    `triples` and `sounds` are hashes; `sounds` is empty if an earlier version kept the wording.
    """

    id: str
    action: KnownAction
    note: str
    by: str
    since: float
    until: float
    odds: float
    triples: frozenset[int]
    sounds: frozenset[int]


class Match(NamedTuple):
    """A wording that a message holds, `share` of it, in `part` of the clean text.

    At most `around` characters of the text are before or after that part. `explains`: nearly all of the wording is in
    the text, and only short slots of the text are outside it; `garbled`: see the module.
    """

    wording: Wording
    share: float
    part: CleanString
    around: int
    explains: bool
    garbled: bool


class Index:
    """Finds the wordings that a message contains, in microseconds for ten thousand; immutable."""

    def __init__(self, wordings: Iterable[Wording], salt: np.uint64) -> None:
        self.wordings = list(wordings)
        self._salt = salt
        self._owners: dict[int, list[int]] = {}
        self._wanted: list[int] = []
        for number, wording in enumerate(self.wordings):
            free = (each for each in sorted(wording.triples) if len(self._owners.get(each, ())) < _OWNERS)
            anchors = list(islice(free, _ANCHORS))
            for triple in anchors:
                self._owners.setdefault(triple, []).append(number)
            self._wanted.append(max(1, round(len(anchors) * _MET)))
        self._fewest = min(self._wanted, default=0)

    def find(self, text: str) -> list[Match]:
        """Return up to three wordings of which clean `text` contains BLOCK_SHARE, or is a garbled copy.

        The largest share comes first.
        """
        if not self.wordings:
            return []
        triples = hashes(text, self._salt)
        owners = self._owners
        met = [owners[triple] for triple in triples if triple in owners]
        if len(met) < self._fewest:
            return []
        counts: dict[int, int] = {}
        for numbers in met:
            for number in numbers:
                counts[number] = counts.get(number, 0) + 1
        candidates = [(count, number) for number, count in counts.items() if count >= self._wanted[number]]
        if not candidates:
            return []
        different = frozenset(triples)
        least = 0 if (_kinds(text) == ord("r")).any() else GARBLED_SHARE
        matches = []
        for _, number in nlargest(3, candidates):
            wording = self.wordings[number]
            if (held := share(wording.triples, different)) >= least:
                match = _match(wording, held, text, triples, hashes(text, self._salt, sounds=True))
                if match.garbled or held >= BLOCK_SHARE:
                    matches.append(match)
        return sorted(matches, key=lambda match: -match.share)


_KINDS = np.full(1 << 16, ord("."), np.uint8)
_KINDS[[ord(each) for each in f"{ascii_lowercase}#$*+<=>@\\^_`{{|}}"]] = ord("g")
_KINDS[ord(PLACEHOLDERS["number"])] = ord("d")
_KINDS[0x3400:0xA000] = ord("r")
_COMMON = {*"".join(ALIKE), *(each for each in set(default_lexicon()) if "\u3400" <= each < "\ua000")}
_KINDS[[ord(each) for each in _COMMON]] = ord(".")


def _kinds(text: str) -> NDArray[np.uint8]:
    kinds: NDArray[np.uint8] = _KINDS[units(text)]
    return kinds


def _covered(triples: Sequence[int], held: frozenset[int]) -> NDArray[np.bool_]:
    covered = np.zeros(len(triples) + 2, np.bool_)
    for i, triple in enumerate(triples):
        if triple in held:
            covered[i : i + 3] = True
    return covered


def _match(wording: Wording, held: float, text: str, triples: Sequence[int], sounds: Sequence[int]) -> Match:
    """Compare a wording with clean `text`, which has the share `held` of it, by its triples and its sounds."""
    covered = _covered(triples, wording.triples)
    places = np.flatnonzero(covered)
    gaps = np.diff(np.concatenate([[-1], places, [len(covered)]])) - 1
    gaps[-1] += max(0, len(text) - CHARACTERS)
    around = int(max(gaps[0], gaps[-1]))
    inside = covered[places[0] : places[-1] + 1]
    passes = around <= LONGEST_SLOT and covered.mean() >= COVERED
    blocks = gaps[0] <= LONGEST_SLOT and gaps[-1] <= AROUND and inside.mean() >= COVERED
    explains = held >= PASS_SHARE and gaps[1:-1].max(initial=0) <= LONGEST_SLOT
    explains &= bool(passes if wording.action == "pass" else blocks)
    kinds = _kinds(text)
    kinds[_covered(sounds, wording.sounds)] = ord("g")
    kinds[covered] = ord("w")
    rare = kinds == ord("r")
    # A rare character stands for one of the wording's, whose triples it broke.
    broken = int((rare[:-2] | rare[1:-1] | rare[2:]).sum()) / len(wording.triples)
    odd = around < COMPANY if rare.any() else around <= AROUND and _GARBLED.search(kinds.tobytes()) is not None
    garbled = odd and held >= GARBLED_SHARE * (1 - broken)
    part = CleanString(place(text, int(places[0]), int(places[-1])))
    return Match(wording, held, part, around, explains, garbled)


def log_odds(risk: float) -> float:
    """Return the log-odds of a risk, clipped to within one in a million of 0 and 1."""
    bounded = min(max(risk, 1e-6), 1 - 1e-6)
    return math.log(bounded / (1 - bounded))


def holds(match: Match, risk: float | None, *, alone: bool = False) -> bool:
    """Whether a match decides on a message of this risk (None: not scored); `alone`: the risk is that of its part."""
    if match.wording.action == "pass" or match.explains:
        return match.explains
    if match.garbled:
        return True
    if risk is None or (match.around > AROUND and not alone) or log_odds(risk) <= match.wording.odds - FALL:
        return False
    return match.share == 1 or risk >= LEAST_RISK


class Known:
    """The wordings of a state, with an index of them in this process; `refresh` brings it up to date.

    They expire by the state's clock, the same for all machines.
    """

    def __init__(self, state: State, secret: Secret) -> None:
        self.state = state
        self._secret = secret
        self._wordings: dict[str, Wording] = {}  # with the expired ones, which `_live` leaves out
        self._live: dict[str, Wording] = {}
        self.index = Index((), secret.salt)

    async def add(self, new: NewWording, by: str, risk: float) -> str:
        """Keep a wording of this risk, judged by the key `by`; return its id. Raises InputError if it is too short."""
        if (new.text is None) == (new.template is None):
            raise InputError("wanted one of text and template")
        # The fixed parts of the wording, as clean text.
        if new.text is not None:
            pieces: list[str] = [clean(new.text[:CHARACTERS]).text]
        else:
            spelled = _SLOT.sub(lambda match: PLACEHOLDERS.get(match[1], "\n"), (new.template or "").translate(FOLD))
            pieces = [CleanString(piece) for piece in spelled.split("\n") if piece]
        triples, sounds = (
            frozenset(chain.from_iterable(hashes(each, self._secret.salt, sounds=sounds) for each in pieces))
            for sounds in (False, True)
        )
        if len(triples) + 2 < FEWEST:
            raise InputError(f"a wording needs {FEWEST} characters that are fixed; give more of the message")
        (now,) = await self.state.run([Op("now", "")])
        wording = Wording(
            secrets.token_hex(8), new.action, new.note, by, now, now + new.seconds, log_odds(risk), triples, sounds
        )
        content = json.dumps([*wording[1:-2], sorted(triples), sorted(sounds)])
        await self.state.run([Op("put", "known", (wording.id.encode(), self._secret.seal(content)))])
        await self.refresh()
        return wording.id

    async def remove(self, number: str) -> bool:
        """Forget a wording; False if there is none with this id."""
        await self.refresh()  # it may have been added by another worker just now
        if number not in self._live:
            return False
        await self.state.run([Op("remove", "known", number.encode()), Op("remove", "hits", number.encode())])
        await self.refresh()
        return True

    async def list(self) -> list[dict[str, object]]:
        """Return the wordings with their hits, newest first, without triples."""
        await self.refresh()
        wordings = sorted(self._live.values(), key=lambda wording: -wording.since)
        hits = await self.state.run([Op("field", "hits", wording.id.encode()) for wording in wordings])
        return [
            {
                "id": wording.id, "action": wording.action, "note": wording.note, "by": wording.by,
                "since": round(wording.since), "until": round(wording.until), "hits": int(count or 0),
            }
            for wording, count in zip(wordings, hits, strict=True)
        ]  # fmt: skip

    async def refresh(self) -> None:
        """Apply additions and removals made by any process, and forget expired wordings."""
        now, names = await self.state.run([Op("now", ""), Op("fields", "known")])
        listed = {name.decode() for name in names}
        wordings = {number: wording for number, wording in self._wordings.items() if number in listed}
        new = sorted(listed - wordings.keys())
        for start in range(0, len(new), 500):
            part = new[start : start + 500]
            sealed = await self.state.run([Op("field", "known", number.encode()) for number in part])
            wordings |= {number: _read(number, text) for number, content in zip(part, sealed, strict=True)
                         if content and (text := self._secret.open(content))}  # fmt: skip
        live = {number: wording for number, wording in wordings.items() if wording.until > now}
        expired = [number for number in wordings.keys() - live.keys() if wordings[number].until <= now - KEPT_SECONDS]
        if expired:
            tables = ("known", "hits")
            await self.state.run([Op("remove", table, number.encode()) for number in expired for table in tables])
        self._wordings = wordings
        if live.keys() != self._live.keys():
            self._live = live
            index = await asyncio.to_thread(Index, live.values(), self._secret.salt)
            if self._live is live:  # else another call has newer ones, and may have been faster
                self.index = index


def _read(number: str, content: str) -> Wording:
    action, note, by, since, until, odds, triples, *sounds = json.loads(content)
    return Wording(number, action, note, by, since, until, odds, frozenset(triples), frozenset(*sounds))
