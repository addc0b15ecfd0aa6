"""API keys: a file of hashes, read again when it changes.

A file that is emptied, deleted or unreadable locks everyone out until it has a key, so write a new file next to it and
rename it. One with a malformed line is logged, and the old keys stay valid.

One key a line: a name, the SHA-256 of the key in hex, and optionally the word admin (for /admin/). `#` starts a remark.
A key has 256 random bits, so a plain hash is enough; a password would need a slow one. Make a line with

    python -m jingyin.serve.http.keys NAME [admin] >> keys.txt     the key itself is printed to standard error, once
"""

import hashlib
import hmac
import secrets
import sys
import time
from pathlib import Path
from typing import NamedTuple

from jingyin.model.errors import ConfigError
from jingyin.serve.observe import log

_CHECK_SECONDS = 1.0
_MAKE = "python -m jingyin.serve.http.keys NAME"


class Key(NamedTuple):
    """One line of the file."""

    name: str
    digest: bytes
    admin: bool


class NoKeysError(ConfigError):
    """The key file is missing, unreadable or holds no key."""


class Keys:
    """The keys of a file; rotation needs no restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = stamp(path)
        try:
            self._keys = read_keys(path)
        except ConfigError as error:  # since the start: a worker that takes a dead one's place must not fail for it
            self._keys = read_keys(path, strict=False)
            log("keys_faulty", level="error", keys=len(self._keys), error=str(error))
        self._checked = time.monotonic()

    def find(self, presented: bytes) -> Key | None:
        """Return the key that was presented, or None. Compares with every key, in constant time each."""
        self._refresh()
        digest = hashlib.sha256(presented).hexdigest().encode()
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        return found[-1] if found else None

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._checked < _CHECK_SECONDS:
            return
        self._checked, before = now, self._stamp
        self._stamp = stamp(self._path)
        if self._stamp == before:
            return
        try:
            self._keys = read_keys(self._path)
            log("keys_read", keys=len(self._keys))
        except NoKeysError as error:
            self._keys = []
            log("keys_gone", level="error", error=str(error))
        except ConfigError as error:
            log("keys_kept", level="error", error=str(error))


def read_keys(path: Path, *, strict: bool = True) -> list[Key]:
    """Read a key file; raises NoKeysError, or ConfigError that names the line, never its content.

    Without `strict` it returns the keys that it finds.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        if not strict:
            return []
        raise NoKeysError(f"key file {path} can't be read ({type(error).__name__}); name a readable file") from None
    keys = []
    for number, line in enumerate(lines, 1):
        fields = line.split("#")[0].split()
        if not fields:
            continue
        name, digest, *role = [*fields, ""] if len(fields) == 1 else fields
        if len(digest) != 64 or set(digest) - set("0123456789abcdef") or role not in ([], ["admin"]):
            if not strict:
                continue
            raise ConfigError(f"line {number} of key file {path} must be: NAME SHA256 [admin]; make one with {_MAKE}")
        keys.append(Key(name, digest.encode(), bool(role)))
    if not keys and strict:
        raise NoKeysError(f"key file {path} holds no key; make one with {_MAKE}")
    return keys


def stamp(path: Path) -> tuple[int, int, int] | None:
    """Return a mark that changes with the file at `path` and its content (mtime, size, inode); None without access."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def main(arguments: list[str]) -> int:
    """Make a key named by the first argument: its line on standard output, the key itself on standard error."""
    name, role = (arguments[0], arguments[1:]) if arguments else ("", [])
    # read_keys would not return other names: it splits at white space, and # starts a remark. --help is no name.
    if name.partition("#")[0].split() != [name] or name.startswith("-") or role not in ([], ["admin"]):
        print(f"usage: {_MAKE} [admin] >> keys.txt; NAME is one word without # or a leading -", file=sys.stderr)  # noqa: T201
        return 2
    key = secrets.token_urlsafe(32)
    print(key, file=sys.stderr)  # noqa: T201
    print(name, hashlib.sha256(key.encode()).hexdigest(), *role)  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
