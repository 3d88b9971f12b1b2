"""Rows of any number picked straight out of one memory-mapped Arrow IPC file, without decoding anything.

A file that is cut while it is mapped ends the process with a signal where memory behind its end is touched, and reads
as zeros within its last page. So size and time of the file are compared before and after each gather: what was read
is either the file as it was opened, or a DataError. Left over is a cut in the microseconds of the gather itself, which
can end the process by SIGBUS, never as data.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from trn.errors import DataError
from trn.feed.footer import one_line
from trn.feed.gather import Pieces, PlainType, group, plain_rows, plain_type, take_arrow
from trn.feed.order import Window

__all__ = ["MappedRows"]

Int64 = NDArray[np.int64]


class MappedRows:
    """The rows of an Arrow IPC file by their number; a source of windows for the feed."""

    is_decoded = False

    def __init__(self, path: Path, columns: Sequence[str], *, size_bytes: int) -> None:
        """Map the file, which must have exactly `size_bytes`; give its columns in this order.

        Raises DataError, also where the structure of the file is broken.
        """
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"it cannot be opened: {error.strerror or error}.", where=str(path)) from error
        try:
            self._opened = os.fstat(self._fd)
            if self._opened.st_size != size_bytes:
                raise DataError(f"it has {self._opened.st_size} bytes, expected {size_bytes}.", where=str(path))
            self._map(columns, size_bytes)
        except BaseException:
            self.close()
            raise

    def _map(self, columns: Sequence[str], size_bytes: int) -> None:
        try:
            buffer = pa.py_buffer(mmap.mmap(self._fd, size_bytes, access=mmap.ACCESS_READ))
            reader = pa.ipc.open_file(pa.BufferReader(buffer))
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
            pieces = [batch.select(columns) for batch in batches if batch.num_rows]
            for piece in pieces:
                piece.validate()
            self.schema: pa.Schema = pa.schema([reader.schema.field(name) for name in columns])
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise DataError(f"not an Arrow IPC file, or damaged: {one_line(error)}.", where=str(self.path)) from error
        self._ends = np.cumsum([piece.num_rows for piece in pieces], dtype=np.int64)
        self._piece_rows = _even_rows(self._ends)
        self.rows = int(self._ends[-1]) if pieces else 0
        self.row_bytes = size_bytes / max(self.rows, 1)
        self._columns = [self._column(buffer, pieces, index) for index in range(len(self.schema))]
        self._is_plain = all(isinstance(one, _Plain) for one in self._columns)

    def _column(self, buffer: pa.Buffer, pieces: list[pa.RecordBatch], index: int) -> _Plain | _Any:
        arrays = [piece.column(index) for piece in pieces]
        if plain := plain_type(self.schema.field(index).type):
            views = [plain_rows(array, plain) for array in arrays]
            if all(view is not None for view in views):
                return _Plain.of(plain, buffer, views, self._ends)  # type: ignore[arg-type]  # none of them is None
        return _Any(arrays, self.schema.names[index])

    def open(self, window: Window, stop: threading.Event) -> _WindowRows | None:
        return None if stop.is_set() else _WindowRows(self)

    def take(self, rows: Int64) -> pa.RecordBatch:
        """A copy of the rows of these numbers, in that order. Raises DataError where the file is not what it was."""
        self._refuse_changed()
        # A search costs a third of what is done here for each part besides copying its rows: a division does not.
        even = self._piece_rows
        piece_of = rows // even if even else np.searchsorted(self._ends, rows, side="right")
        pieces = Pieces(len(rows), ()) if self._is_plain else group(self._ends, rows)
        columns = [
            column.take(piece_of, rows)
            if isinstance(column, _Plain)
            else take_arrow(column.arrays, pieces, column.name)
            for column in self._columns
        ]
        self._refuse_changed()
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def places(self) -> list[tuple[str, int, int]]:
        """Where in memory rows are gathered from: name, address and bytes of each column whose rows have one width."""
        columns = zip(self.schema.names, self._columns, strict=True)
        return [(name, one.rows.ctypes.data, one.rows.nbytes) for name, one in columns if isinstance(one, _Plain)]

    def _refuse_changed(self) -> None:
        now = os.fstat(self._fd)
        before = self._opened
        if now.st_size != before.st_size:
            raise DataError(
                f"the cache was changed while it was read: it had {before.st_size} bytes, now {now.st_size}.",
                where=str(self.path),
                hint="Remove it, and it is made again.",
            )
        if now.st_mtime_ns != before.st_mtime_ns:
            raise DataError(
                "the cache was touched or written to while it was read.",
                where=str(self.path),
                hint="Compare its bytes with `trn data validate`, or remove it, and it is made again.",
            )

    def close(self) -> None:
        """Close the file; the map goes with the last that refers to it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _even_rows(ends: Int64) -> int:
    """How many rows each piece has, of which only the last may have fewer; 0 where it is not so."""
    first = int(ends[0]) if len(ends) else 0
    sizes = np.diff(ends, prepend=0)
    return first if (sizes[:-1] == first).all() and (sizes[-1:] <= first).all() else 0


@dataclass(frozen=True)
class _WindowRows:
    mapped: MappedRows

    @property
    def row_bytes(self) -> float:
        return self.mapped.row_bytes

    def take(self, places: Int64, row_ids: Int64) -> pa.RecordBatch:
        return self.mapped.take(row_ids)


@dataclass(frozen=True)
class _Plain:
    """A column whose rows are so many bytes each, as one array over all pieces and whatever lies between them.

    Where the pieces of the column lie a whole number of rows apart, as `trn.feed.cache` lays them out, `rows[i]` is
    the row that begins i rows after the first such place, and numpy gathers at full speed. Elsewhere `rows[i]` is the
    row that begins at unit i, for every i: overlapping views.
    """

    plain: PlainType
    moved: Int64
    """For each piece, where in `rows` row 0 of the file would be if all rows were laid out as those of the piece."""
    stride: int
    """How far one row is from the next in `rows`."""
    rows: NDArray[Any]

    @classmethod
    def of(cls, plain: PlainType, buffer: pa.Buffer, views: list[NDArray[Any]], row_ends: Int64) -> _Plain:
        size, width = plain.unit.itemsize, plain.width
        flat = np.frombuffer(buffer, plain.unit, buffer.size // size)
        begins = np.array([(view.ctypes.data - buffer.address) // size for view in views], np.int64)
        ends = begins + np.array([view.size for view in views], np.int64)
        if not len(views) or begins.min() < 0 or ends.max() > len(flat):
            raise DataError("a column lies outside the file.", where="cache")
        starts = row_ends - (ends - begins) // width
        first = int(begins[0]) % width
        if not ((begins - first) % width).any():
            whole = flat[first : first + (len(flat) - first) // width * width]
            return cls(plain, (begins - first) // width - starts, 1, whole.reshape(-1, width) if width > 1 else whole)
        overlapping = as_strided(flat, (len(flat) - width + 1, width), (size, size), writeable=False)
        return cls(plain, begins - starts * width, width, overlapping)

    def take(self, piece_of: Int64, rows: Int64) -> pa.Array:
        at = rows * self.stride + self.moved[piece_of]
        if self.stride > 1:
            taken = self.rows[at]
        else:
            taken = _half_a_page_in((len(at), *self.rows.shape[1:]), self.rows.dtype)
            self.rows.take(at, axis=0, mode="clip", out=taken)
        return self.plain.wrap(pa.py_buffer(taken), len(at))


def _half_a_page_in(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array that begins in the middle of a page, for rows that are copied from the beginning of one.

    Where the places of two copies agree in their lowest 12 bits, the processor lets a load wait for the store before
    it; and where a row begins within a cache line, each line is written twice. Memory of numpy's, not of Arrow's pool:
    it asks for huge pages, and what the runner frees stays with it.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 4096, np.uint8)
    begin = (2048 - memory.ctypes.data) % 4096
    return memory[begin : begin + size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class _Any:
    arrays: list[pa.Array]
    name: str
