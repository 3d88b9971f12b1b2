"""Rows that are in memory: as a table, drawn at random, and as the batches that a run over them would see.

The order of a run follows from the fingerprint of its data, so the rows are laid out as a parquet file would hold them,
in memory: what `memory_feed` gives is what a run gives over the file that `write_rows` writes, batch for batch.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trn.feed import Cursor, Dataset, Feed, Order, RawBatch
from trn.feed.dataset import dataset_of, schema_of
from trn.feed.footer import Footer
from trn.feed.order import Remainder

__all__ = ["Rows", "memory_feed", "memory_rows", "random_rows", "table_of", "write_rows"]

Rows: TypeAlias = pa.Table | Mapping[str, Any]
"""A table; or columns by name, each an array `[rows]` or `[rows, L, ...]`, a tensor or a list."""

ROW_GROUP_ROWS = 64


def table_of(rows: Rows) -> pa.Table:
    """Columns of numbers as the feed reads them: `[rows, L]` becomes a fixed-size list of L."""
    if isinstance(rows, pa.Table):
        return rows
    if not isinstance(rows, Mapping):
        raise TypeError(f"rows: expected a pyarrow.Table or columns by name, found {type(rows).__name__}")
    return pa.table({name: _column(values) for name, values in rows.items()})


def _column(values: Any) -> pa.Array:
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    if isinstance(values, list) and values and isinstance(values[0], (str, bytes, dict, list)):
        return pa.array(values)
    array = np.ascontiguousarray(values)
    column = pa.array(array.reshape(-1))
    for size in reversed(array.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column


def random_rows(columns: Mapping[str, pa.DataType], rows: int = 64, seed: int = 0) -> pa.Table:
    """Rows of these types: normal numbers, whole ones from 0 to 7, booleans, short words, and lists of any of them."""
    generator = np.random.default_rng(seed)
    made = {}
    for name, kind in columns.items():
        if not isinstance(kind, pa.DataType):
            raise TypeError(f"columns[{name!r}]: expected a pyarrow type such as pyarrow.float32(), found {kind!r}")
        made[name] = _random(kind, rows, generator)
    return pa.table(made)


def _random(kind: pa.DataType, count: int, generator: np.random.Generator) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        values = _random(kind.value_type, count * kind.list_size, generator)
        return pa.FixedSizeListArray.from_arrays(values, type=kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        ends = np.concatenate([[0], np.cumsum(generator.integers(1, 6, count))])
        offsets = pa.array(ends, pa.int64() if pa.types.is_large_list(kind) else pa.int32())
        array = pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray
        return array.from_arrays(offsets, _random(kind.value_type, int(ends[-1]), generator), type=kind)
    if pa.types.is_floating(kind):
        return pa.array(generator.normal(size=count).astype(np.float32)).cast(kind)
    if pa.types.is_integer(kind):
        return pa.array(generator.integers(0, 8, count)).cast(kind)
    if pa.types.is_boolean(kind):
        return pa.array(generator.integers(0, 2, count).astype(bool))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.array([f"word {number}" for number in generator.integers(0, 8, count)], kind)
    raise TypeError(f"no random values are made of the type {kind}: give rows instead")


def write_rows(rows: Rows, path: Path, *, row_group_rows: int = ROW_GROUP_ROWS) -> Path:
    """The rows as a parquet file, for a spec's `parquet_paths`."""
    pq.write_table(table_of(rows), path, row_group_size=row_group_rows)
    return path


def memory_feed(
    rows: Rows,
    *,
    batch_size: int = 32,
    seed: int = 0,
    shuffle: bool = True,
    window: int = 8,
    remainder: Remainder = "carry",
    passes: int | None = 1,
    columns: Sequence[str] | None = None,
    row_group_rows: int = ROW_GROUP_ROWS,
) -> Feed:
    """The feed of a run over these rows; the arguments are those of the spec's `dataset`, and its `seed`.

    `passes` None never ends. Raises DataError as a run would.
    """
    sink = io.BytesIO()
    pq.write_table(table_of(rows), sink, row_group_size=row_group_rows)
    file = pq.ParquetFile(pa.BufferReader(sink.getvalue()))
    footer = _footer_of(sink.getvalue(), file)
    dataset = dataset_of([footer], columns)
    order = Order(
        fingerprint=dataset.fingerprint,
        block_rows=dataset.block_rows,
        seed=seed,
        batch_size=batch_size,
        window=window,
        shuffle=shuffle,
        remainder=remainder,
        passes=passes,
    )
    reader = _MemoryBlocks(file, dataset, footer)
    return Feed(dataset, order, columns, Cursor(), readahead=0, reader=reader)


def memory_rows(rows: Rows, **options: Any) -> Iterator[RawBatch]:
    """The batches of `memory_feed`, one by one: `record_batch` is what a hook is given, `row_ids` what they are."""
    with memory_feed(rows, **options) as feed:
        while (batch := feed.next()) is not None:
            yield batch


class _MemoryBlocks:
    """Row groups of a parquet file that lies in memory."""

    def __init__(self, file: pq.ParquetFile, dataset: Dataset, footer: Footer) -> None:
        self._file, self._dataset = file, dataset
        self._columns = list(dataset.columns)
        self.schema = schema_of([footer], self._columns)

    def read(self, block: int) -> pa.Table:
        group = self._dataset.blocks[block].row_group
        table = self._file.read_row_group(group, columns=self._columns, use_threads=False)
        return pa.Table.from_arrays([table.column(name) for name in self._columns], schema=self.schema)

    def close(self) -> None:
        self._file.close()


def _footer_of(data: bytes, file: pq.ParquetFile) -> Footer:
    """What `read_footer` says of the same bytes in a file."""
    tail_bytes = int.from_bytes(data[-8:-4], "little") + 8
    groups = tuple(file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))
    return Footer(
        path="rows in memory",
        size_bytes=len(data),
        mtime_ns=0,
        sha256=hashlib.sha256(data[-tail_bytes:]).hexdigest(),
        schema=file.schema_arrow,
        row_groups=groups,
        tail_bytes=tail_bytes,
    )
