"""Handles bytes that aren't text in their stated encoding: marks or replaces them, or guesses the encoding."""

import codecs
import re
from collections.abc import Sequence

from jingyin.model.errors import ConfigError

KEEP = "jingyin"
"""Name of an error handler for decoding: each byte that isn't text becomes a lone surrogate, U+DC00 and its value."""

_GUESSES = ("gb18030", "big5")
_COMMON = frozenset(
    "的一是了我不在人有你他这个上们来到时大地为子中说国年着就那和要出也得里后自以会家可下过天去能对小多心学么之都好看起"
    "发当没成只如事把还用第样道想作开从面最前些所同日手行方期头经长回位分老因给名话电请您元月钱款"
)
_SURROGATE = re.compile("[\ud800-\udfff]")


def _keep(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(KEEP, _keep)


def check_encoding(encoding: str) -> None:
    """Raise ConfigError for an encoding that Python doesn't know, or can't use."""
    try:
        "x".encode(encoding)
    except (LookupError, ValueError):  # ValueError: "undefined", and names with a null character
        raise ConfigError(f"encoding {encoding!r} is unknown; name one such as utf-8 or gb18030") from None


def replaced(text: str) -> tuple[str, int]:
    """Return a text that can be encoded, with U+FFFD for each lone surrogate, and their number."""
    return (text, 0) if text.isascii() else _SURROGATE.subn("\ufffd", text)


def escaped(text: str) -> str:
    r"""Return a text that can be encoded, with \xff for a byte that isn't text."""
    return _SURROGATE.sub(lambda found: f"\\x{(ord(found[0]) - 0xDC00) & 0xFFFF:02x}", text)


def decodes(line: bytes, encoding: str) -> bool:
    """Whether bytes are text in an encoding."""
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def guess(lines: Sequence[bytes]) -> str | None:
    """Return the encoding in which nearly all lines are text, with more common characters than in UTF-8; or None."""
    common = {
        each: sum(c in _COMMON for line in lines for c in line.decode(each, "ignore"))
        for each in ("utf-8", *_GUESSES)
        if each == "utf-8" or sum(decodes(line, each) for line in lines) >= 0.95 * len(lines)
    }
    best = max(common, key=lambda each: common[each])
    return None if best == "utf-8" else best
