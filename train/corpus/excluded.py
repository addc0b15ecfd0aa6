"""Public messages that are no ordinary ones though their corpus is: known by hashes, since their text is not kept here.

Each was read: fake judicial notices with a demand among the spam, real menaces among the comments (train/LOG.md).
"""

import hashlib

from jingyin.train.corpus.tables import words


def is_excluded(text: str) -> bool:
    """Whether a public message is one of those in tables/excluded.txt, white space apart."""
    return fingerprint(text) in words("excluded")


def fingerprint(text: str) -> str:
    """Return the first 16 hex digits of the SHA-256 of a text without white space."""
    return hashlib.sha256("".join(text.split()).encode()).hexdigest()[:16]
