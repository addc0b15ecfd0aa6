"""Reads the times of messages from columns of various types."""

import re
from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from jingyin.model.errors import ConfigError

TIME = pa.timestamp("us")
"""Times have no zone: those written with one are converted to UTC."""

_MILLISECONDS = 100_000_000_000  # numbers from here on count milliseconds since 1970, lower ones seconds
_EARLIEST, _LATEST = datetime(1970, 1, 1), datetime(2100, 1, 1)  # other times are invalid
_LONGEST = 32  # characters of the longest value that an error shows


def check_time(kind: pa.DataType, column: str, form: str | None) -> None:
    """Raise ConfigError if a column can't hold times, or a format is given for a column that isn't text."""
    if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise ConfigError(f"column {column!r} is {kind}, wanted times: text, timestamps, dates, seconds")
    if form and not (_is_text(kind) or pa.types.is_integer(kind)):
        raise ConfigError(f"column {column!r} is {kind}, which needs no time format; leave --time-format out")


def check_form(column: pa.Array, name: str, form: str | None) -> None:
    """Raise ConfigError if none of the times in the first rows of a column can be read."""
    values = column.drop_null()
    if _is_text(column.type):  # an empty field of CSV is a missing value
        values = pa.array([value for value in values.to_pylist() if value], column.type)
    if not len(values) or read_times(values, form).null_count < len(values):
        return
    value = str(values[0].as_py())
    # A column named by mistake may hold messages: only values of mostly digits and signs are shown.
    is_time = len(value) <= _LONGEST and 2 * len(re.findall(r"[\d\s./:+-]", value)) > len(value)
    example = f", such as {value!r}" if is_time else ""
    raise ConfigError(f"none of the first {len(values):,} times in column {name!r} can be read{example}; say how they "
                      "are written, as in --time-format '%Y/%m/%d %H:%M'")  # fmt: skip


def read_times(column: pa.Array, form: str | None) -> pa.Array:
    """Return times of type TIME, null where a value is missing or isn't a time.

    Text is ISO 8601, or in the format `form` (strptime). Integers, also as text, are dates (20180305) or Unix times.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    if not _is_text(column.type):
        return _likely(column.cast(TIME, safe=False))
    if form is not None:
        return _each(column, lambda value: datetime.strptime(value, form))
    try:
        return _likely(column.cast(TIME))
    except pa.ArrowInvalid:  # one bad value is enough: parse each
        return _each(column, _from_text)


def _likely(times: pa.Array) -> pa.Array:
    return pc.if_else(pc.and_(pc.greater_equal(times, _EARLIEST), pc.less(times, _LATEST)), times, None)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))


def _each(column: pa.Array, read: Callable[..., datetime]) -> pa.Array:
    """Read each distinct value once: many messages share a second."""
    coded = pc.dictionary_encode(column)
    times: list[datetime | None] = []
    for value in coded.dictionary.to_pylist():
        try:
            time = read(value)
            time = time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
        except (ValueError, TypeError, OverflowError, OSError):  # OSError: the year doesn't fit into an int
            times.append(None)
        else:
            times.append(time if _EARLIEST <= time < _LATEST else None)
    return pa.array(times, TIME).take(coded.indices)


def _from_text(value: str) -> datetime:
    value = value.strip()
    if not (value.isdecimal() and len(value) > len("20180305")):
        return datetime.fromisoformat(value)
    number = int(value)
    return datetime.fromtimestamp(number / 1000 if number >= _MILLISECONDS else number, UTC)
