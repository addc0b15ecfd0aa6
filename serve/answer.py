"""A message's answer or the refusal of a request, its origin, and the context in which memory judges it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from jingyin.model.errors import JingyinError
from jingyin.model.labels import Action

if TYPE_CHECKING:
    from jingyin.serve.scorer import Scored


class RefusedError(JingyinError):
    """A request that is refused with the HTTP status `status`."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class Answer(NamedTuple):
    """The answer to a message: its reading, if there is one, the action, and the reason for it.

    `reason` is "scored", "deadline" (not read to the end), "error", or one of memory's; `more` are memory's fields.
    """

    scored: "Scored | None"
    action: Action
    reason: str
    more: Mapping[str, Any] = {}


class Origin(NamedTuple):
    """The origin of a request's messages, and their deadline, a time of the event loop.

    `client`, the API key's name or else the address, is charged for their place in the queue. `key` is that name or "".
    """

    client: str
    key: str
    sender: str | None
    receiver: str | None
    deadline: float
    route: str | None = None


class Context(NamedTuple):
    """The context that memory gets with the answer; `now` is a time of the event loop.

    `read` reads another text before the message's deadline; it is neither cached nor counted as a message. `text` is
    the message, for an answer without a reading.
    """

    origin: Origin
    now: float
    read: "Callable[[str], Awaitable[Scored | None]]"
    text: str = ""
