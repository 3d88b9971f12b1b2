"""Arrow columns as torch tensors, without a copy where the layout allows; the only module of this room with torch.

    number                       [rows]
    fixed-size list of numbers   [rows, L]; nested ones [rows, L, M, ...]
    bool                         [rows] torch.bool; bits become bytes, so this one is a copy

All else (nulls, strings, binary, lists of varying length, dates, decimals, extension types) is refused here and belongs
in a transform of the raw batch. Tensors share their memory with the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.types as kinds
import torch
from torch.utils.dlpack import from_dlpack

from trn.errors import DataError

__all__ = ["to_tensors"]


def to_tensors(record_batch: pa.RecordBatch, columns: Sequence[str]) -> dict[str, torch.Tensor]:
    """One tensor for each of `columns`, its first dimension the rows. Raises DataError naming the column."""
    tensors = {}
    for name in columns:
        places = record_batch.schema.get_all_field_indices(name)
        if len(places) != 1:
            names = ", ".join(record_batch.schema.names)
            raise DataError(f"expected one column of this name, the batch has: {names}.", where=f'column "{name}"')
        tensors[name] = _tensor(name, record_batch.column(places[0]))
    return tensors


def _tensor(name: str, column: pa.Array) -> torch.Tensor:
    shape = [len(column)]
    values = column
    while kinds.is_fixed_size_list(values.type):
        _refuse_nulls(name, values)
        size = values.type.list_size
        shape.append(size)
        # what flatten() gives where nothing is null, without the 10 us of a compute call; `values` knows no offset
        values = values.values.slice(values.offset * size, len(values) * size)
    _refuse_nulls(name, values)
    if kinds.is_boolean(values.type):
        flat = from_dlpack(values.cast(pa.uint8())).view(torch.bool)
    elif kinds.is_integer(values.type) or kinds.is_floating(values.type):
        flat = from_dlpack(values)
    else:
        raise DataError(
            f"type {column.type} has no fixed number of values a row, or they are no numbers.",
            where=f'column "{name}"',
            hint="Store fixed-size lists of numbers, or turn the raw batch into tensors in a transform.",
        )
    return flat.view(shape) if len(shape) > 1 else flat


def _refuse_nulls(name: str, values: pa.Array) -> None:
    if values.null_count:
        raise DataError(
            f"{values.null_count} of {len(values)} values are null, and a tensor has no null.",
            where=f'column "{name}"',
            hint="Fill them when the data is written, or in a transform of the raw batch.",
        )
