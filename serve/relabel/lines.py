"""Lines of a text file from an offset on, and their way into blocks."""

from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa

from jingyin.model.errors import InputError
from jingyin.serve.relabel.block import BYTES, ROWS, Block, Position, Reject

MAX_LINE = 4 << 20
"""Bytes of the longest line; what is longer is cut there, so that a file without line breaks can't fill memory."""

TOO_LONG = "line over 4 MiB"

Line = tuple[bytes, int]
"""A line with its line break, and the offset after it."""

_BOM = b"\xef\xbb\xbf"


class Lines:
    """Iterates over the lines of a file from `offset` on, which counts uncompressed bytes.

    Going on from an offset of a compressed file reads and drops what lies before: no format of the three can seek.
    """

    def __init__(self, path: Path, codec: str | None, offset: int = 0) -> None:
        self.offset = 0
        self._size = path.stat().st_size
        self._file = pa.OSFile(str(path))
        stream = pa.CompressedInputStream(self._file, codec) if codec else self._file
        self._stream = BufferedReader(cast("Any", stream), 1 << 20)
        self._skip_mark(path)
        if offset and not codec:
            self._stream.seek(offset)
            self.offset = offset
        while self.offset < offset:
            self.offset += len(self._stream.read(min(1 << 20, offset - self.offset)))

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._file.close()

    def __iter__(self) -> Iterator[Line]:
        read: Callable[[int], bytes] = cast(BinaryIO, self._stream).readline
        while line := read(MAX_LINE):
            self.offset += len(line)
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                self._drop_rest(read)
            yield line, self.offset

    def _drop_rest(self, read: Callable[[int], bytes]) -> None:
        while rest := read(MAX_LINE):
            self.offset += len(rest)
            if rest.endswith(b"\n"):
                return

    def share(self) -> float:
        """Return how much of the file has been read, 0 to 1."""
        return float(self._file.tell() / self._size)

    def _skip_mark(self, path: Path) -> None:
        start = self._stream.peek(3)[:3]
        if start.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"{path} is UTF-16; convert it first: iconv -f UTF-16 -t UTF-8")
        if start == _BOM:
            self.offset = len(self._stream.read(3))


class Record(NamedTuple):
    """One record of a text file: a value, a reason to reject it, or neither when the line is blank.

    `end` is the offset after it.
    """

    value: Any
    reason: str | None
    end: int


Build = Callable[[list[Any]], tuple[pa.RecordBatch, dict[int, str]]]
"""Values -> rows, and the reasons why some of them, by index, are no rows."""


def cut(records: Iterator[Record], at: Position, build: Build, share: Callable[[], float]) -> Iterator[Block]:
    """Yield blocks of records; a position is (offset, records read of the file, 0)."""
    offset, row, _ = at
    values: list[Any] = []
    numbers: list[int] = []
    rejects: list[Reject] = []

    def block(end: int) -> Block:
        batch, misfits = build(values)
        misread = [Reject(numbers[index], reason) for index, reason in misfits.items()]
        kept = [number for index, number in enumerate(numbers) if index not in misfits]
        return Block(batch, kept, sorted([*rejects, *misread]), (end, row, 0), share())

    end, begun = offset, row
    for value, reason, end in records:
        row += 1
        if reason:
            rejects.append(Reject(row, reason))
        elif value is not None:
            values.append(value)
            numbers.append(row)
        if row - begun >= ROWS or end - offset >= BYTES:
            yield block(end)
            offset, begun, values, numbers, rejects = end, row, [], [], []
    if row > begun:
        yield block(end)
