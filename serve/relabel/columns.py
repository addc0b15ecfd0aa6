"""Answers and measures as columns: the same nine for files, `datasets` and Spark."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pyarrow as pa

from jingyin.model.errors import BundleError
from jingyin.model.labels import LABELS
from jingyin.serve.scorer import Answer, Scorer

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
)
"""What is added to each row; columns of these names that are there already are replaced.

`jingyin_stage` is what answered first, "gate" or "model". A scorer's "memo" would depend on what it had seen
before, and a run that was killed and resumed would differ from one that was not. The last three are what
`jingyin drift` compares, and hold no text: characters of the clean text, a masked number counting as one; DISGUISES
that the normaliser undid; and the share of characters that the tokenizer does not know, 0 to 1, as the gate counts it
(with the start of the message as one more character, a known one).
"""

DISGUISES = ("disguised", "invisible", "joined")
"""Kinds of the normaliser's hits that `jingyin_hits` adds up. Traditional characters are an honest way to write, and
masks are in most messages."""

NAMES = tuple(field.name for field in FIELDS)

WORKER_MEMO_BYTES = 32 << 20
"""The memo of a worker, so that memory stays bounded with many; half the default loses no hit on templated traffic."""


def with_verdicts(schema: pa.Schema) -> pa.Schema:
    """Return the schema of the output for that of the input."""
    kept = [field for field in schema if field.name not in NAMES]
    return pa.schema([*kept, *FIELDS])


def verdict_columns(scorer: Scorer, texts: Sequence[str | None]) -> list[pa.Array]:
    """Score texts and return an array for each of FIELDS; a missing text has nulls in all of them.

    Most messages of a block share an answer, so each different answer is converted once and then taken.
    """
    answered = scorer.answered([text for text in texts if text is not None])
    different: dict[int, tuple[int, Answer]] = {}
    indices: list[int | None] = []
    measures: list[tuple[int | None, int | None, float | None]] = []
    for text in texts:
        if text is None:
            indices.append(None)
            measures.append((None, None, None))
        else:
            cleaned, answer, unknown, _ = next(answered)
            indices.append(different.setdefault(id(answer), (len(different), answer))[0])
            measures.append((len(cleaned.text), _disguises(cleaned.hits), unknown))
    table = _table([answer for _, answer in different.values()], scorer.bundle.manifest.id)
    take = pa.array(indices, pa.int32())
    return [*(column.take(take) for column in table), *_measures(measures)]


def _disguises(hits: Mapping[str, int]) -> int:
    return sum([hits.get(kind, 0) for kind in DISGUISES])


def _table(answers: Sequence[Answer], bundle: str) -> list[pa.Array]:
    columns: list[list[object]] = [
        [answer.label for answer in answers],
        [answer.risk for answer in answers],
        [answer.action for answer in answers],
        [answer.probabilities for answer in answers],
        [answer.stage for answer in answers],
        [bundle] * len(answers),
    ]
    return [pa.array(column, field.type) for column, field in zip(columns, FIELDS[:6], strict=True)]


def _measures(rows: Sequence[Sequence[float | None]]) -> list[pa.Array]:
    return [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(FIELDS[6:])]


@cache
def scorer_of(bundle: str | None, wanted: str | None = None) -> Scorer:
    """Return this process's scorer for a bundle folder, loaded when first asked for.

    Raises BundleError when the folder no longer holds the bundle whose id is `wanted`.
    """
    scorer = Scorer.load(bundle, memo_bytes=WORKER_MEMO_BYTES)
    if wanted not in (None, scorer.bundle.manifest.id):
        raise BundleError(
            f"the bundle changed from {wanted} to {scorer.bundle.manifest.id} while the run began; run it again"
        )
    return scorer


def scorer_columns(
    rows: Mapping[str, Sequence[Any]], text_column: str = "text", bundle: str | None = None
) -> dict[str, list[Any]]:
    """Return the columns of FIELDS for a batch of a Hugging Face dataset; a missing text gets None.

        dataset.map(scorer_columns, batched=True)                      # num_proc=N: one scorer a process
        dataset.map(scorer_columns, batched=True, fn_kwargs={"text_column": "sms"})

    `datasets` caches by function and arguments: name `bundle` when you compare bundles. Raises KeyError without
    the column, InputError for a text that is no str.
    """
    columns = verdict_columns(scorer_of(bundle), rows[text_column])
    return {name: column.to_pylist() for name, column in zip(NAMES, columns, strict=True)}
