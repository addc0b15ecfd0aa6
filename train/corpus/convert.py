"""Turns a public corpus as it is published into the JSON lines file that corpus recipes name (docs/data.md)."""

import gzip
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from jingyin.model.errors import ConfigError, InputError
from jingyin.train.corpus.readers import SOURCES, Raw, read_raw

PUBLIC = tuple(kind for kind, source in SOURCES.items() if source.label)
"""Kinds of public corpora."""

_SUFFIXES = (".jsonl", ".jsonl.gz")  # by which readers.read knows such a file


def convert(kind: str, source: Path, out: Path, only: str | None = None) -> int:
    """Write messages of the public corpus `kind` at `source` to `out`, one JSON object a line; returns their number.

    Masks stay as published: they are filled anew when a corpus is built. Empty messages are left out, and with `only`
    those of another label of the source's own. The same source gives the same bytes, packed or not; a file at `out` is
    replaced by a whole one or not at all. Raises ConfigError for an unknown kind or suffix, InputError with file and
    line for a bad source.
    """
    if kind not in PUBLIC:
        raise ConfigError(f"unknown kind {kind!r}; known: {', '.join(PUBLIC)}")
    if not out.name.endswith(_SUFFIXES):
        raise ConfigError(f"{out} must end in {' or '.join(_SUFFIXES)}: by that it is known as JSON lines")
    count = 0
    with _whole(out) as file:
        for raw in _messages(kind, source, only):
            file.write((json.dumps(raw, ensure_ascii=False) + "\n").encode("utf-8", "ignore"))
            count += 1
        if not count:
            wanted = f" that it labels {only!r}" if only else ""
            raise InputError(f"{source} holds no message of kind {kind}{wanted}; check path and kind")
    return count


def _messages(kind: str, source: Path, only: str | None) -> Iterator[Raw]:
    for raw in read_raw(kind, source):
        if raw["text"].strip() and only in (None, raw.get("label")):
            yield {key: value for key, value in raw.items() if value}


@contextmanager
def _whole(out: Path) -> Iterator[IO[bytes]]:
    """Give a file to write to, and rename it to `out` when all went well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{out.name}-", dir=out.parent)
    try:
        with os.fdopen(handle, "wb") as plain:
            if out.suffix == ".gz":
                with gzip.GzipFile(filename="", mode="wb", fileobj=plain, mtime=0) as packed:
                    yield cast(IO[bytes], packed)
            else:
                yield plain
        os.chmod(name, 0o644)
        os.replace(name, out)
    except BaseException:
        os.unlink(name)
        raise
