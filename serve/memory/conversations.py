"""Conversations and bursts: threats that appear only across several messages.

A conversation is the messages from one sender to one receiver: a message is scored alone, and again appended to the
last EARLIER ones that passed, and the stronger action counts. Only messages that passed are joined: the receiver has
most likely read them, and one threat, or one false alarm, then doesn't stop all later messages. Clean texts are kept
for at most ten minutes.

A burst is many near-copies in a short time: a message of some risk that would pass is held when more than `count`
near-copies came before it. Near-copies share most of a sketch (model/near_copies.py); a low quantile of the earlier
counts of its hashes estimates their number.
"""

from collections.abc import Sequence

from jingyin.model.near_copies import CHARACTERS, sketch
from jingyin.model.text import CleanString
from jingyin.serve.memory.secret import Secret
from jingyin.serve.memory.state import Op
from jingyin.serve.settings import BurstSettings, ConversationSettings

EARLIER = 2
"""Most earlier messages that a new one is joined with."""
SKETCH = 8
"""Hashes by which near-copies are counted."""

_RANK = 3  # index in the ascending counts: three hashes may be of characters that the sender changed
_MARKS = tuple(" ,.!?;:。、")


class JoinedText(CleanString):
    """The clean text of several messages: scored, but neither cached nor counted as a message."""

    __slots__ = ()


class Conversations:
    """Keeps the last messages of each conversation in the state, and joins them."""

    def __init__(self, settings: ConversationSettings, secret: Secret) -> None:
        self._seconds = settings.seconds
        self._secret = secret

    def slot(self, key: str, sender: str, receiver: str) -> str:
        """Return the state's key of a conversation seen by the API key `key`."""
        return "v:" + self._secret.hash(key, "conversation", sender, receiver)

    def ask(self, slot: str, text: str, *, keep: bool) -> Op:
        """Return the operation that gets the messages before clean `text`, and with `keep` stores it for later ones."""
        return Op("shift", slot, self._secret.seal(text[:CHARACTERS]) if keep and text else b"", self._seconds)

    def joined(self, text: str, kept: Sequence[bytes]) -> JoinedText | None:
        """Return clean `text` appended to those sealed in `kept`, newest first, without copies; None without any."""
        piece = text[:CHARACTERS]
        opened = (self._secret.open(sealed) for sealed in kept)
        earlier = [message for message in dict.fromkeys(opened) if message and message != piece][:EARLIER]
        if not earlier or not piece:
            return None
        # Pieces that end without a mark get a comma, which restores a text that was cut at one.
        marked = [message if message.endswith(_MARKS) else f"{message}," for message in reversed(earlier)]
        return JoinedText("".join([*marked, piece]))


class Bursts:
    """Counts near-copies of suspicious messages in the state."""

    def __init__(self, settings: BurstSettings, secret: Secret) -> None:
        self.settings = settings
        self._secret = secret

    def ask(self, text: str) -> list[Op]:
        """Return the operations that count clean `text`."""
        window = self.settings.window_seconds
        found = sketch(text, self._secret.salt, SKETCH)
        return [Op("tally", "b:" + self._secret.hash("burst", str(each)), 1, window) for each in found]

    def near_copies(self, counts: Sequence[float]) -> int:
        """Return the number of earlier near-copies, given the results of `ask`."""
        return round(sorted(counts)[len(counts) * _RANK // SKETCH]) if counts else 0
