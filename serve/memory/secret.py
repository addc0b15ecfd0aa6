"""The secret of a state: its senders, numbers and texts can't be read or looked up without it.

Machines that share a Valkey share the file. Identifiers become keyed hashes (BLAKE2b) salted by the name of the API
key, texts that must be read again are encrypted (AES-GCM).
"""

import os
import secrets
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jingyin.model.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import aead

_BYTES = 32


class Secret:
    """Hashes and encrypts with keys derived from `secret`, 32 bytes."""

    def __init__(self, secret: bytes, *, encrypts: bool) -> None:
        """Without `encrypts` sealing changes nothing: the state never leaves this machine's memory.

        Raises ConfigError if cryptography is missing.
        """
        self._hashing = blake2b(b"identifiers", key=secret, digest_size=_BYTES).digest()
        number = int.from_bytes(blake2b(b"sketches", key=secret, digest_size=6).digest(), "big") | 1
        self.salt = np.uint64(number << 16)
        """The multiplier of near_copies.hashes."""
        self._numbers = blake2b(b"numbers", key=secret, digest_size=_BYTES).digest()
        self._cipher: aead.AESGCM | None = None
        if encrypts:
            try:
                from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            except ImportError:
                raise ConfigError("a shared state needs cryptography; run: pip install 'jingyin[state]'") from None
            self._cipher = AESGCM(blake2b(b"texts", key=secret, digest_size=_BYTES).digest())

    def hash(self, *parts: str) -> str:
        """Return the keyed hash of the parts in this order: 16 bytes in hex."""
        data = "\0".join(parts).encode("utf-8", "surrogatepass")
        return blake2b(data, key=self._hashing, digest_size=16).hexdigest()

    def seal(self, text: str, *, alike: bool = False) -> bytes:
        """Encrypt a text; no two results are equal, except those of equal texts if both are `alike`."""
        data = text.encode("utf-8", "surrogatepass")
        if self._cipher is None:
            return data
        # A nonce that depends on the text by a key of its own, as in RFC 5297, is not used for another text.
        nonce = blake2b(data, key=self._numbers, digest_size=12).digest() if alike else os.urandom(12)
        return nonce + self._cipher.encrypt(nonce, data, None)

    def open(self, sealed: bytes) -> str | None:
        """Return the text, or None if it was sealed with another secret."""
        if self._cipher is None:
            return sealed.decode("utf-8", "surrogatepass")
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(sealed[:12], sealed[12:], None).decode("utf-8", "surrogatepass")
        except (InvalidTag, ValueError):
            return None


def read_secret(file: Path, *, make: bool) -> bytes:
    """Read the secret in hex, or `make` the file if there is none.

    Raises ConfigError if it holds no secret, OSError if it can't be made.
    """
    if make and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as out:
            out.write(secrets.token_hex(_BYTES) + "\n")
    try:
        secret = bytes.fromhex(file.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"state_secret {file} can't be read ({type(error).__name__}); make it with: openssl rand -hex 32"
        ) from None
    if len(secret) < _BYTES:
        raise ConfigError(f"state_secret {file} has {len(secret)} bytes, {_BYTES} are wanted: openssl rand -hex 32")
    return secret
