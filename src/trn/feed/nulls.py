"""What becomes of nulls: refused by name, replaced by a value of the spec, or let through to a transform.

    None                         nulls are not looked for: for reading data as they lie
    Fills = {}                   a null in any column that is read ends the run, naming file, column and row
    Fills = {"label": -1}        a null in `label` is -1 wherever the rows are seen
    Fills = {"caption": None}    nulls in `caption` stay, as Arrow has them

In a column of lists the value stands for null elements; a null list of fixed size has that value throughout, a null
list of varying size is empty. What is null inside a struct or a map is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from trn.errors import DataError

if TYPE_CHECKING:
    from trn.feed.dataset import Dataset
    from trn.feed.parts import Part

__all__ = ["Fill", "Fills", "WithoutNulls", "check_fills", "first_null", "refuse_known_nulls"]

Fill: TypeAlias = int | float | bool | str | None
Fills: TypeAlias = Mapping[str, Fill]

_HINT = "Fill them with dataset.nulls: {%s: VALUE}, or let them through to the transform with {%s: null}."


def check_fills(fills: Fills, schema: pa.Schema) -> None:
    """Raise DataError for a column that is not read, and for a value that its column cannot hold."""
    for name, value in fills.items():
        where = f"dataset.nulls.{name}"
        if name not in schema.names:
            shown = ", ".join(f'"{one}"' for one in schema.names)
            raise DataError("there is no such column among those that are read.", where=where, hint=f"Read: {shown}.")
        kind = schema.field(name).type
        if value is not None and _held(value, _leaf(kind)) is None:
            raise DataError(
                f'{value!r} is no value of column "{name}", which is {kind}.',
                where=where,
                hint="Numbers, booleans, strings and lists of them can be filled; null lets nulls through.",
            )


def _leaf(kind: pa.DataType) -> pa.DataType:
    while kinds.is_fixed_size_list(kind) or kinds.is_list(kind) or kinds.is_large_list(kind):
        kind = kind.value_type
    return kind


def _held(value: Fill, kind: pa.DataType) -> pa.Scalar | None:
    """The value as a column of this type holds it; None where it cannot. What is checked here is what is filled in.

    A float is rounded as any literal is; an integer has to be held exactly, in a column of floats too.
    """
    try:
        if kinds.is_floating(kind) and isinstance(value, (int, float)) and not isinstance(value, bool):
            scalar = pa.scalar(float(value), kind)
            held = float(scalar.as_py())
            return scalar if math.isfinite(held) and (isinstance(value, float) or held == value) else None
        return pa.scalar(value, kind) if type(value) is _python_type(kind) else None
    except (pa.ArrowException, OverflowError, ValueError):
        return None


def _python_type(kind: pa.DataType) -> type | None:
    if kinds.is_boolean(kind):
        return bool
    if kinds.is_integer(kind):
        return int
    return str if kinds.is_string(kind) or kinds.is_large_string(kind) else None


def refuse_known_nulls(nulls: Mapping[str, int], columns: Iterable[str], fills: Fills, path: str) -> None:
    """Raise DataError for the first column, read and without a fill, of which a footer says that it has nulls."""
    for name in columns:
        if name in nulls and name not in fills:
            raise DataError(
                f'column "{name}" has {nulls[name]} null values, and nothing says what they mean.',
                where=path,
                hint=_HINT % (name, name),
            )


class WithoutNulls:
    """Parts as they come, with nulls filled; iterate once.

    At a null that is refused, the rows of its part before it still come, so that the error meets the batch that it is
    in, however the rows were cut into parts.
    """

    def __init__(self, parts: Iterable[Part], dataset: Dataset, fills: Fills) -> None:
        self._parts = parts
        self._dataset = dataset
        self._fills = fills

    def __iter__(self) -> Iterator[Part]:
        for part in self._parts:
            settled, error = self._settle(part)
            del part  # or it would live on while the next window is decoded
            if len(settled.row_ids):
                yield settled
            del settled
            if error is not None:
                raise error

    def _settle(self, part: Part) -> tuple[Part, DataError | None]:
        rows = part.rows
        bad: list[tuple[int, str]] = []
        columns: dict[int, pa.Array] = {}
        for index, name in enumerate(rows.schema.names):
            column = rows.column(index)
            if (at := first_null(column)) is None:
                continue
            if name not in self._fills:
                bad.append((at, name))
            elif (value := self._fills[name]) is not None:
                columns[index] = _filled(column, value)
        if columns:
            arrays = [columns.get(index, rows.column(index)) for index in range(rows.num_columns)]
            part = replace(part, rows=pa.RecordBatch.from_arrays(arrays, schema=rows.schema))
        if not bad:
            return part, None
        at, name = min(bad)
        error = self._refusal(name, int(part.row_ids[at]))
        return replace(part, rows=part.rows.slice(0, at), row_ids=part.row_ids[:at]), error

    def _refusal(self, name: str, row_id: int) -> DataError:
        files = self._dataset.files
        ends = np.cumsum([file.rows for file in files])
        at = int(np.searchsorted(ends, row_id, side="right"))
        row = row_id - int(ends[at]) + files[at].rows
        return DataError(
            f'column "{name}" is null, or holds a null, in row {row} (from 0), and nothing says what that means.',
            where=files[at].path,
            hint=_HINT % (name, name),
        )


def _values(column: pa.Array) -> pa.Array:
    """The elements of the rows of a list column, those under null lists too."""
    if kinds.is_fixed_size_list(column.type):
        size = column.type.list_size
        return column.values.slice(column.offset * size, len(column) * size)
    if not len(column):
        return column.values.slice(0, 0)
    first, last = column.offsets[0].as_py(), column.offsets[len(column)].as_py()
    return column.values.slice(first, last - first)


def _is_list(kind: pa.DataType) -> bool:
    return bool(kinds.is_fixed_size_list(kind) or kinds.is_list(kind) or kinds.is_large_list(kind))


def _has_nulls(column: pa.Array) -> bool:
    while True:
        if column.null_count:
            return True
        if not _is_list(column.type):
            return False
        column = _values(column)


def first_null(column: pa.Array) -> int | None:
    """The first row that is null or holds a null; None where there is none."""
    return int(np.flatnonzero(_null_rows(column))[0]) if _has_nulls(column) else None


def _null_rows(column: pa.Array) -> np.ndarray:
    found: np.ndarray = column.is_null().to_numpy(zero_copy_only=False)
    if not _is_list(column.type) or not len(column):
        return found
    inner = np.concatenate(([0], np.cumsum(_null_rows(_values(column)))))
    if kinds.is_fixed_size_list(column.type):
        edges = np.arange(len(column) + 1) * column.type.list_size
    else:
        edges = column.offsets.to_numpy() - column.offsets[0].as_py()
    # what lies under a null list says nothing, and that row is found already
    found = found | (inner[edges[1:]] > inner[edges[:-1]])
    return found


def _filled(column: pa.Array, value: Fill) -> pa.Array:
    kind = column.type
    if kinds.is_fixed_size_list(kind):
        return _fill_fixed(column, value, np.zeros(len(column), bool))
    if _is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        width = pa.int64() if kinds.is_large_list(kind) else pa.int32()
        make = pa.LargeListArray if kinds.is_large_list(kind) else pa.ListArray
        values = pc.list_flatten(column)
        values = _filled(values, value) if _has_nulls(values) else values
        return make.from_arrays(pa.array(offsets, width), values, type=kind)
    return pc.fill_null(column, _held(value, kind))


def _fill_fixed(column: pa.Array, value: Fill, missing: np.ndarray) -> pa.Array:
    """`missing` marks elements that stand below a null list, whatever their own bytes are."""
    kind = column.type
    if column.null_count:
        missing = missing | column.is_null().to_numpy(zero_copy_only=False)
    if kinds.is_fixed_size_list(kind):
        values = _fill_fixed(_values(column), value, np.repeat(missing, kind.list_size))
        return pa.FixedSizeListArray.from_arrays(values, type=kind)
    if _is_list(kind):
        column = pc.if_else(pa.array(missing), pa.scalar(None, kind), column) if missing.any() else column
        return _filled(column, value)
    return pc.if_else(pa.array(missing), _held(value, kind), column)
