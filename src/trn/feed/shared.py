"""The usual column as a tensor on its own memory, in a third of the time of the way that serves every column.

A step with a small batch from a mapped cache waits for this more than for its rows: about 3 us instead of 9, and 2
where the batch is the one that a feed gave last.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import torch
from torch import from_numpy

from trn.feed.views import given_as, shared_array

__all__ = ["shared_tensor", "tensors_of_given"]


def shared_tensor(column: pa.Array) -> torch.Tensor | None:
    """`[rows]`, or `[rows, L, ...]` of fixed-size lists; None where `shared_array` gives none."""
    array = shared_array(column)
    return None if array is None else from_numpy(array)


def tensors_of_given(record_batch: pa.RecordBatch, columns: Sequence[str] | None) -> dict[str, torch.Tensor] | None:
    """A tensor of each column, of storage of its own; None where the batch is not the last one, or a column unusual."""
    given = given_as(record_batch)
    if given is None:
        return None
    _, part, begin, end = given
    arrays = part.arrays
    if columns is None and len(arrays) < record_batch.num_columns:
        return None
    tensors: dict[str, torch.Tensor] = {}
    for name in arrays if columns is None else columns:
        array = arrays.get(name)
        if array is None:
            return None
        tensors[name] = from_numpy(array[begin:end])
    return tensors
