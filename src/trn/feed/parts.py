"""Decoded rows in the order of the run: blocks of a window are decoded, their rows gathered, and given out in parts.

    Order -> window -> blocks, decoded -> rows of this rank, gathered -> parts -> Feed cuts batches

A part is some batches' worth of rows. Everything here is lazy: whoever iterates decides how far decoding goes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trn.feed.blocks import BlockReader
from trn.feed.order import Cursor, Order, Window

__all__ = ["Part", "Parts", "concat"]

Int64 = NDArray[np.int64]

_PART_BYTES = 4 << 20
_MERGE_BYTES = 256 << 20


@dataclass(frozen=True)
class Part:
    """Consecutive rows of this rank, all of one pass."""

    rows: pa.RecordBatch
    row_ids: Int64
    pass_index: int
    window_rows: int
    """Rows that this rank gets from the window that the part belongs to."""


@dataclass(frozen=True)
class Parts:
    """The rows of one rank from `cursor` to the end of the data, in order; iterate once.

    The decoded rows of one window are held until its last part is taken, and twice that while they are merged. Once
    `stop` is set, iteration ends before the next block is decoded.
    """

    reader: BlockReader
    order: Order
    cursor: Cursor
    rank: int
    world_size: int
    stop: threading.Event

    def __iter__(self) -> Iterator[Part]:
        order = self.order
        pass_index, offset = self.cursor.pass_index, self.cursor.offset
        decoded: dict[int, pa.Table] = {}
        while order.passes is None or pass_index < order.passes:
            for index in range(order.window_at(pass_index, offset), order.windows_per_pass):
                window = order.window_of(pass_index, index)
                places = order.places_of(window, offset, self.rank, self.world_size)
                yield from self._parts_of(window, places, decoded)
                if self.stop.is_set():
                    return
            pass_index, offset = pass_index + 1, 0

    def _parts_of(self, window: Window, places: Int64, decoded: dict[int, pa.Table]) -> Iterator[Part]:
        if not len(places):
            return
        for block in window.blocks:
            if self.stop.is_set():
                return
            if block not in decoded:
                decoded[block] = self.reader.read(block)
        rows = _Rows([decoded[block] for block in window.blocks], self.reader.schema)
        # A data set of one window meets the same blocks again in the next pass: they are decoded once. Not without
        # shuffle: there, rows are given out uncopied, and writing to a batch must not change the next pass.
        if not self.order.shuffle or self.order.windows_per_pass > 1:
            decoded.clear()
        give = rows.take if self.order.shuffle else rows.view
        for some in self._cut(places, rows.row_bytes):
            yield Part(give(window.take[some]), window.row_ids[some], window.pass_index, len(places))

    def _cut(self, places: Int64, row_bytes: float) -> Iterator[Int64]:
        """Pieces of whole batches, large enough that per-piece costs vanish and small enough to stay in warm memory."""
        batch_rows = -(-self.order.batch_size // self.world_size)
        piece_rows = max(1, int(_PART_BYTES / max(row_bytes, 1.0)) // batch_rows) * batch_rows
        for start in range(0, len(places), piece_rows):
            yield places[start : start + piece_rows]


class _Rows:
    """Decoded blocks laid end to end, from which rows are gathered without a step of Python for each."""

    def __init__(self, tables: Sequence[pa.Table], schema: pa.Schema) -> None:
        pieces = [piece for table in tables for piece in table.to_batches() if piece.num_rows]
        size_bytes = sum(piece.nbytes for piece in pieces)
        # One gather from merged blocks takes 0.8 to 0.9 of the time of the way below, but holds the window twice while
        # merging; and 32-bit offsets of strings end at 2 GiB.
        if len(pieces) > 1 and size_bytes <= _MERGE_BYTES:
            pieces = [concat(pieces, schema)]
        self._pieces = pieces
        self._schema = schema
        self._ends = np.cumsum([piece.num_rows for piece in pieces])
        self.row_bytes = size_bytes / int(self._ends[-1])

    def take(self, places: Int64) -> pa.RecordBatch:
        """A copy of the rows at `places`, in that order."""
        if len(self._pieces) == 1:
            return _take(self._pieces[0], places)
        return self._take_from_pieces(places)

    def view(self, places: Int64) -> pa.RecordBatch:
        """The rows at `places`, uncopied where they are consecutive and lie in one piece."""
        first, count = int(places[0]), len(places)
        if len(self._pieces) == 1 and np.array_equal(places, np.arange(first, first + count)):
            return self._pieces[0].slice(first, count)
        return self.take(places)

    def _take_from_pieces(self, places: Int64) -> pa.RecordBatch:
        piece_of = np.searchsorted(self._ends, places, side="right")
        grouped = np.argsort(piece_of, kind="stable")
        cuts = np.searchsorted(piece_of[grouped], np.arange(len(self._pieces) + 1))
        taken = []
        for index, piece in enumerate(self._pieces):
            wanted = places[grouped[cuts[index] : cuts[index + 1]]]
            if len(wanted):
                taken.append(_take(piece, wanted - (self._ends[index] - piece.num_rows)))
        back = np.empty_like(grouped)
        back[grouped] = np.arange(len(grouped))
        return _take(concat(taken, self._schema), back)


def _take(rows: pa.RecordBatch, places: Int64) -> pa.RecordBatch:
    return pc.take(rows, pa.array(places))


def concat(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """The rows of `batches` in one; the batch itself, uncopied, where there is only one; none where there is none."""
    if len(batches) == 1:
        return batches[0]
    if not batches:
        return pa.RecordBatch.from_pylist([], schema=schema)
    columns = [pa.concat_arrays([batch.column(index) for batch in batches]) for index in range(len(schema))]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
