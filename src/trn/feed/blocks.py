"""Decoding: a block of a data set becomes an Arrow table.

`BlockReader` is where another source of decoded blocks comes in, say a memory-mapped Arrow IPC copy of the data set: it
gives the same tables for the same numbers, and nothing above it changes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from trn.errors import DataError
from trn.feed.dataset import DataFile, Dataset, RowGroupDigest, refuse_changed, schema_of
from trn.feed.footer import one_line, read_footer, read_footer_of
from trn.feed.sources import READ_BYTES, open_source
from trn.feed.stores import is_url

__all__ = ["BlockReader", "ParquetBlocks"]

_OPEN_FILES = 8


class BlockReader(Protocol):
    """Gives decoded blocks. Used by one thread at a time."""

    schema: pa.Schema
    """Columns of every table that `read` gives: asked names in the asked order, types as in the data set."""

    def read(self, block: int) -> pa.Table:
        """The rows of block number `block` (see `Dataset.blocks`), in file order. Raises DataError."""
        ...

    def close(self) -> None:
        """Release what is held open; nothing is read afterwards."""
        ...


class ParquetBlocks:
    """Blocks decoded from the parquet files themselves, on the calling thread, without a pool.

    Each file is compared with the data set whenever it is opened. Where the data set knows the sha256 of a row group,
    its bytes are verified before they are first decoded here; page checksums are verified where a file has them.
    """

    def __init__(self, dataset: Dataset, columns: Sequence[str]) -> None:
        self._dataset = dataset
        self._columns = list(columns)
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()
        self._verified: set[int] = set()
        self.schema = self._make_schema()

    def _make_schema(self) -> pa.Schema:
        if unknown := [name for name in self._columns if name not in self._dataset.columns]:
            raise DataError(
                f'the data set was opened without the column "{unknown[0]}".',
                where=self._dataset.files[0].path,
                hint="Add it to dataset.columns.",
            )
        first = self._dataset.files[0]
        footer = read_footer(first.path)
        refuse_changed(first, footer)
        return schema_of([footer], self._columns)

    def read(self, block: int) -> pa.Table:
        found = self._dataset.blocks[block]
        file = self._dataset.files[found.file]
        where = f"{file.path}, row group {found.row_group}"
        try:
            opened = self._file(found.file)
            if file.digests is not None and block not in self._verified:
                _verify(opened.source, file.digests[found.row_group], where)
                self._verified.add(block)
            table = opened.parquet.read_row_group(found.row_group, columns=self._columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"the row group cannot be read: {one_line(error)}.",
                where=where,
                hint="The file was damaged or shortened after it was opened; bring the original back."
                if not is_url(file.path)
                else "The store stopped answering, or holds something else now; resume when it is back.",
            ) from error
        if table.num_rows != found.rows:
            raise DataError(f"it holds {table.num_rows} rows, the footer says {found.rows}.", where=where)
        return pa.Table.from_arrays([table.column(name) for name in self._columns], schema=self.schema)

    def _file(self, index: int) -> _OpenFile:
        opened = self._open.get(index)
        if opened is None:
            while len(self._open) >= _OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            opened = self._open[index] = _OpenFile(self._dataset.files[index])
        self._open.move_to_end(index)
        return opened

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


class _OpenFile:
    def __init__(self, file: DataFile) -> None:
        self.source = open_source(file.path)
        try:
            refuse_changed(file, read_footer_of(self.source, file.path))
            # of a store, all columns of a row group are asked for at once instead of one after the other
            is_far = is_url(file.path)
            self.parquet = pq.ParquetFile(self.source, pre_buffer=is_far, page_checksum_verification=True)
        except BaseException:
            self.source.close()
            raise

    def close(self) -> None:
        self.source.close()


def _verify(source: pa.NativeFile, expected: RowGroupDigest, where: str) -> None:
    digest = hashlib.sha256()
    at, end = expected.offset, expected.offset + expected.size_bytes
    while at < end and (chunk := source.read_at(min(READ_BYTES, end - at), at)):
        digest.update(chunk)
        at += len(chunk)
    if digest.hexdigest() != expected.sha256:
        raise DataError(
            f"its bytes have sha256 {digest.hexdigest()}, the manifest says {expected.sha256}.",
            where=where,
            hint="The file was changed or damaged; bring the original back.",
        )
