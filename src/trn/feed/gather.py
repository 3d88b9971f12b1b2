"""Rows picked out of Arrow memory in any order, into memory of their own, without a step of Python for each row.

    numbers and fixed-size lists of them, none null     numpy copies rows of so many bytes
    all else (strings, lists, nulls, booleans ...)      Arrow's take

A row of the first kind is `row_bytes` bytes wherever its column lies, so values of any type are copied as unsigned
integers, the widest that a row is a multiple of. Arrow's own take needs 1.3 to 2 times as long for such rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds
from numpy.typing import NDArray

from trn.errors import DataError

__all__ = ["Gather", "Pieces", "PlainType", "concat", "group", "plain_rows", "plain_type", "take_arrow"]

Int64 = NDArray[np.int64]

_NARROW_BYTES = 256
"""Rows up to this are laid in one before they are gathered: one copy of all is cheaper than a search for each."""


@dataclass(frozen=True)
class PlainType:
    """A type whose rows have so many bytes each, one after the other, and nothing beside them."""

    kind: pa.DataType
    items: PlainType | None
    """Of the items, where it is a list."""
    row_bytes: int

    @property
    def unit(self) -> np.dtype[Any]:
        """What a row is copied as."""
        return np.dtype(f"u{next(size for size in (8, 4, 2, 1) if self.row_bytes % size == 0)}")

    @property
    def width(self) -> int:
        """Units in a row."""
        return self.row_bytes // self.unit.itemsize

    def wrap(self, buffer: pa.Buffer, rows: int) -> pa.Array:
        """The Arrow array whose values `buffer` holds, uncopied."""
        if self.items is None:
            return pa.Array.from_buffers(self.kind, rows, [None, buffer], 0)
        values = self.items.wrap(buffer, rows * self.kind.list_size)
        return pa.Array.from_buffers(self.kind, rows, [None], 0, children=[values])


@cache
def plain_type(kind: pa.DataType) -> PlainType | None:
    """How rows of a type are copied; None where they are no fixed number of bytes, or share bytes."""
    if kinds.is_fixed_size_list(kind):
        items = plain_type(kind.value_type)
        if items is None or not kind.list_size:
            return None
        return PlainType(kind, items, items.row_bytes * kind.list_size)
    if kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_temporal(kind):
        return PlainType(kind, None, kind.bit_width // 8)
    return None


def plain_rows(column: pa.Array, plain: PlainType) -> NDArray[Any] | None:
    """The column's own memory as `[rows, width]` units (`[rows]` where the width is 1); None if a value is null."""
    values, first, count = column, column.offset, len(column)
    while kinds.is_fixed_size_list(values.type):
        if values.null_count:
            return None
        size = values.type.list_size
        below = values.values  # knows no offset of the list
        values, first, count = below.slice(first * size, count * size), below.offset + first * size, count * size
    buffer = values.buffers()[1]
    if values.null_count or buffer is None:
        return None
    unit = plain.unit
    start = first * (values.type.bit_width // 8)
    if (buffer.address + start) % unit.itemsize:
        return None
    flat = np.frombuffer(buffer, unit, len(column) * plain.width, start)
    return flat.reshape(-1, plain.width) if plain.width > 1 else flat


@dataclass(frozen=True)
class Pieces:
    """Places in pieces laid end to end, sorted by piece: `local` rows of piece `index` belong at `at` of the result."""

    count: int
    groups: tuple[tuple[int, Int64, Int64], ...]
    """(index, at, local), without pieces of which nothing is wanted."""


def group(ends: Int64, places: Int64) -> Pieces:
    """Which of `places` lie in which piece; `ends` says how many rows there are up to the end of each."""
    if len(ends) == 1:
        return Pieces(len(places), ((0, np.arange(len(places)), places),))
    piece_of = np.searchsorted(ends, places, side="right")
    by_piece = np.argsort(piece_of, kind="stable")
    cuts = np.searchsorted(piece_of[by_piece], np.arange(len(ends) + 1))
    groups = []
    for index in np.flatnonzero(np.diff(cuts)).tolist():
        at = by_piece[cuts[index] : cuts[index + 1]]
        groups.append((index, at, places[at] - (int(ends[index - 1]) if index else 0)))
    return Pieces(len(places), tuple(groups))


def take_arrow(columns: Sequence[pa.Array], pieces: Pieces, name: str) -> pa.Array:
    """The wanted rows of a column of any type, by Arrow's take; `name` is for the message.

    Raises DataError where they hold more than the column's 32-bit offsets reach.
    """
    try:
        taken = [pc.take(_from_its_start(columns[index]), pa.array(local)) for index, _, local in pieces.groups]
        if len(taken) == 1 and len(columns) == 1:
            return taken[0]
        back = np.empty(pieces.count, np.int64)
        back[np.concatenate([at for _, at, _ in pieces.groups])] = np.arange(pieces.count)
        return pc.take(pa.concat_arrays(taken), pa.array(back))
    except pa.ArrowInvalid as error:
        _refuse_overflow(error, name, columns[0].type, pieces.count)
        raise


def _refuse_overflow(error: pa.ArrowInvalid, name: str, kind: pa.DataType, rows: int) -> None:
    """Raise DataError if `error` is that so many rows do not fit: Arrow's words for it are its only sign."""
    if "overflow" in str(error):
        raise DataError(
            f'column "{name}" is {kind}, and {rows} rows together hold more than its 32-bit offsets reach:'
            " 2 GiB of text or bytes, or 2^31 values in lists.",
            where="dataset.batch_size",
            hint="Use a smaller batch, or write the column as large_string, large_binary or large_list.",
        ) from error


def _from_its_start(column: pa.Array) -> pa.Array:
    """The same values; a copy where take would look in the wrong place (pyarrow 26.0: a slice of lists of lists)."""
    is_nested = kinds.is_fixed_size_list(column.type) and kinds.is_fixed_size_list(column.type.value_type)
    return pa.concat_arrays([column]) if column.offset and is_nested else column


class Gather:
    """Decoded pieces laid end to end, from which rows are picked."""

    def __init__(self, pieces: Sequence[pa.RecordBatch], schema: pa.Schema) -> None:
        self._pieces = pieces
        self._schema = schema
        self._ends = np.cumsum([piece.num_rows for piece in pieces], dtype=np.int64)
        self._columns = [self._column(index) for index in range(len(schema))]
        self.row_bytes = sum(piece.nbytes for piece in pieces) / int(self._ends[-1])

    def _column(self, index: int) -> _Plain | _Any:
        arrays = [piece.column(index) for piece in self._pieces]
        plain = plain_type(self._schema.field(index).type)
        if plain is not None:
            if len(arrays) > 1 and plain.row_bytes <= _NARROW_BYTES:
                arrays = [pa.concat_arrays(arrays)]
            views = [plain_rows(array, plain) for array in arrays]
            if all(view is not None for view in views):
                return _Plain(plain, views)  # type: ignore[arg-type]  # none of them is None
        return _Any([piece.column(index) for piece in self._pieces], self._schema.names[index])

    def take(self, places: Int64) -> pa.RecordBatch:
        """A copy of the rows at `places`, in that order. Raises DataError as `take_arrow` does."""
        is_in_one = all(isinstance(column, _Plain) and len(column.views) == 1 for column in self._columns)
        pieces = Pieces(len(places), ()) if is_in_one else group(self._ends, places)
        columns = [column.take(pieces, places) for column in self._columns]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def view(self, places: Int64) -> pa.RecordBatch:
        """The rows at `places`, uncopied where they are consecutive and lie in one piece; raises as `take` does."""
        first, count = int(places[0]), len(places)
        if len(self._pieces) == 1 and np.array_equal(places, np.arange(first, first + count)):
            return self._pieces[0].slice(first, count)
        return self.take(places)


@dataclass(frozen=True)
class _Plain:
    plain: PlainType
    views: list[NDArray[Any]]

    def take(self, pieces: Pieces, places: Int64) -> pa.Array:
        buffer = pa.allocate_buffer(pieces.count * self.plain.row_bytes)
        flat = np.frombuffer(buffer, self.plain.unit)
        rows = flat.reshape(-1, self.plain.width) if self.plain.width > 1 else flat
        if len(self.views) == 1:
            # clip: with the default, numpy gathers into memory of its own first
            np.take(self.views[0], places, axis=0, out=rows, mode="clip")
        else:
            for index, at, local in pieces.groups:
                rows[at] = self.views[index].take(local, axis=0)
        return self.plain.wrap(buffer, pieces.count)


@dataclass(frozen=True)
class _Any:
    arrays: list[pa.Array]
    name: str

    def take(self, pieces: Pieces, places: Int64) -> pa.Array:
        return take_arrow(self.arrays, pieces, self.name)


def concat(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """The rows of `batches` in one; the batch itself, uncopied, where there is only one; none where there is none.

    Raises DataError where they hold more than a column's 32-bit offsets reach.
    """
    if len(batches) == 1:
        return batches[0]
    if not batches:
        return pa.RecordBatch.from_pylist([], schema=schema)
    columns = [_concat_column(batches, index) for index in range(len(schema))]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _concat_column(batches: Sequence[pa.RecordBatch], index: int) -> pa.Array:
    arrays = [batch.column(index) for batch in batches]
    try:
        return pa.concat_arrays(arrays)
    except pa.ArrowInvalid as error:
        _refuse_overflow(error, batches[0].schema.names[index], arrays[0].type, sum(map(len, arrays)))
        raise
