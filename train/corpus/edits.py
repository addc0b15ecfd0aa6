"""Threats made out of real messages by changing a few characters, kept without the messages.

Real register on both sides, and no word tells them apart: a message and its edit are a minimal pair. A line of
rows/edits.jsonl has the `id` of a message (public.fingerprint), the `label` of the result, and `edits`, ranges
[start, end) of the message with their replacements. Edits apply where the corpus that holds the message is built in.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from jingyin.model.errors import InputError
from jingyin.model.labels import FLAGGED
from jingyin.train.corpus.rows import Record, valid_rows

EDITOR = "edits"
"""Writer of the records that edits make."""

EDITS = Path(str(files("jingyin.train").joinpath("rows/edits.jsonl")))

THREATS = (*FLAGGED, "other_threat")
"""Labels of the records that edits make."""

_Range = Annotated[int, Field(ge=0)]


class _Edit(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    label: str
    edits: list[tuple[_Range, _Range, Annotated[str, Field(max_length=40)]]]


def edited(record: Record, text: str, identity: str) -> Iterator[Record]:
    """Yield a public record, and its edit if there is one; `text` is the message as published, `identity` its id.

    The two have one group, so that they stay on one side of a split. The edit counts as authored.
    """
    edit = _edits().get(identity)
    if edit is None or any(end > len(text) or start > end for start, end, _ in edit.edits):
        yield record
        return
    changed = text
    for start, end, replacement in sorted(edit.edits, reverse=True):
        changed = changed[:start] + replacement + changed[end:]
    group = f"edited {identity}"
    yield replace(record, group=group)
    if not {"{", "}"} & set(changed):  # which would be slots of an authored message
        yield replace(
            record, text=" ".join(changed.split()), label=edit.label, family="edited", source="authored",
            group=group, writer=EDITOR,
        )  # fmt: skip


@cache
def _edits() -> dict[str, _Edit]:
    found: dict[str, _Edit] = {}
    errors: list[str] = []
    for where, edit in valid_rows(EDITS, _Edit, errors):
        if edit.label not in THREATS:
            errors.append(f"{where}: label {edit.label[:40]!r}; an edit makes one of {', '.join(THREATS)}")
        found[edit.id] = edit
    if errors:
        raise InputError("the edits of real messages can't be used:\n" + "\n".join(errors))
    return found
