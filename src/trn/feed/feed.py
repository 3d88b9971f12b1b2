"""The feed: global batches in the order of the run, as Arrow rows of this rank, each with the cursor after it.

    Dataset + Order + Cursor -> Parts (decode, gather; on a thread) -> Feed.next() -> RawBatch -> to_tensors

What a run has consumed is `RawBatch.next_cursor` of its last batch and nothing else: rows that were decoded ahead of it
do not count.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trn.feed.ahead import Ahead, Inline
from trn.feed.blocks import BlockReader, ParquetBlocks
from trn.feed.dataset import Dataset
from trn.feed.order import Cursor, Order, Span, share_of
from trn.feed.parts import Part, Parts, concat

__all__ = ["Feed", "RawBatch", "read_sequential"]


@dataclass(frozen=True)
class RawBatch:
    """This rank's rows of one global batch.

    `row_ids` (int64) are row numbers in the data set and `row_passes` (int32) the pass of each row, both `[rows]`.
    `pass_index` is the pass of the global batch's last row; `wrapped` is true where the global batch holds the first
    row of a pass that is not the first. A rank's part of a short batch can be empty.

    The memory of the rows is given out once: writing to a tensor made from it changes no other batch. It is part of a
    larger buffer, so a batch that is kept for long should be copied.
    """

    record_batch: pa.RecordBatch
    row_ids: NDArray[np.int64]
    row_passes: NDArray[np.int32]
    cursor: Cursor
    next_cursor: Cursor
    pass_index: int
    wrapped: bool


class Feed:
    """Batches from `cursor` on. Used from one thread; close it, or use it in a `with`.

    `readahead` is how many batches are decoded beyond the current one; the window after the current one is always among
    them. 0 decodes in `next`, without a thread. `reader` gives decoded blocks, by default those of the parquet files.
    Construction opens the first file and starts decoding; it raises DataError.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        columns: Sequence[str] | None,
        cursor: Cursor,
        *,
        rank: int = 0,
        world_size: int = 1,
        readahead: int = 2,
        reader: BlockReader | None = None,
    ) -> None:
        assert order.block_rows == dataset.block_rows, "the order was made for another data set"
        order.span(cursor)
        self.cursor = cursor
        """Where the next batch starts."""
        self.wait_s = 0.0
        """How long the last `next` waited for rows to be decoded."""
        self._order = order
        self._rank, self._world_size = rank, world_size
        reader = reader or ParquetBlocks(dataset, list(columns or dataset.columns))
        self._schema: pa.Schema = reader.schema
        self._waiting: deque[Part] = deque()
        self._waiting_rows = 0
        self._taken = 0
        self._closed = False
        stop = threading.Event()
        parts = Parts(reader, order, cursor, rank, world_size, stop)
        self._ahead: Ahead | Inline
        if readahead > 0:
            begin, end = share_of(order.batch_size, rank, world_size)
            self._ahead = Ahead(parts, min_rows=readahead * (end - begin), stop=stop, finish=reader.close)
        else:
            self._ahead = Inline(parts, finish=reader.close)

    def next(self) -> RawBatch | None:
        """The next batch, None after the last one. Raises DataError naming file and row group.

        An error comes at the batch that needs the bad row group, whatever was decoded ahead, and again at each later
        call.
        """
        if self._closed:
            raise ValueError("this feed is closed")
        span = self._order.span(self.cursor)
        if span is None:
            return None
        begin, end = share_of(span.rows, self._rank, self._world_size)
        started_s = time.perf_counter()
        while self._waiting_rows < end - begin:
            self._fetch()
        self.wait_s = time.perf_counter() - started_s
        batch = self._cut(span, end - begin)
        self.cursor = span.next_cursor
        return batch

    def _fetch(self) -> None:
        part = self._ahead.next()
        assert part is not None, "the order has rows left and the parts have none"
        self._waiting.append(part)
        self._waiting_rows += len(part.row_ids)

    def _cut(self, span: Span, rows: int) -> RawBatch:
        """Take `rows` rows off the waiting parts: views where one part has them all, else a copy."""
        record_batches, row_ids = [], []
        row_passes = np.empty(rows, np.int32)
        done = 0
        while done < rows:
            part = self._waiting[0]
            some = min(rows - done, len(part.row_ids) - self._taken)
            record_batches.append(part.rows.slice(self._taken, some))
            row_ids.append(part.row_ids[self._taken : self._taken + some])
            row_passes[done : done + some] = part.pass_index
            done += some
            self._taken += some
            if self._taken == len(part.row_ids):
                self._waiting.popleft()
                self._taken = 0
        self._waiting_rows -= rows
        return RawBatch(
            record_batch=concat(record_batches, self._schema),
            row_ids=np.concatenate(row_ids) if row_ids else np.empty(0, np.int64),
            row_passes=row_passes,
            cursor=span.cursor,
            next_cursor=span.next_cursor,
            pass_index=span.pass_index,
            wrapped=span.wrapped,
        )

    def close(self) -> None:
        """End the thread and close the files. Can be called again."""
        self._closed = True
        self._waiting.clear()
        self._ahead.close()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def read_sequential(
    dataset: Dataset, columns: Sequence[str] | None, batch_size: int, max_batches: int = 0
) -> Iterator[pa.RecordBatch]:
    """The rows of a data set once, in file order, in batches of `batch_size`; a last short batch is given too.

    `max_batches` ends it earlier, 0 does not. Raises DataError. Close the iterator to stop before its end.
    """
    order = Order(
        dataset.fingerprint, dataset.block_rows, seed=0, batch_size=batch_size, shuffle=False, remainder="keep"
    )
    with Feed(dataset, order, columns, Cursor()) as feed:
        given = 0
        while (not max_batches or given < max_batches) and (batch := feed.next()) is not None:
            yield batch.record_batch
            given += 1
