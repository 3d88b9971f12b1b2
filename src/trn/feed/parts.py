"""Rows in the order of the run: windows are opened one after the other, their rows gathered and given out in parts.

    Order -> window -> opened: blocks decoded, or nothing to do in a cache -> rows of this rank, gathered -> parts

A part is some batches' worth of rows, from which the feed cuts batches. Everything here is lazy: whoever iterates
decides how far decoding goes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trn.feed.blocks import BlockReader
from trn.feed.gather import Gather
from trn.feed.order import Cursor, Order, Window
from trn.feed.views import shared_arrays

__all__ = ["DecodedWindows", "Part", "Parts", "Source", "WindowRows"]

Int64 = NDArray[np.int64]

_PART_BYTES = 8 << 20


class WindowRows(Protocol):
    """The rows of one window, to be picked from."""

    @property
    def row_bytes(self) -> float:
        """About, for the size of a part."""
        ...

    def take(self, places: Int64, row_ids: Int64) -> pa.RecordBatch:
        """The rows at these places of the window's order, in memory that is given out once. Raises DataError.

        `row_ids` are the numbers of the same rows in the data set.
        """
        ...


class Source(Protocol):
    """Where the rows of a window come from. Used by one thread at a time."""

    schema: pa.Schema
    is_decoded: bool
    """Whether a window is work and memory of its own, so that the next one is made ready while one is used."""

    def open(self, window: Window, stop: threading.Event) -> WindowRows | None:
        """The rows of a window; None once `stop` is set. Raises DataError."""
        ...

    def close(self) -> None:
        """Release what is held open."""
        ...


@dataclass(frozen=True)
class Part:
    """Consecutive rows of this rank, all of one pass."""

    rows: pa.RecordBatch
    row_ids: Int64
    pass_index: int
    window_rows: int
    """Rows that this rank gets from the window that the part belongs to; 0 where a window need not be decoded."""

    @cached_property
    def row_passes(self) -> NDArray[np.int32]:
        return np.full(len(self.row_ids), self.pass_index, np.int32)

    @cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Of those columns that have one, see `trn.feed.views`."""
        return shared_arrays(self.rows)


@dataclass(frozen=True)
class Parts:
    """The rows of one rank from `cursor` to the end of the data, in order; iterate once.

    Once `stop` is set, iteration ends before the next block is decoded.
    """

    source: Source
    order: Order
    cursor: Cursor
    rank: int
    world_size: int
    stop: threading.Event

    def __iter__(self) -> Iterator[Part]:
        order = self.order
        pass_index, offset = self.cursor.pass_index, self.cursor.offset
        while order.passes is None or pass_index < order.passes:
            for index in range(order.window_at(pass_index, offset), order.windows_per_pass):
                window = order.window_of(pass_index, index)
                yield from self._parts_of(window, order.places_of(window, offset, self.rank, self.world_size))
                if self.stop.is_set():
                    return
            pass_index, offset = pass_index + 1, 0

    def _parts_of(self, window: Window, places: Int64) -> Iterator[Part]:
        if not len(places) or (rows := self.source.open(window, self.stop)) is None:
            return
        window_rows = len(places) if self.source.is_decoded else 0
        for some in self._cut(places, rows.row_bytes):
            row_ids = window.row_ids[some]
            yield Part(rows.take(some, row_ids), row_ids, window.pass_index, window_rows)

    def _cut(self, places: Int64, row_bytes: float) -> Iterator[Int64]:
        """Pieces of whole batches: large enough that a thread seldom hands over, small enough to wait in some MB."""
        batch_rows = -(-self.order.batch_size // self.world_size)
        piece_rows = max(1, int(_PART_BYTES / max(row_bytes, 1.0)) // batch_rows) * batch_rows
        for start in range(0, len(places), piece_rows):
            yield places[start : start + piece_rows]


class DecodedWindows:
    """Windows whose blocks are decoded when they are opened, and held until the next one is."""

    is_decoded = True

    def __init__(self, reader: BlockReader, order: Order) -> None:
        self.schema: pa.Schema = reader.schema
        self._reader = reader
        self._order = order
        self._decoded: dict[int, pa.Table] = {}

    def open(self, window: Window, stop: threading.Event) -> _DecodedRows | None:
        for block in window.blocks:
            if stop.is_set():
                return None
            if block not in self._decoded:
                self._decoded[block] = self._reader.read(block)
        tables = [self._decoded[block] for block in window.blocks]
        # A data set of one window meets the same blocks again in the next pass: they are decoded once. Not without
        # shuffle: there, rows are given out uncopied, and writing to a batch must not change the next pass.
        if not self._order.shuffle or self._order.windows_per_pass > 1:
            self._decoded.clear()
        pieces = [piece for table in tables for piece in table.to_batches() if piece.num_rows]
        return _DecodedRows(Gather(pieces, self.schema), window, self._order.shuffle)

    def close(self) -> None:
        self._decoded.clear()
        self._reader.close()


class _DecodedRows:
    def __init__(self, gather: Gather, window: Window, shuffle: bool) -> None:
        self.row_bytes = gather.row_bytes
        self._window = window
        self._give = gather.take if shuffle else gather.view

    def take(self, places: Int64, row_ids: Int64) -> pa.RecordBatch:
        return self._give(self._window.take[places])
