"""JSON, one object a line. The first block gives the columns their types; what does not fit them later is rejected."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from jingyin.serve.relabel.block import ROWS, Block, Position
from jingyin.serve.relabel.lines import MAX_LINE, TOO_LONG, Line, Lines, Record, cut

_MISFIT = (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError)


def _records(lines: Iterator[Line], encoding: str) -> Iterator[Record]:
    for line, end in lines:
        try:
            value = json.loads(line.decode(encoding)) if line.strip() else None
        except UnicodeDecodeError:
            yield Record(None, f"not {encoding.upper()}", end)
        except (ValueError, RecursionError):
            yield Record(None, TOO_LONG if len(line) == MAX_LINE else "malformed JSON", end)
        else:
            wrong = None if value is None or isinstance(value, dict) else "not a JSON object"
            yield Record(None if wrong else value, wrong, end)


def json_schema(path: Path, codec: str | None, encoding: str, text_column: str) -> pa.Schema:
    """Return the columns of the first rows. Raises no error for a row that is none: it will be rejected."""
    with Lines(path, codec) as lines:
        rows = [record.value for record in islice(_records(iter(lines), encoding), ROWS) if record.value]
    names = dict.fromkeys(name for row in rows for name in row if _is_utf8(name))
    kinds = [pa.string() if name == text_column else _kind([row.get(name) for row in rows]) for name in names]
    return pa.schema(list(zip(names, kinds, strict=True)))


def _is_utf8(name: str) -> bool:
    """Whether a key can name a column: half of a cut emoji, a lone surrogate, can't."""
    return name.encode(errors="ignore").decode() == name


def _kind(values: Sequence[Any]) -> pa.DataType:
    """Return the type of a column: that of all values, else of the first that Arrow takes; strings if there is none."""
    for tried in chain([values], ([value] for value in values if value is not None)):
        with suppress(*_MISFIT):
            found = pa.array(tried).type
            return pa.string() if pa.types.is_null(found) else found
    return pa.string()


def json_blocks(path: Path, codec: str | None, encoding: str, schema: pa.Schema, at: Position) -> Iterator[Block]:
    """Yield blocks; row numbers are those of lines, and blank lines are left out."""
    with Lines(path, codec, at[0]) as lines:
        yield from cut(_records(iter(lines), encoding), at, partial(_build, schema=schema), lines.share)


def _build(rows: list[dict[str, Any]], schema: pa.Schema) -> tuple[pa.RecordBatch, dict[int, str]]:
    kind = pa.struct(list(schema))
    misfits = {index: "unknown key" for index, row in enumerate(rows) if _loses(row, kind)}
    if not _fit(rows, schema):
        misfits |= {index: "wrong type" for index, row in enumerate(rows) if not _fit([row], schema)}
    kept = [row for index, row in enumerate(rows) if index not in misfits]
    return pa.RecordBatch.from_pylist(kept, schema=schema), misfits


def _fit(rows: list[dict[str, Any]], schema: pa.Schema) -> bool:
    try:
        pa.RecordBatch.from_pylist(rows, schema=schema)
    except _MISFIT:
        return False
    return True


def _loses(value: object, kind: pa.DataType) -> bool:
    """Whether a value has keys, in whatever depth of objects and lists, that its type lacks: Arrow would drop them."""
    if isinstance(value, dict) and pa.types.is_struct(kind):
        known = set(kind.names)
        return not known.issuperset(value) or any(_loses(inner, kind.field(name).type) for name, inner in value.items())
    if isinstance(value, list) and pa.types.is_list(kind):
        return any(_loses(inner, kind.value_type) for inner in value)
    return False
