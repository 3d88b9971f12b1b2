"""How many nulls a parquet footer says there are: read from its bytes, without the library's objects for statistics.

pyarrow's `RowGroupMetaData.column()` ends the process where a column's statistics are damaged (arrow issue 45283 had
such files), and planning must not end that way; so the few fields that matter are read here. What cannot be followed
is unknown, never an error: the feed looks at the values themselves in any case.

Source: the Thrift compact protocol, and parquet.thrift of the Parquet format (FileMetaData 4 -> RowGroup 1 ->
ColumnChunk 3 -> ColumnMetaData 12 -> Statistics 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.types as kinds

__all__ = ["known_nulls"]

_LENGTH_BYTES = 8  # behind the metadata: their length, and the magic
_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(13)


def known_nulls(tail: bytes, schema: pa.Schema) -> dict[str, int]:
    """Nulls in all row groups together, by column, where that is more than none; only of columns of which the footer
    can say it: numbers, strings and the like, and lists of fixed size of them.

    `tail` is the footer with its length and magic. For lists of varying size an empty list counts as a null in the
    file, so nothing is known of them.
    """
    leaves = list(_leaves_of(schema))
    found: dict[str, int] = {}
    try:
        for counts in _Thrift(tail[:-_LENGTH_BYTES]).row_groups():
            if len(counts) != len(leaves):
                return {}
            for name, count in zip(leaves, counts, strict=True):
                if name is not None and count is not None and count > 0:
                    found[name] = found.get(name, 0) + count
    except (IndexError, RecursionError, ValueError):
        return {}
    return found


def _leaves_of(schema: pa.Schema) -> Iterator[str | None]:
    """For each column as the file stores them: the name of the column whose nulls it counts, or None."""
    for field in schema:
        kind = field.type
        while kinds.is_fixed_size_list(kind):
            kind = kind.value_type
        count = _count_leaves(kind)
        yield from [field.name if count == 1 and not _is_nested(kind) else None] * count


def _count_leaves(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _count_leaves(kind.storage_type)
    if not _is_nested(kind):
        return 1
    return sum(_count_leaves(kind.field(index).type) for index in range(kind.num_fields))


def _is_nested(kind: pa.DataType) -> bool:
    return bool(kinds.is_nested(kind)) or isinstance(kind, pa.BaseExtensionType)


class _Thrift:
    """A walk over bytes of the compact protocol; raises IndexError or ValueError where they make no sense."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def row_groups(self) -> list[list[int | None]]:
        """For each row group the null count of each of its columns, None where the file does not say."""
        found: list[list[int | None]] = []
        for field, kind in self._fields():
            if field == 4:
                found = self._list(self._columns)
            else:
                self._skip(kind)
        return found

    def _columns(self) -> list[int | None]:
        return self._only(1, lambda: self._list(self._column)) or []

    def _column(self) -> int | None:
        # ColumnChunk.meta_data, then ColumnMetaData.statistics, then Statistics.null_count
        found: int | None = self._only(3, lambda: self._only(12, lambda: self._only(3, self._number)))
        return found

    def _only(self, wanted: int, read: Callable[[], Any]) -> Any:
        """What `read` finds in one field of a struct, the others skipped; None where the field is not there."""
        value = None
        for field, kind in self._fields():
            if field == wanted:
                value = read()
            else:
                self._skip(kind)
        return value

    def _fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a struct, up to its end; whoever iterates reads or skips each value."""
        data, number = self._data, 0
        while True:
            head = data[self._at]
            self._at += 1
            if head == _STOP:
                return
            delta = head >> 4
            number = number + delta if delta else self._number()
            yield number, head & 0x0F

    def _list(self, read: Callable[[], Any]) -> list[Any]:
        size, _ = self._list_head()
        return [read() for _ in range(size)]

    def _list_head(self) -> tuple[int, int]:
        head = self._data[self._at]
        self._at += 1
        size = head >> 4
        size = self._varint() if size == 15 else size
        if size > len(self._data):
            raise ValueError("a list that is longer than the footer")
        return size, head & 0x0F

    def _varint(self) -> int:
        data, at = self._data, self._at
        value, shift = data[at] & 0x7F, 7
        while data[at] & 0x80:
            at += 1
            value |= (data[at] & 0x7F) << shift
            shift += 7
            if shift > 70:
                raise ValueError("a number that is too long")
        self._at = at + 1
        return value

    def _number(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, kind: int) -> None:
        if kind in (_I16, _I32, _I64):
            self._varint()
        elif kind == _BINARY:
            size = self._varint()  # it moves on, too: no `+=` around it
            self._at += size
        elif kind == _STRUCT:
            for _, inner in self._fields():
                self._skip(inner)
        elif kind in (_LIST, _SET):
            size, inner = self._list_head()
            for _ in range(size):
                self._skip(_BYTE if inner in (_TRUE, _FALSE) else inner)
        elif kind == _BYTE:
            self._at += 1
        elif kind == _DOUBLE:
            self._at += 8
        elif kind == _MAP:
            self._skip_map()
        elif kind not in (_TRUE, _FALSE):
            raise ValueError(f"an unknown type {kind}")

    def _skip_map(self) -> None:
        size = self._varint()
        if size > len(self._data):
            raise ValueError("a map that is longer than the footer")
        if size:
            head = self._data[self._at]
            self._at += 1
            for _ in range(size):
                self._skip(head >> 4)
                self._skip(head & 0x0F)
