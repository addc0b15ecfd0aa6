"""Suspects: senders and contacts of flagged messages, whose next suspicious message is held.

A message that the model alone passes, of a risk from `risk` on, gets review when its sender, or a contact that it
holds, stood in a flagged message less than `seconds` ago; twice that if another was blocked meanwhile. Whoever sends
much is judged by shares: a sender by more than 1 flagged message in SHARE, so that a stolen account does not silence a
bank; a contact that was passed more often than flagged is everybody's, such as a hotline.

What passes is counted by a sample, so that ordinary traffic costs next to nothing.
"""

import random
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from jingyin.model.labels import Action
from jingyin.serve.memory.secret import Secret
from jingyin.serve.memory.state import Op

SHARE = 500
"""Messages of a sender for each flagged one above which it is not held."""
SAMPLE = 16
"""One in so many messages that pass is counted, and counts for all of them."""
SENDER, CONTACT = "s:", "c:"
"""How keys of marks begin; the rest is a hash."""


class SenderSettings(BaseModel):
    """How long a sender or contact is under suspicion, and what of it is held then."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: Annotated[float, Field(gt=0, le=30 * 86_400)] = 86_400.0
    risk: Annotated[float, Field(gt=0, le=1)] = 0.1


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

    def ask(self, marks: Sequence[str], action: Action, risk: float) -> list[Op]:
        """Return what to run for a message; `suspicious` reads the results if it passed with enough risk."""
        seconds = self._settings.seconds
        if action != "pass":
            again = 2 * seconds if action == "block" else seconds
            flagged = [(Op("mark", each, again, seconds), Op("tally", f"f{each}", 1, seconds)) for each in marks]
            return [op for pair in flagged for op in pair]
        if risk >= self._settings.risk:
            return [
                op
                for each in marks
                for op in (
                    Op("marked", each), Op("tally", f"f{each}", 0, seconds), Op("tally", f"n{each}", 0, seconds),
                )
            ]  # fmt: skip
        counted = [each for each in marks if self._chance() * SAMPLE < 1]
        return [Op("tally", f"n{each}", SAMPLE, seconds) for each in counted]

    def suspicious(self, marks: Sequence[str], risk: float, results: Sequence[Any]) -> str | None:
        """Return "sender" or "contact" if a message that passes is to be held, by the results of what `ask` gave."""
        if risk < self._settings.risk:
            return None
        for i, mark in enumerate(marks):
            marked, flagged, others = results[3 * i : 3 * i + 3]
            most = (SHARE if mark.startswith(SENDER) else 1) * max(1.0, flagged)
            if marked and others <= most:
                return "sender" if mark.startswith(SENDER) else "contact"
        return None
