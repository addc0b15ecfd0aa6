"""Counts of a corpus, as Markdown tables: by label, family, voice, case, writer, length, source and sign."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jingyin.model.labels import FLAGGED, LABELS
from jingyin.train.corpus import store
from jingyin.train.corpus.public import SOURCES
from jingyin.train.corpus.rows import Record, default_folders, is_annotated, load, shown
from jingyin.train.corpus.surface import surface_rows

OBVIOUS = re.compile(
    "呼死你|轰炸|通讯录|曝光|举报|法院|起诉|立案|坐牢|通缉|上门|催收|诈骗|死|杀|砍|公安|警察|裸|视频|攻击"
    "|轟炸|通訊錄|舉報|起訴|立案|坐牢|通緝|上門|詐騙|殺|視頻|攻擊"
)
"""Words that a keyword filter would list; such a filter can't see a threat without any of them."""

CorpusMessage = Record | store.Row
"""The items counted: records or rows."""


def stats(path: Path | None = None) -> str:
    """Return the counts of a built corpus, or of authored messages (those in the package by default)."""
    if path is not None and store.is_built(path):
        return corpus_tables(store.read(path))
    records = [record for folder in ([path] if path else default_folders()) for record in load(folder)]
    pairs = len({record.group for record in records if record.group})
    return f"{message_tables(records)}\n\n{pairs} minimal pairs"


def corpus_tables(splits: Mapping[str, Sequence[store.Row]]) -> str:
    """Return rows per split, label and evasion family, then the counts of its undisguised rows."""
    rows = [(split, row) for split, rows in splits.items() for row in rows]
    plain = {row.template: row for _, row in rows if not row.evasion}
    parts = (
        _cross("split", ((split, row.label) for split, row in rows)),
        "Undisguised rows of cases:",
        _cross("cases", ((split, row.label) for split, row in rows if row.case and not row.evasion)),
        _cross("evasion", ((row.evasion or "none", row.label) for _, row in rows)),
        "Surface of the training rows, share of texts (surface.py):",
        markdown_table(
            ("feature", "authored threats", "authored innocents", "real traffic", "quoted threats", ""),
            surface_rows(splits.get("train", ()), frozenset(SOURCES)),
        ),
        "Messages, each counted once:",
        message_tables(plain.values()),
    )
    return "\n\n".join(parts)


def message_tables(messages: Iterable[CorpusMessage]) -> str:
    """Return counts per label, source, voice, writer, case, family and sign, and lengths in characters."""
    messages = list(messages)
    families = Counter((m.label, m.family) for m in messages)
    order = sorted(families, key=lambda key: (LABELS.index(key[0]), key[1]))
    annotated = [message for message in messages if is_annotated(message.signs)]
    tables = [
        _lengths(messages),
        _cross("source", ((m.source, m.label) for m in messages)),
        _cross("voice", ((m.voice, m.label) for m in messages)),
        _cross("writer", ((m.writer or "none", m.label) for m in messages)),
        _cross("case", ((m.case, m.label) for m in messages if m.case)),
        markdown_table(("label", "family", "messages"), [(*key, str(families[key])) for key in order]),
        f"People read the signs of {len(annotated)} of {len(messages)} messages:",
        _cross("sign", ((sign, m.label) for m in annotated for sign in shown(m.signs) or ("none",))),
    ]
    return "\n\n".join(tables)


def _lengths(messages: Sequence[CorpusMessage]) -> str:
    rows = []
    for label in LABELS:
        texts = [message.text for message in messages if message.label == label]
        lengths = np.percentile([len(text) for text in texts], (10, 50, 90)) if texts else ()
        free = sum(OBVIOUS.search(text) is None for text in texts)
        share = f"{free / len(texts):.0%}" if texts and label in FLAGGED else ""
        rows.append((label, str(len(texts)), *([f"{length:.0f}" for length in lengths] or [""] * 3), share))
    return markdown_table(("label", "messages", "p10 length", "median", "p90", "without obvious word"), rows)


def _cross(what: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Return a table of one thing by label."""
    counts = Counter(pairs)
    names = sorted({name for name, _ in counts})
    cells = [[counts[name, label] for label in LABELS] for name in names]
    return markdown_table(
        (what, *LABELS, "all"), [(n, *map(str, row), str(sum(row))) for n, row in zip(names, cells, strict=True)]
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
