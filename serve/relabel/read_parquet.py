"""Parquet, page by page: a row group of any size is never held as a whole."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jingyin.serve.relabel.block import BYTES, ROWS, Block, Position


def _open(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, buffer_size=1 << 18, pre_buffer=False)


def parquet_schema(path: Path) -> pa.Schema:
    """Return the columns; metadata of writers (pandas, datasets) describes a table that the output no longer is."""
    with _open(path) as file:
        return pa.schema([field.remove_metadata() for field in file.schema_arrow])


def parquet_blocks(path: Path, at: Position) -> Iterator[Block]:
    """Yield blocks; a position is (row group, batches read of it, rows read of the file)."""
    group, done, row = at
    with _open(path) as file:
        rows = file.metadata.num_rows
        for number in range(group, file.num_row_groups):
            size = _batch_rows(file.metadata.row_group(number))
            batches = file.iter_batches(size, [number], use_threads=False)
            skip = done if number == group else 0
            for index, batch in enumerate(islice(batches, skip, None), skip + 1):
                numbers = range(row + 1, row + batch.num_rows + 1)
                row += batch.num_rows
                yield Block(batch, numbers, [], (number, index, row), row / rows)


def _batch_rows(group: pq.RowGroupMetaData) -> int:
    return max(1, min(ROWS, BYTES * int(group.num_rows) // max(1, int(group.total_byte_size))))
