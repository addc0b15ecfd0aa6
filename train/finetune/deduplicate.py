"""Deduplicates one's own rows: refuses contradictions, and rows too few to learn from."""

from collections.abc import Sequence

from jingyin.model.errors import InputError
from jingyin.model.labels import FLAGGED
from jingyin.model.text import clean
from jingyin.train.finetune.read import SIDES, Labelled

FEWEST = 20
"""Different messages below which nothing can be learnt and held out."""

_SHOWN = 20


def is_flagged(label: str) -> bool:
    """Whether a label is one that makes risk."""
    return label in FLAGGED or label == SIDES[0]


def deduplicate(rows: Sequence[Labelled]) -> list[Labelled]:
    """Return each message once, by its clean text: that is all that a network sees of it.

    Of a message that comes with a label and with no more than flagged or not, the label stays. Raises InputError for
    messages of one clean text whose labels differ, for fewer than FEWEST messages, and for one label alone.
    """
    kept: dict[str, Labelled] = {}
    errors = []
    for row in rows:
        text = clean(row.text).text
        first = kept.get(text)
        if first is None or (first.label in SIDES and row.label not in SIDES and _agree(first.label, row.label)):
            kept[text] = row
        elif not _agree(first.label, row.label):
            errors.append(f"{row.where}: {row.label}, but {first.where}, the same message, is {first.label}")
    if errors:
        more = f"\n... and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        raise InputError(
            f"{len(errors)} message(s) have two labels; decide which is right (what differs in numbers, links or "
            "disguise alone is one message to a network):\n" + "\n".join(errors[:_SHOWN]) + more
        )
    _refuse_poor(list(kept.values()))
    return list(kept.values())


def _agree(one: str, other: str) -> bool:
    return one == other or (is_flagged(one) == is_flagged(other) and (one in SIDES or other in SIDES))


def _refuse_poor(rows: Sequence[Labelled]) -> None:
    if len(rows) < FEWEST:
        raise InputError(
            f"{len(rows)} different message(s); wanted at least {FEWEST}, and some hundred to learn much: "
            "label more, say the tasks of `jingyin relabel --label-studio`"
        )
    if len(labels := {row.label for row in rows}) == 1:
        raise InputError(
            f"all {len(rows)} messages have the label {labels.pop()}; add messages of another label, "
            "those that look most like them: from one label alone nothing can be told apart"
        )
