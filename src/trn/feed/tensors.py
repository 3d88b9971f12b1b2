"""Arrow columns as torch tensors, without a copy where the layout allows; the only module of this room with torch.

    number                       [rows]
    fixed-size list of numbers   [rows, L]; nested ones [rows, L, M, ...]
    list of varying length       two tensors: NAME, the values of all rows in one [values], and NAME_offsets, int64
                                 [rows + 1] from 0: row i has the values from offset i to offset i + 1
    bool                         torch.bool; bits become bytes, so this one is a copy

All else (strings, binary, images, dates, decimals, extension types, and nulls) stays in Arrow: it is refused here, and
read from the raw batch. Tensors share their memory with the batch, offsets do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.types as kinds
import torch
from torch.utils.dlpack import from_dlpack

from trn.errors import DataError
from trn.feed.shared import shared_tensor, tensors_of_given

__all__ = ["to_tensors"]

_Listed = (pa.ListArray, pa.LargeListArray)


def to_tensors(record_batch: pa.RecordBatch, columns: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
    """One tensor for each of `columns` (None: all of the batch), two for lists of varying length.

    The first dimension is the rows, but for such values. Raises DataError naming the column.
    """
    if (given := tensors_of_given(record_batch, columns)) is not None:
        return given
    tensors: dict[str, torch.Tensor] = {}
    for name in record_batch.schema.names if columns is None else columns:
        at = record_batch.schema.get_field_index(name)  # below 0 for none, and for more than one
        if at >= 0 and (shared := shared_tensor(record_batch.column(at))) is not None:
            tensors[name] = shared
            continue
        places = record_batch.schema.get_all_field_indices(name)
        if len(places) != 1:
            names = ", ".join(record_batch.schema.names)
            raise DataError(f"expected one column of this name, the batch has: {names}.", where=f'column "{name}"')
        column, kind = record_batch.column(places[0]), record_batch.schema.field(places[0]).type
        offsets = None
        if isinstance(column, _Listed):
            if f"{name}_offsets" in record_batch.schema.names:
                raise DataError(
                    f'the offsets of the lists in "{name}" have the same name.',
                    where=f'column "{name}_offsets"',
                    hint="Rename one of the two columns, or turn them into tensors one by one.",
                )
            _refuse_nulls(name, column)
            offsets = column.offsets.cast(pa.int64()).to_numpy()
            first, last = int(offsets[0]), int(offsets[-1])
            column = column.values.slice(first, last - first)
        tensors[name] = _tensor(name, column, kind)
        if offsets is not None:
            tensors[f"{name}_offsets"] = torch.from_numpy(offsets - first)
    return tensors


def _tensor(name: str, column: pa.Array, kind: pa.DataType) -> torch.Tensor:
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
            f"{kind} is no number and no list of numbers, so it does not become a tensor.",
            where=f'column "{name}"',
            hint=f'Read raw_batch.column("{name}") in `transform`, and give ctx.tensors the names of the others.',
        )
    return flat.view(shape) if len(shape) > 1 else flat


def _refuse_nulls(name: str, values: pa.Array) -> None:
    if values.null_count:
        raise DataError(
            f"{values.null_count} of {len(values)} values are null, and a tensor has no null.",
            where=f'column "{name}"',
            hint="Say with dataset.nulls what they mean, or fill them in a transform of the raw batch.",
        )
