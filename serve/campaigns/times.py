"""When a message was sent, however a column holds it."""

from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from jingyin.model.errors import ConfigError

TIME = pa.timestamp("us")
"""Times as they are kept: as written, without a zone; those with a zone in UTC."""

_MILLISECONDS = 100_000_000_000  # numbers from here on count milliseconds since 1970, lower ones seconds
_EARLIEST, _LATEST = datetime(1970, 1, 1), datetime(2100, 1, 1)  # other times are none of a message


def check_time(kind: pa.DataType, column: str, form: str | None) -> None:
    """Raise ConfigError when a column can't hold times, or a form is given that would not be used."""
    if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise ConfigError(
            f"column {column!r} is {kind}, wanted times: text, timestamps, dates or seconds; name another"
        )
    if form and not _is_text(kind):
        raise ConfigError(f"column {column!r} is {kind}, which needs no time format; leave --time-format out")


def read_times(column: pa.Array, form: str | None) -> pa.Array:
    """Return times of type TIME, null where a value is missing or no time.

    Text is ISO 8601, or of `form` (strptime). Integers are seconds, or milliseconds, since 1970.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        return _each(column, _from_number)
    if not _is_text(column.type):
        return _likely(column.cast(TIME, safe=False))
    if form is None:
        try:
            return _likely(column.cast(TIME))
        except pa.ArrowInvalid:  # one value is enough: look at each
            return _each(column, _from_iso)
    return _each(column, lambda value: _utc(datetime.strptime(value, form)))


def _likely(times: pa.Array) -> pa.Array:
    there = pc.and_(pc.greater_equal(times, _EARLIEST), pc.less(times, _LATEST))
    return pc.if_else(there, times, pa.scalar(None, TIME))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))


def _each(column: pa.Array, read: Callable[..., datetime]) -> pa.Array:
    """Read each different value once: times of one second repeat."""
    coded = pc.dictionary_encode(column)
    found = [_or_none(value, read) for value in coded.dictionary.to_pylist()]
    return pa.array(found, TIME).take(coded.indices)


def _or_none(value: object, read: Callable[..., datetime]) -> datetime | None:
    try:
        found = read(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return found if _EARLIEST <= found < _LATEST else None


def _from_iso(value: str) -> datetime:
    return _utc(datetime.fromisoformat(value.strip()))


def _from_number(value: int) -> datetime:
    seconds = value / 1000 if value >= _MILLISECONDS else value
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
