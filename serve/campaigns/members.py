"""Rows, distinct texts and campaigns as arrays, over the shards of the first pass.

Distinct texts are numbered by their keys, so neither the order of the input nor its cut into files changes a group or
its id, which is the key of its commonest text. A row takes 12 bytes here, a distinct text 220, mostly its signature.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jingyin.serve.campaigns.group import groups
from jingyin.serve.campaigns.minhash import HASHES, signatures

_BATCH = 1 << 14


@dataclass(frozen=True)
class Members:
    """n rows, d distinct texts, c campaigns; the campaigns by size, largest first.

    `campaigns` (n,) and `campaign_of_text` (d,) count campaigns, -1 for none; `first` (d,) is the row in which a text
    is first, `counts` (d,) its rows, `keys` (d,) its key; `ids` name the campaigns.
    """

    campaigns: NDArray[np.int32]
    campaign_of_text: NDArray[np.int32]
    first: NDArray[np.int64]
    counts: NDArray[np.int64]
    keys: NDArray[np.uint64]
    ids: list[str]


def find_members(parts: Sequence[Path], min_rows: int) -> Members:
    """Group the rows of all shards; what has fewer than `min_rows` alike is no campaign."""
    keys, first, text, counts = np.unique(
        read_column(parts, "key").to_numpy(), return_index=True, return_inverse=True, return_counts=True
    )
    text = text.astype(np.int32)
    stands = groups(_signed(parts, first), counts)
    rows = np.bincount(stands, counts, minlength=len(stands)).astype(np.int64)
    kept = np.flatnonzero(rows >= min_rows)
    kept = kept[np.lexsort((kept, -rows[kept]))]
    numbers = np.full(len(stands), -1, np.int32)
    numbers[kept] = np.arange(len(kept), dtype=np.int32)
    of_text = numbers[stands]
    return Members(of_text[text], of_text, first, counts, keys, [f"{key:016x}" for key in keys[kept].tolist()])


def _signed(parts: Sequence[Path], first: NDArray[np.int64]) -> NDArray[np.uint16]:
    order = np.argsort(first)
    found = np.empty((len(first), HASHES), np.uint16)
    for part, batch in pick(parts, first[order], ["clean"]):
        found[order[part]] = signatures(batch.column("clean").to_pylist())
    return found


def read_column(parts: Sequence[Path], name: str) -> pa.ChunkedArray:
    """Return one column of all shards."""
    return pa.concat_tables(pq.read_table(part, columns=[name]) for part in parts)[name]


def pick(parts: Sequence[Path], rows: NDArray[np.int64], columns: list[str]) -> Iterator[tuple[slice, pa.RecordBatch]]:
    """Yield the `rows` (ascending, counted through all shards) in batches, each with its place among `rows`."""
    start = 0
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(_BATCH, columns=columns):
                low, high = np.searchsorted(rows, (start, start + batch.num_rows))
                if low < high:
                    yield slice(low, high), batch.take(pa.array(rows[low:high] - start))
                start += batch.num_rows
