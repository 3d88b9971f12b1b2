"""Rows that two data sets share, found by the content of their rows in bounded memory.

    rows -> 64 bits each -> spilled to files by their first bits -> one file of each side at a time, compared

Values are hashed as the bytes they are, where their type has so many bytes each, and by what Python shows of them
where not; which of the two follows from the type alone, so that a row hashes alike whatever its neighbours hold.
Python shows no year 0, no nanoseconds and no text that is not UTF-8: it is shown integers and bytes in their place.
Rows that differ share their 64 bits once in 2^64 pairs, unless somebody made them to; so a finding among fewer than
10^18 pairs can be believed. Memory is that of one decoded row group and one pair of spilled files,
of which there are at most 256; they take 16 bytes a row of the temporary folder.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds
from numpy.typing import NDArray

from trn.errors import StorageError
from trn.feed.gather import PlainType, plain_rows, plain_type

__all__ = ["Overlap", "find_overlap", "row_hashes"]

UInt64 = NDArray[np.uint64]
_PARTITION_ROWS = 1 << 22
_MOST_BITS = 8  # of open files a process often may have no more than 1,024
_CHUNK_ROWS_BYTES = 4 << 20
_ENTRY = np.dtype([("hash", np.uint64), ("row", np.int64)])
_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}


@dataclass(frozen=True)
class Overlap:
    """How many rows of the second data set are in the first, and the first such pair of row numbers."""

    rows: int
    first_row: int
    """Of the second data set; -1 where there is none."""
    same_as: int
    """Of the first data set."""


def row_hashes(batch: pa.RecordBatch) -> UInt64:
    """64 bits for each row, equal for rows whose values are equal: bit for bit, and null is a value."""
    state = np.zeros(batch.num_rows, np.uint64)
    for index, column in enumerate(batch.columns):
        state = _mixed(state ^ _column_hashes(column, index))
    return state


def _column_hashes(column: pa.Array, index: int) -> UInt64:
    plain = plain_type(column.type)
    if plain is None:
        shown = (
            b"b" + value if isinstance(value, bytes) else repr(value).encode()  # repr of long bytes takes twice as long
            for value in _shown(column).to_pylist()
        )
        hashes = (hashlib.blake2b(one, digest_size=8).digest() for one in shown)
        return np.frombuffer(b"".join(hashes), np.uint64)
    view = plain_rows(column, plain)
    if view is not None:
        return _unit_hashes(view.reshape(len(column), plain.width), index)
    step = max(1, _CHUNK_ROWS_BYTES // (8 * plain.row_bytes))
    starts = range(0, len(column), step)
    parts = [_hashes_with_nulls(column.slice(start, step), plain, index) for start in starts]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


@dataclass(frozen=True)
class _As:
    """The same memory as an array of another type, of which no value is copied or looked at."""

    column: pa.Array
    kind: pa.DataType
    """Of the very same layout, at every depth: nothing checks it."""

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        return self.kind.__arrow_c_schema__(), self.column.__arrow_c_array__()[1]


def _shown(column: pa.Array) -> pa.Array:
    """The column, uncopied, as a type of which Python shows every value.

    Arrow's own ways do less (pyarrow 26.0): `cast` gives a field no other name, `view` fails for lists of nulls.
    """
    kind = _shown_type(column.type)
    return column if kind == column.type else pa.array(_As(column, kind))


@cache
def _shown_type(kind: pa.DataType) -> pa.DataType:
    """Integers for times, bytes for text, and numbers for names of fields, of which two may be the same."""
    if kinds.is_temporal(kind):
        return {32: pa.int32(), 64: pa.int64()}.get(kind.bit_width, kind)
    if kinds.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _shown_type(kind.value_type), kind.ordered)
    if kinds.is_struct(kind):
        return pa.struct([(str(index), _shown_type(kind.field(index).type)) for index in range(kind.num_fields)])
    if kinds.is_map(kind):
        return pa.map_(_shown_type(kind.key_type), _shown_type(kind.item_type))
    if kinds.is_fixed_size_list(kind):
        return pa.list_(_shown_type(kind.value_type), kind.list_size)
    if kinds.is_list(kind):
        return pa.list_(_shown_type(kind.value_type))
    if kinds.is_large_list(kind):
        return pa.large_list(_shown_type(kind.value_type))
    return _BYTES.get(kind, kind)


def _hashes_with_nulls(column: pa.Array, plain: PlainType, index: int) -> UInt64:
    units, missing = _zeros_for_nulls(column, plain)
    nulls = np.zeros(len(column), np.uint64)  # a row without one hashes as where there is none in the whole batch
    for depth, here in enumerate(missing, 1):
        nulls += (here * _factors(here.shape[1], index + (depth << 32))).sum(axis=1, dtype=np.uint64)
    return _unit_hashes(units, index) + nulls


def _zeros_for_nulls(column: pa.Array, plain: PlainType) -> tuple[NDArray[Any], list[NDArray[np.uint64]]]:
    """The column's units, zero where a value is null, and for each depth of lists which are null there, 1 or 0."""
    rows, masks = len(column), []
    above = np.zeros(rows, bool)
    while True:
        here = column.is_null().to_numpy(zero_copy_only=False) & ~above  # what lies under a null says nothing
        masks.append(here.reshape(rows, -1).astype(np.uint64))
        above = above | here
        if not kinds.is_fixed_size_list(column.type):
            break
        size = column.type.list_size
        above = np.repeat(above, size)
        column = column.values.slice(column.offset * size, len(column) * size)
    value_bytes = column.type.bit_width // 8
    values = np.zeros((len(column), value_bytes), np.uint8)
    if (buffer := column.buffers()[1]) is not None:
        found = np.frombuffer(buffer, np.uint8, values.size, column.offset * value_bytes)
        np.copyto(values, found.reshape(values.shape), where=~above[:, None])
    return values.reshape(rows, -1).view(plain.unit), masks


def _unit_hashes(units: NDArray[Any], index: int) -> UInt64:
    factors = _factors(units.shape[1], index)
    result = np.empty(len(units), np.uint64)
    step = max(1, _CHUNK_ROWS_BYTES // (8 * units.shape[1]))  # what is mixed has to stay in the processor's cache
    for start in range(0, len(units), step):
        some = units[start : start + step].astype(np.uint64)
        result[start : start + step] = (_mixed(some) * factors).sum(axis=1, dtype=np.uint64)
    return result


def _factors(count: int, index: int) -> UInt64:
    """Odd numbers that depend on the place of a value: sums of products collide only where the values are equal."""
    drawn: UInt64 = np.random.Philox(key=index).random_raw(count)
    return drawn | np.uint64(1)


def _mixed(values: UInt64) -> UInt64:
    """A bijection of 64 bits that spreads each of them over all. Source: Steele et al. 2014, SplitMix64's finalizer."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def find_overlap(
    first: Iterable[UInt64], second: Iterable[UInt64], *, rows: int, partition_rows: int = _PARTITION_ROWS
) -> Overlap:
    """Compare hashes of the rows of two data sets, given in order; `rows` of them in both together, about.

    Raises StorageError where the temporary folder does not take them, and what the two raise.
    """
    bits = min((max(rows, 1) // partition_rows).bit_length(), _MOST_BITS)
    try:
        with tempfile.TemporaryDirectory(prefix="trn-overlap-") as folder:
            ours = _spill(first, Path(folder), "first", bits)
            theirs = _spill(second, Path(folder), "second", bits)
            found = [_compare(one, other) for one, other in zip(ours, theirs, strict=True)]
    except OSError as error:
        raise StorageError(
            f"cannot keep the hashes of rows: {error.strerror or error}.",
            where=error.filename or "the temporary folder",
            hint="The variable TMPDIR names another folder for temporary files.",
        ) from error
    hits = [one for one in found if one.rows]
    first_hit = min(hits, key=lambda one: one.first_row, default=Overlap(0, -1, -1))
    return Overlap(sum(one.rows for one in hits), first_hit.first_row, first_hit.same_as)


def _spill(hashes: Iterable[UInt64], folder: Path, name: str, bits: int) -> list[Path]:
    paths = [folder / f"{name}-{part}" for part in range(1 << bits)]
    with ExitStack() as stack:
        streams: list[IO[bytes]] = [stack.enter_context(open(path, "wb")) for path in paths]
        for entries in _entries(hashes):
            part_of = (entries["hash"] >> np.uint64(64 - bits)) if bits else np.zeros(len(entries), np.uint64)
            by_part = np.argsort(part_of, kind="stable")
            cuts = np.searchsorted(part_of[by_part], np.arange((1 << bits) + 1, dtype=np.uint64))
            for part in np.flatnonzero(np.diff(cuts)).tolist():
                streams[part].write(entries[by_part[cuts[part] : cuts[part + 1]]].tobytes())
    return paths


def _entries(hashes: Iterable[UInt64]) -> Iterator[NDArray[Any]]:
    row = 0
    for some in hashes:
        entries = np.empty(len(some), _ENTRY)
        entries["hash"] = some
        entries["row"] = np.arange(row, row + len(some))
        row += len(some)
        yield entries


def _compare(first: Path, second: Path) -> Overlap:
    ours, theirs = np.fromfile(first, _ENTRY), np.fromfile(second, _ENTRY)
    if not len(ours) or not len(theirs):
        return Overlap(0, -1, -1)
    ours = ours[np.argsort(ours["hash"], kind="stable")]
    places = np.searchsorted(ours["hash"], theirs["hash"])
    same = ours["hash"][np.minimum(places, len(ours) - 1)] == theirs["hash"]
    if not same.any():
        return Overlap(0, -1, -1)
    at = int(np.argmin(np.where(same, theirs["row"], np.iinfo(np.int64).max)))
    return Overlap(int(same.sum()), int(theirs["row"][at]), int(ours["row"][places[at]]))
