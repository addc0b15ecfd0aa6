"""Messages as a stream: checked, and cut into chunks."""

from collections.abc import Iterable, Iterator
from itertools import islice

from jingyin.model.errors import InputError

CHUNK = 512
"""Messages that are read ahead at most."""


def chunks(texts: Iterable[str], size: int) -> Iterator[tuple[list[str], BaseException | None]]:
    """Yield lists of at most `size` messages, and with the last one what ended the stream early, if anything did.

    An interrupt (Ctrl-C while `texts` waits for input) is held back like an error: what was read is answered first.
    """
    stream = _checked(texts)
    while True:
        chunk: list[str] = []
        try:
            for text in islice(stream, size):
                chunk.append(text)  # noqa: PERF402  extend would lose what came before an error
        except BaseException as error:
            yield chunk, error
            return
        if not chunk:
            return
        yield chunk, None


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"message {number} of the stream is {type(text).__name__}, wanted str; decode bytes first "
                "(jingyin.serve.sms.decode) and drop missing values"
            )
        yield text
