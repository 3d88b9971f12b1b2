"""The end of a parquet file, read and checked before anything else of it: row groups, types, and its own digest.

The footer holds names and types of all columns and the place, size and statistics of every column chunk, so its sha256
is a good and cheap identity of the file; the sha256 of a row group's bytes is the full proof (see `manifest`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from trn.errors import DataError
from trn.feed.sources import of_each, open_source, stat_source
from trn.feed.statistics import known_nulls
from trn.feed.stores import is_url

__all__ = ["ByteRange", "Footer", "byte_ranges", "one_line", "read_footer", "read_footer_of", "read_footers"]

_MAGIC = b"PAR1"
_TAIL_BYTES = 8
_READ_BYTES = 64 << 10  # at once: most footers are smaller, and a store is asked once instead of twice


@dataclass(frozen=True)
class ByteRange:
    """A piece of a file: all column chunks of one row group."""

    offset: int
    size_bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.size_bytes


@dataclass(frozen=True)
class Footer:
    """What the end of one parquet file says. `sha256` covers the footer with its length and magic."""

    path: str
    size_bytes: int
    mtime_ns: int
    sha256: str
    schema: pa.Schema
    row_groups: tuple[int, ...]
    """Rows of each row group."""
    tail_bytes: int
    """Size of the footer with its length and magic; the data ends where it begins."""
    nulls: Mapping[str, int] = field(default_factory=dict)
    """Columns that hold nulls for certain, and how many; filled where it was asked for."""


def read_footer(path: str, *, count_nulls: bool = False) -> Footer:
    """Read and check the footer of the file at `path`. Raises DataError that names the file."""
    with open_source(path) as source:
        return read_footer_of(source, path, count_nulls=count_nulls)


def read_footers(paths: Sequence[str], *, count_nulls: bool = False) -> list[Footer]:
    """`read_footer` of each path, in their order."""
    return of_each(paths, lambda path: read_footer(path, count_nulls=count_nulls))


def read_footer_of(source: pa.NativeFile, path: str, *, count_nulls: bool = False) -> Footer:
    """Read and check the footer of an open file; `path` is for messages and times. Raises DataError."""
    mtime_ns = stat_source(path).mtime_ns
    try:
        size = source.size()
        tail = _read_tail(source, size, path)
        metadata = pq.read_metadata(pa.BufferReader(_MAGIC + tail))
        schema = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"the parquet footer cannot be read: {one_line(error)}.",
            where=path,
            hint="Try again, or copy the file here." if is_url(path) else "Write the file again.",
        ) from error
    footer = Footer(
        path=path,
        size_bytes=size,
        mtime_ns=mtime_ns,
        sha256=hashlib.sha256(tail).hexdigest(),
        schema=schema,
        row_groups=tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)),
        tail_bytes=len(tail),
        nulls=known_nulls(tail, schema) if count_nulls else {},
    )
    if min(footer.row_groups, default=0) < 0 or sum(footer.row_groups) != metadata.num_rows:
        raise DataError(
            f"the footer counts {metadata.num_rows} rows, its row groups {sum(footer.row_groups)}.",
            where=path,
            hint="The file is damaged; write it again.",
        )
    return footer


def _read_tail(source: pa.NativeFile, size: int, path: str) -> bytes:
    read_bytes = min(size, _READ_BYTES)
    end: bytes = source.read_at(read_bytes, size - read_bytes)
    last = end[-_TAIL_BYTES:] if size >= _TAIL_BYTES + len(_MAGIC) else b""
    if last[4:] == b"PARE":
        raise DataError("the file is encrypted, which is not supported.", where=path)
    if last[4:] != _MAGIC:
        raise DataError(f"not a parquet file, or cut short: it has {size} bytes and does not end in PAR1.", where=path)
    length = int.from_bytes(last[:4], "little") + _TAIL_BYTES
    if length + len(_MAGIC) > size:
        raise DataError(f"the parquet footer claims {length} bytes, the file has {size}.", where=path)
    return end[-length:] if length <= len(end) else bytes(source.read_at(length, size - length))


def byte_ranges(source: pa.NativeFile, footer: Footer) -> tuple[ByteRange, ...]:
    """The bytes of each row group: from the first of its first column chunk to the last of its last one.

    They are checked to lie in the file and not to overlap; an empty row group has none. Raises DataError.
    """
    parquet = pq.ParquetFile(source, pre_buffer=False)
    ranges = []
    end_of_data = footer.size_bytes - footer.tail_bytes
    for index, rows in enumerate(footer.row_groups):
        span = ByteRange(0, 0)
        if rows:
            _read_first_row(parquet, index, footer.path)
            span = _byte_range(parquet.metadata.row_group(index))
        ranges.append(span)
    at = 0
    for span in sorted(ranges, key=lambda one: one.offset):
        if span.offset < at or span.size_bytes < 0 or span.end > end_of_data:
            raise DataError(
                f"a row group lies at bytes {span.offset} to {span.end}, expected between {at} and {end_of_data}.",
                where=footer.path,
                hint="The file is damaged; write it again.",
            )
        at = span.end
    return tuple(ranges)


def _read_first_row(parquet: pq.ParquetFile, index: int, path: str) -> None:
    """Raise DataError where a row group cannot be read; called before its column metadata are looked at.

    RowGroupMetaData.column() ends the process where a column's statistics are damaged (arrow issue 45283 had such
    files); reading goes over the same metadata and raises.
    """
    try:
        for _ in parquet.iter_batches(batch_size=1, row_groups=[index], use_threads=False):
            return
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(one_line(error), index, path) from error
    raise _unreadable("it holds no rows, the footer says it does", index, path)


def _unreadable(problem: str, index: int, path: str) -> DataError:
    return DataError(
        f"the row group cannot be read: {problem}.",
        where=f"{path}, row group {index}",
        hint="The file is damaged; write it again.",
    )


def _byte_range(group: pq.RowGroupMetaData) -> ByteRange:
    spans = []
    for index in range(group.num_columns):
        chunk = group.column(index)
        start = chunk.data_page_offset
        # some writers leave a dictionary offset of 0 where there is no dictionary page
        if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
            start = chunk.dictionary_page_offset
        spans.append((start, start + chunk.total_compressed_size))
    offset = min(start for start, _ in spans)
    return ByteRange(offset, max(end for _, end in spans) - offset)


def one_line(error: BaseException) -> str:
    """What a library says, fit for the middle of a one-line message."""
    return " ".join(str(error).split()).rstrip(".")[:300]
