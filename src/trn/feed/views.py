"""Columns as numpy arrays on their own memory, and those of the batch that a feed gave last.

Making an array of a column takes longer than cutting a batch's rows out of one. So a part keeps the arrays of its
columns, and a feed notes where in them its last batch lies: `trn.feed.tensors` cuts when it is asked for that very
batch. Whoever asks for another one gets the same tensors from the columns, only later.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["Given", "HasArrays", "forget", "given_as", "note", "shared_array", "shared_arrays"]

_DTYPES: dict[type[Any], np.dtype[Any]] = {
    pa.Int8Array: np.dtype(np.int8),
    pa.Int16Array: np.dtype(np.int16),
    pa.Int32Array: np.dtype(np.int32),
    pa.Int64Array: np.dtype(np.int64),
    pa.UInt8Array: np.dtype(np.uint8),
    pa.FloatArray: np.dtype(np.float32),
    pa.DoubleArray: np.dtype(np.float64),
}


def shared_array(column: pa.Array) -> NDArray[Any] | None:
    """`[rows]`, or `[rows, L, ...]` of fixed-size lists; None where anything about the column is less usual than that.

    Less usual are nulls, other types, no rows, and memory that must not be written to.
    """
    values, first, shape = column, column.offset, [len(column)]
    while type(values) is pa.FixedSizeListArray:
        if values.null_count:
            return None
        size = values.type.list_size
        values = values.values  # knows no offset of the list
        first = values.offset + first * size
        shape.append(size)
    dtype = _DTYPES.get(type(values))
    if dtype is None or values.null_count:
        return None
    buffer = values.buffers()[1]
    if buffer is None or not buffer.is_mutable:
        return None
    count = math.prod(shape)
    if not count:
        return None
    flat = np.frombuffer(buffer, dtype, count, first * dtype.itemsize)
    return flat.reshape(shape) if len(shape) > 1 else flat


def shared_arrays(rows: pa.RecordBatch) -> dict[str, NDArray[Any]]:
    """Of each column that has a name of its own and a shared array, in their order."""
    names = rows.schema.names
    arrays = {name: shared_array(column) for name, column in zip(names, rows.columns, strict=True)}
    return {name: array for name, array in arrays.items() if array is not None and names.count(name) == 1}


class HasArrays(Protocol):
    """Rows that keep the shared arrays of their columns."""

    @property
    def arrays(self) -> dict[str, NDArray[Any]]: ...


Given: TypeAlias = tuple[pa.RecordBatch, HasArrays, int, int]
"""A batch that is so many rows of a part: from the first number on, up to the second. A tuple is made fastest."""

_last: Given | None = None


def note(record_batch: pa.RecordBatch, part: HasArrays, begin: int, end: int) -> None:
    """Keep the batch and its part until the next one of any feed is noted, or all is forgotten."""
    global _last  # one batch of the process: whoever finds another there goes the longer way
    _last = (record_batch, part, begin, end)


def forget() -> None:
    """Let go of the batch that was noted last."""
    global _last
    _last = None


def given_as(record_batch: pa.RecordBatch) -> Given | None:
    """Where this very batch, not one that equals it, lies in its part; None unless it was the last one noted."""
    last = _last
    return last if last is not None and last[0] is record_batch else None
