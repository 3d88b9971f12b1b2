"""Rows that two data sets share, found by the content of their rows in bounded memory.

    rows -> 64 bits each -> spilled to files by their first bits -> one file of each side at a time, compared

Rows that differ share their 64 bits once in 2^64 pairs, unless somebody made them to; so a finding among fewer than
10^18 pairs can be believed. Memory is that of one decoded row group and one pair of spilled files;
the spilled files take 16 bytes a row of the temporary folder.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trn.feed.gather import plain_rows, plain_type

__all__ = ["Overlap", "find_overlap", "row_hashes"]

UInt64 = NDArray[np.uint64]
_PARTITION_ROWS = 1 << 22
_CHUNK_ROWS_BYTES = 4 << 20
_ENTRY = np.dtype([("hash", np.uint64), ("row", np.int64)])


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
    view = plain_rows(column, plain) if plain is not None else None
    if view is None:
        hashes = (hashlib.blake2b(repr(value).encode(), digest_size=8).digest() for value in column.to_pylist())
        return np.frombuffer(b"".join(hashes), np.uint64)
    units = view.reshape(len(column), -1)
    factors = _factors(units.shape[1], index)
    result = np.empty(len(column), np.uint64)
    step = max(1, _CHUNK_ROWS_BYTES // (8 * units.shape[1]))  # what is mixed has to stay in the processor's cache
    for start in range(0, len(column), step):
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
    """Compare hashes of the rows of two data sets, given in order; `rows` of them in both together, about."""
    bits = max(0, (max(rows, 1) // partition_rows).bit_length())
    with tempfile.TemporaryDirectory(prefix="trn-overlap-") as folder:
        ours = _spill(first, Path(folder), "first", bits)
        theirs = _spill(second, Path(folder), "second", bits)
        found = [_compare(one, other) for one, other in zip(ours, theirs, strict=True)]
    hits = [one for one in found if one.rows]
    first_hit = min(hits, key=lambda one: one.first_row, default=Overlap(0, -1, -1))
    return Overlap(sum(one.rows for one in hits), first_hit.first_row, first_hit.same_as)


def _spill(hashes: Iterable[UInt64], folder: Path, name: str, bits: int) -> list[Path]:
    paths = [folder / f"{name}-{part}" for part in range(1 << bits)]
    streams: list[IO[bytes]] = [open(path, "wb") for path in paths]  # noqa: SIM115 - closed below
    try:
        for entries in _entries(hashes):
            part_of = (entries["hash"] >> np.uint64(64 - bits)) if bits else np.zeros(len(entries), np.uint64)
            by_part = np.argsort(part_of, kind="stable")
            cuts = np.searchsorted(part_of[by_part], np.arange((1 << bits) + 1, dtype=np.uint64))
            for part in np.flatnonzero(np.diff(cuts)).tolist():
                streams[part].write(entries[by_part[cuts[part] : cuts[part + 1]]].tobytes())
    finally:
        for stream in streams:
            stream.close()
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
