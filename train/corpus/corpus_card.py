"""Writes the card of a built corpus."""

from collections.abc import Mapping, Sequence

from jingyin.train.corpus.evade import HELD_OUT
from jingyin.train.corpus.readers import SOURCES
from jingyin.train.corpus.signs import is_annotated
from jingyin.train.corpus.stats import corpus_tables
from jingyin.train.corpus.store import Row

_CARD = """\
# Corpus of Chinese SMS: extortion and debt threats, and what looks like them

Built by `jingyin corpus build`; recipe and row counts are in `corpus.json`, these counts are printed by
`jingyin corpus stats` on this folder. Fingerprint: `{fingerprint}`

Columns: `text` (what a model is given), `label`, `family`, `voice`, `source`, `group` (never in two splits),
`template` (with slots, undisguised), `evasion` (family of the disguise or empty), `weight` (of all rows made
from one message: that of its source), `pair` (id of its minimal pair or empty), `case` (what it was written from or
empty), `writer`, `signs`.

`signs` are ids of what a message demands, threatens and how it speaks, with commas between them. People read those of
{annotated} messages. The others have what their family implies: `!id` says that a sign is not there, `?` at the end
that those which are not named may be there or not.

Authored messages are invented; names, lenders, sums and numbers in them are drawn at random from lists that all
labels share. Training rows have disguised copies by these families: {training}. Held out for measuring: {held_out}.

## Sources

{sources}

## Counts

{counts}
"""


def card(splits: Mapping[str, Sequence[Row]], kinds: Sequence[str], families: Sequence[str], fingerprint: str) -> str:
    """Return the card in Markdown: sources with citation and licence, families of disguises, counts, fingerprint."""
    lines = ["- authored: invented for jingyin; Apache-2.0"]
    for kind in dict.fromkeys(kinds):
        source = SOURCES[kind]
        cited = f"; {source.citation}" if source.citation else ""
        label = f"all {source.label}" if source.label else "labels of its own"
        lines.append(f"- {kind}: {source.title}{cited}; licence: {source.licence}; {label}")
    return _CARD.format(
        fingerprint=fingerprint,
        annotated=len({row.template for rows in splits.values() for row in rows if is_annotated(row.signs)}),
        training=", ".join(families),
        held_out=", ".join(HELD_OUT),
        sources="\n".join(lines),
        counts=corpus_tables(splits),
    )
