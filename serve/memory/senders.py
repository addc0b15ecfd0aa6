"""Suspects: senders and contacts of flagged messages, whose next suspicious message is held.

A message that the model alone passes, of a risk from `risk` on, gets review when its sender, or a contact that it
holds, stood in a flagged message less than `seconds` ago; twice that if another was blocked meanwhile. So does, of any
risk, one that has COPIED of the triples of a flagged message of its sender: whoever edits what did not arrive keeps
most of it; and every message of a sender who had STRIKES flagged, unless OFTEN times as many passed. Whoever sends much
is judged by shares: a sender by more than 1 flagged message in SHARE, so that a stolen account does not silence a bank;
a contact that was passed more often than flagged is everybody's, such as a hotline.

What passes is counted by a sample, so that ordinary traffic costs next to nothing.
"""

import random
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from jingyin.model.labels import Action
from jingyin.serve.memory.known import hashes
from jingyin.serve.memory.secret import Secret
from jingyin.serve.memory.state import Op

SHARE = 500
"""Messages of a sender for each flagged one above which it is not held."""
SAMPLE = 16
"""One in so many messages that pass is counted, and counts for all of them."""
COPIED = 0.4
"""Share of the triples of a flagged message in an edited one."""
STRIKES, OFTEN = 3, 10
"""Flagged messages of a sender from which on all of its messages are held; passed ones for each, at most."""
SENDER, CONTACT = "s:", "c:"
"""How keys of marks begin; the rest is a hash."""


class SenderSettings(BaseModel):
    """How long a sender or contact is under suspicion, and what of it is held then."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: Annotated[float, Field(gt=0, le=30 * 86_400)] = 86_400.0
    risk: Annotated[float, Field(gt=0, le=1)] = 0.05


class Suspects:
    """Asks the state for the senders and contacts of messages, and tells it of those of flagged ones."""

    def __init__(self, settings: SenderSettings, secret: Secret, chance: Callable[[], float] = random.random) -> None:
        """`chance` gives numbers from 0 to 1, for the sample."""
        self._settings = settings
        self._secret = secret
        self._chance = chance

    def sender(self, key: str, sender: str) -> str:
        """Return the mark of a sender that the API key `key` named."""
        return SENDER + self._secret.hash(key, "sender", sender)

    def marks(self, key: str, sender: str | None, contacts: Sequence[str]) -> list[str]:
        """Return the marks of a message."""
        found = [CONTACT + self._secret.hash(key, "contact", each) for each in contacts]
        return [self.sender(key, sender), *found] if sender else found

    def ask(self, marks: Sequence[str], text: str, action: Action) -> list[Op]:
        """Return what to run for a message with clean `text`; `suspicious` reads the results if it passed."""
        seconds = self._settings.seconds
        copies = [
            Op("shift", f"w:{each.removeprefix(SENDER)}", b"", seconds) for each in marks if each.startswith(SENDER)
        ]
        if action != "pass":
            again = 2 * seconds if action == "block" else seconds
            flagged = [(Op("mark", each, again, seconds), Op("tally", f"f{each}", 1, seconds)) for each in marks]
            sketch = self._secret.seal(" ".join(map(str, self._triples(text))))
            return [*(op for pair in flagged for op in pair), *(op._replace(value=sketch) for op in copies)]
        looks = [
            (Op("marked", each), Op("tally", f"f{each}", 0, seconds), Op("tally", f"n{each}", 0, seconds))
            for each in marks
        ]
        return [*(op for look in looks for op in look), *copies]

    def passed(self, marks: Sequence[str]) -> list[Op]:
        """Return what to run once a message passes after all: what is held must not speak for its sender."""
        if self._chance() * SAMPLE >= 1:
            return []
        return [Op("tally", f"n{each}", SAMPLE, self._settings.seconds) for each in marks]

    def suspicious(self, marks: Sequence[str], text: str, risk: float, results: Sequence[Any]) -> str | None:
        """Return "sender" or "contact" if a message that passes is to be held, by the results of what `ask` gave."""
        enough = risk >= self._settings.risk
        for i, mark in enumerate(marks):
            marked, flagged, others = results[3 * i : 3 * i + 3]
            is_sender = mark.startswith(SENDER)
            if not marked or others > (SHARE if is_sender else 1) * max(1.0, flagged):
                continue
            if enough or (is_sender and (_strikes(flagged, others) or self._copied(text, results[-1]))):
                return "sender" if is_sender else "contact"
        return None

    def _triples(self, text: str) -> set[int]:
        return set(hashes(text, self._secret.salt))

    def _copied(self, text: str, kept: Sequence[bytes]) -> bool:
        """Whether clean `text` repeats one of the flagged messages that were kept."""
        triples = self._triples(text)
        opened = (set(map(int, (self._secret.open(each) or "").split())) for each in kept)
        return any(each and len(each & triples) >= COPIED * len(each) for each in opened)


def _strikes(flagged: float, others: float) -> bool:
    return flagged >= STRIKES and others <= OFTEN * flagged
