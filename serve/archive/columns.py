"""Decisions and measures as columns: the same ten for files, `datasets` and Spark."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jingyin.model.labels import LABELS
from jingyin.serve.archive.decisions import Decisions, measure
from jingyin.serve.scorer import Scorer, ScorerArguments, scorer_of

FIELDS = (
    pa.field("jingyin_label", pa.string()),
    pa.field("jingyin_risk", pa.float64()),
    pa.field("jingyin_action", pa.string()),
    pa.field("jingyin_probabilities", pa.struct([pa.field(label, pa.float64()) for label in LABELS])),
    pa.field("jingyin_stage", pa.string()),
    pa.field("jingyin_bundle", pa.string()),
    pa.field("jingyin_length", pa.int32()),
    pa.field("jingyin_hits", pa.int32()),
    pa.field("jingyin_unknown", pa.float64()),
    pa.field("jingyin_reasons", pa.list_(pa.string())),
)
"""The columns added to each row; existing columns of these names are replaced.

`jingyin_stage` is the stage that decided first, "prefilter" or "network". A scorer's "cache" would depend on earlier
messages, so a resumed run would differ from an uninterrupted one. The three columns after the bundle are for `jingyin
drift` and contain no text: the number of characters of the clean text, a masked number counting as one; the number of
disguises that the normaliser undid (prefilter.DISGUISES); and the share of characters unknown to the tokenizer, 0 to 1,
as the prefilter counts it, with the start of the message as one more known character. `jingyin_reasons` are ids of
signs, most confident first; a message that passes has none.
"""

NAMES = tuple(field.name for field in FIELDS)
_DECIDED = ("label", "risk", "action", "probabilities", "stage")
_MEASURED = ("jingyin_length", "jingyin_hits", "jingyin_unknown")


def verdict_columns(scorer: Scorer, texts: Sequence[str | None]) -> list[pa.Array]:
    """Score texts and return an array for each of FIELDS; a missing text has nulls in all of them."""
    mask = np.array([text is not None for text in texts], bool)
    columns = decision_columns(measure(scorer, [text for text in texts if text is not None]), scorer.bundle.manifest.id)
    if mask.all():
        return columns
    take = array_of(np.where(mask, mask.cumsum() - 1, mask.sum()), pa.int32())  # the last is the null
    return [pa.concat_arrays([column, pa.nulls(1, column.type)]).take(take) for column in columns]


def decision_columns(decisions: Decisions, bundle: str) -> list[pa.Array]:
    """Return an array for each of FIELDS; each distinct decision is converted only once."""
    different, indices, lengths, edits, unknown = decisions
    take = array_of(indices, pa.int32())
    verdict = [[getattr(each, name) for each in different] for name in _DECIDED]
    reasons = [[reason.sign for reason in each.reasons] for each in different]
    values: list[Any] = [*verdict, [bundle] * len(different), lengths, edits, unknown, reasons]
    arrays = [array_of(each, field.type) for each, field in zip(values, FIELDS, strict=True)]
    return [each if field.name in _MEASURED else each.take(take) for each, field in zip(arrays, FIELDS, strict=True)]


def array_of(values: Sequence[Any] | NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Return strings, numbers, structs (dicts) or lists as an array without nulls.

    pa.array would do too, but if pandas is installed it imports it (35 MB) to check whether a list is a Series.
    """
    if pa.types.is_struct(kind):
        parts = [array_of([value[field.name] for value in values], field.type) for field in kind]
        return pa.StructArray.from_arrays(parts, fields=list(kind))
    if pa.types.is_list(kind):
        items = array_of([item for value in values for item in value], kind.value_type)
        return pa.ListArray.from_arrays(array_of(_ends(values), pa.int32()), items, type=kind)
    if pa.types.is_string(kind):
        encoded = [value.encode() for value in values]
        return pa.StringArray.from_buffers(len(values), pa.py_buffer(_ends(encoded)), pa.py_buffer(b"".join(encoded)))
    numbers = np.asarray(values, np.int32 if pa.types.is_int32(kind) else np.float64)
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def _ends(values: Iterable[Sized]) -> NDArray[np.int32]:
    """Return the offset of each value among all items, and the end of the last."""
    return np.cumsum([0, *map(len, values)], dtype=np.int32)


def scorer_columns(
    rows: Mapping[str, Sequence[Any]], text_column: str = "text", bundle: str | None = None
) -> dict[str, list[Any]]:
    """Return the columns of FIELDS for a batch of a Hugging Face dataset; a missing text gets None.

        dataset.map(scorer_columns, batched=True)                      # num_proc=N: one scorer per process
        dataset.map(scorer_columns, batched=True, fn_kwargs={"text_column": "sms"})

    `datasets` caches by function and arguments, so name `bundle` when you compare bundles. Raises KeyError if the
    column is missing, InputError for a text that isn't a str.
    """
    columns = verdict_columns(scorer_of(ScorerArguments(bundle)), rows[text_column])
    return {name: column.to_pylist() for name, column in zip(NAMES, columns, strict=True)}
