"""Batches that stand in the spec itself, for a smoke run: what is wrong with them, and what their columns are.

    [{"x": [[1.0, 2.0], [3.0, 4.0]], "y": [0, 1]}, ...]     a mapping is a batch, a list of its rows a column

A column is of one kind in all batches: whole numbers (int64), numbers of which at least one has a point (float32),
true and false (bool), or text (string); or lists of one of these, of one length, nested as deep as a spec may be.
There are no nulls. Words only: the file that is made of them is the business of trn.plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trn.spec.words import found

__all__ = ["ColumnKind", "broken_batches", "column_kinds", "rows_of"]

Broken = tuple[tuple[str | int, ...], str]
Path = tuple[str | int, ...]
Word = Literal["int64", "float32", "bool", "string"]

_TOLD: Mapping[Word, tuple[str, str]] = {
    "int64": ("a whole number", "whole numbers"),
    "float32": ("a number", "numbers"),
    "bool": ("true or false", "true and false"),
    "string": ("text", "texts"),
}
_WHOLE_IN_FLOAT32 = 2**24
"""Up to here float32 holds every whole number."""
_LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


@dataclass(frozen=True)
class ColumnKind:
    """What a row of a column is: values of this Arrow type, in lists of these lengths, the outermost first."""

    word: Word
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        one, many = _TOLD[self.word]
        return f"a list of {' x '.join(map(str, self.shape))} {many}" if self.shape else one


class _Unfit(Exception):
    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.broken: Broken = (path, message)


def rows_of(batches: object) -> int | None:
    """Rows of the first batch, None where it cannot be told."""
    first = batches[0] if isinstance(batches, (list, tuple)) and batches else None
    column = next(iter(first.values()), None) if isinstance(first, Mapping) else None
    return len(column) or None if isinstance(column, (list, tuple)) else None


def column_kinds(batches: Sequence[Mapping[str, Any]]) -> dict[str, ColumnKind]:
    """The kind of each column of batches that have passed `broken_batches`."""
    return {name: _kind(name, batches) for name in batches[0]}


def broken_batches(batches: object, batch_size: int | None) -> Iterator[Broken]:
    """Path below the list, and message, of what is wrong: one for each batch of another form, one for each column.

    What is no list of mappings is left to the schema. `batch_size` is None where the schema refuses it.
    """
    if not isinstance(batches, (list, tuple)) or not all(isinstance(one, Mapping) for one in batches):
        return
    if not batches or not batches[0]:
        yield (), f"expected at least one batch with at least one column, found {found(batches)}"
        return
    rows = rows_of(batches)
    if rows is None:
        yield (0,), "expected a list of rows for each column, and at least one row"
        return
    misshapen = list(_misshapen(batches, rows))
    yield from misshapen
    if misshapen:
        return
    if batch_size is not None and rows != batch_size:
        yield (0,), f"expected {batch_size} rows, as dataset.batch_size says, found {rows}"
    for name in batches[0]:
        try:
            _kind(name, batches)
        except _Unfit as unfit:
            yield unfit.broken


def _misshapen(batches: Sequence[Mapping[str, Any]], rows: int) -> Iterator[Broken]:
    names = set(batches[0])
    for index, batch in enumerate(batches):
        if set(batch) != names:
            more, fewer = sorted(map(str, set(batch) - names)), sorted(map(str, names - set(batch)))
            what = f"{found(more[0])} is not in the first one" if more else f"{found(fewer[0])} is missing"
            yield (index,), f"expected the columns of the first batch: {what}"
            continue
        for name, column in batch.items():
            if not isinstance(column, (list, tuple)):
                yield (index, name), f"expected a list of rows, found {found(column)}"
                break
            if len(column) != rows:
                yield (index, name), f"expected {rows} rows, as the first batch has, found {len(column)}"
                break


def _kind(name: str, batches: Sequence[Mapping[str, Any]]) -> ColumnKind:
    """Raises _Unfit for the first value that does not fit those before it."""
    kind: ColumnKind | None = None
    for index, batch in enumerate(batches):
        for row, value in enumerate(batch[name]):
            path = (index, name, row)
            kind = _joined(kind, _kind_of(value, path), path)
    assert kind is not None, "there is at least one row"
    if kind.word == "float32":
        for index, batch in enumerate(batches):
            _refuse_rounded(batch[name], (index, name))
    return kind


def _kind_of(value: object, path: Path) -> ColumnKind:
    if not isinstance(value, (list, tuple)):
        return ColumnKind(_word(value, path))
    kind: ColumnKind | None = None
    for index, item in enumerate(value):
        place = (*path, index)
        kind = _joined(kind, _kind_of(item, place), place)
    if kind is None:
        raise _Unfit(path, "expected at least one value, found an empty list")
    return ColumnKind(kind.word, (len(value), *kind.shape))


def _joined(before: ColumnKind | None, kind: ColumnKind, path: Path) -> ColumnKind:
    """What both are; whole numbers beside others are numbers, since not every writer of JSON writes 1.0."""
    if before is None or before == kind:
        return kind
    if before.shape == kind.shape and {before.word, kind.word} == {"int64", "float32"}:
        return ColumnKind("float32", kind.shape)
    raise _Unfit(path, f"expected {before}, as before it, found {kind}")


def _word(value: object, path: Path) -> Word:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise _Unfit(path, f"expected a whole number of 64 bits, found {found(value)}")
        return "int64"
    if isinstance(value, float):
        if not math.isfinite(value) or abs(value) > _LARGEST_FLOAT32:
            raise _Unfit(path, f"expected a finite number that float32 holds, found {found(value)}")
        return "float32"
    raise _Unfit(path, f"expected a number, true, false, text, or a list of these, found {found(value)}")


def _refuse_rounded(value: object, path: Path) -> None:
    """Raises _Unfit for a whole number that would become another one among numbers with a point."""
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse_rounded(item, (*path, index))
    elif isinstance(value, int) and abs(value) > _WHOLE_IN_FLOAT32:
        what = f"a whole number up to {_WHOLE_IN_FLOAT32}, as others of the column have a point"
        raise _Unfit(path, f"expected {what}, found {found(value)}")
