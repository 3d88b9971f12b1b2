"""The feed: global batches in the order of the run, as Arrow rows of this rank, each with the cursor after it.

    Dataset + Order + Cursor -> Parts (decode, gather; on a thread) -> Feed.next() -> RawBatch -> to_tensors

What a run has consumed is `RawBatch.next_cursor` of its last batch and nothing else: rows that were decoded ahead of it
do not count.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trn.feed.ahead import Ahead, GivenUp, Inline
from trn.feed.blocks import BlockReader, ParquetBlocks
from trn.feed.dataset import Dataset
from trn.feed.gather import concat
from trn.feed.nulls import Fills, WithoutNulls
from trn.feed.order import Cursor, Order, Span, share_of
from trn.feed.parts import DecodedWindows, Part, Parts, Source
from trn.feed.views import forget, note

__all__ = ["Feed", "RawBatch", "read_sequential"]


class RawBatch(NamedTuple):
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
    batch_rows: int
    """Rows of the global batch, over all ranks."""


class Feed:
    """Batches from `cursor` on. Used from one thread; close it, or use it in a `with`.

    `readahead` is how many batches are decoded beyond the current one; the window after the current one is always among
    them. 0 decodes in `next`, without a thread. `reader` gives decoded blocks, by default those of the parquet files;
    `cache` gives rows without decoding, see `trn.feed.cache`; the feed closes either. `fills` say what becomes of
    nulls, see `trn.feed.nulls`; None looks for none. Construction opens the first file and starts decoding; it raises
    DataError.
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
        cache: Source | None = None,
        fills: Fills | None = None,
        give_up: Callable[[], bool] | None = None,
    ) -> None:
        assert order.block_rows == dataset.block_rows, "the order was made for another data set"
        order.span(cursor)
        self.cursor = cursor
        """Where the next batch starts."""
        self.wait_s = 0.0
        """How long the last `next` waited for rows to be decoded."""
        self._order = order
        self._delivered_rows = order.delivered_rows
        self._rank, self._world_size = rank, world_size
        source = cache or DecodedWindows(reader or ParquetBlocks(dataset, list(columns or dataset.columns)), order)
        self._schema: pa.Schema = source.schema
        self._waiting: deque[Part] = deque()
        self._waiting_rows = 0
        self._taken = 0
        self._within: Iterator[RawBatch] = iter(())
        begin, end = share_of(order.batch_size, rank, world_size)
        self._share = end - begin
        self._closed = False
        stop = threading.Event()
        parts: Iterable[Part] = Parts(source, order, cursor, rank, world_size, stop)
        parts = parts if fills is None else WithoutNulls(parts, dataset, fills)
        self._ahead: Ahead | Inline
        if readahead > 0:
            least = max(1, readahead * self._share)  # of a short batch a rank may have a share where it has none else
            self._ahead = Ahead(parts, min_rows=least, stop=stop, finish=source.close, give_up=give_up)
        else:
            self._ahead = Inline(parts, finish=source.close)

    def next(self) -> RawBatch | None:
        """The next batch, None after the last one, and where `give_up` says so while rows are waited for.

        Raises DataError naming file and row group. It comes at the batch that needs the bad row group,
        whatever was decoded ahead, and again at each later call.
        """
        if self._closed:
            raise ValueError("this feed is closed")
        self.wait_s = 0.0
        for batch in self._within:
            self.cursor = batch.next_cursor
            return batch
        return self._next_anywhere()

    def _batches_within(self) -> Iterator[RawBatch]:
        """The next batches, as long as they lie inside of a pass and of the part at hand, as nearly all do.

        The same as `_next_anywhere` gives, without what is then known: 1.7 us instead of 9, in a step with a batch of 8
        rows from a mapped cache more than the rows themselves cost. Their rows are taken off those that wait at once,
        and `cursor` moves as each is given.
        """
        if not self._waiting or not self._share:
            return iter(())
        part, begin, cursor = self._waiting[0], self._taken, self.cursor
        share, batch_rows = self._share, self._order.batch_size
        # the last batch of a pass is not among them: after it, the cursor is in the next pass
        of_pass = (self._delivered_rows - cursor.offset - 1) // batch_rows
        count = min((len(part.row_ids) - begin) // share, of_pass)
        if cursor.offset == 0 or count < 1:
            return iter(())
        self._take_off(count * share)
        return _cut_evenly(part, cursor, begin, share, count, batch_rows)

    def _next_anywhere(self) -> RawBatch | None:
        forget()
        span = self._order.span(self.cursor)
        if span is None:
            return None
        begin, end = share_of(span.rows, self._rank, self._world_size)
        started_s = time.perf_counter()
        try:
            while self._waiting_rows < end - begin:
                self._fetch()
        except GivenUp:
            return None
        self.wait_s = time.perf_counter() - started_s
        batch = self._cut(span, end - begin)
        self.cursor = span.next_cursor
        self._within = self._batches_within()
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
            self._take_off(some)
        return RawBatch(
            record_batch=concat(record_batches, self._schema),
            row_ids=np.concatenate(row_ids) if row_ids else np.empty(0, np.int64),
            row_passes=row_passes,
            cursor=span.cursor,
            next_cursor=span.next_cursor,
            pass_index=span.pass_index,
            wrapped=span.wrapped,
            batch_rows=span.rows,
        )

    def _take_off(self, rows: int) -> None:
        """So many rows of the first waiting part wait no longer."""
        self._taken += rows
        self._waiting_rows -= rows
        if self._taken == len(self._waiting[0].row_ids):
            self._waiting.popleft()
            self._taken = 0

    def close(self) -> None:
        """End the thread and close the files. Can be called again."""
        self._closed = True
        self._waiting.clear()
        self._within = iter(())
        forget()
        self._ahead.close()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _cut_evenly(part: Part, cursor: Cursor, begin: int, share: int, count: int, batch_rows: int) -> Iterator[RawBatch]:
    """`count` batches of `share` rows each, all of one pass but not its first; each is noted when it is asked for."""
    pass_index, cut, new = cursor.pass_index, part.rows.slice, tuple.__new__
    offset, first = cursor.offset, begin
    some = slice(begin, begin + count * share)
    # a row of a matrix comes in half the time of a slice, and a tuple in half the time of its own constructor
    row_ids, row_passes = part.row_ids[some].reshape(count, share), part.row_passes[some].reshape(count, share)
    for ids, passes in zip(row_ids, row_passes, strict=True):
        offset += batch_rows
        next_cursor = new(Cursor, (pass_index, offset))
        rows = cut(first, share)
        note(rows, part, first, first + share)
        first += share
        yield new(RawBatch, (rows, ids, passes, cursor, next_cursor, pass_index, False, batch_rows))
        cursor = next_cursor


def read_sequential(
    dataset: Dataset,
    columns: Sequence[str] | None,
    batch_size: int,
    max_batches: int = 0,
    *,
    rank: int = 0,
    world_size: int = 1,
    fills: Fills | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of a data set once, in file order, in batches of `batch_size`; a last short batch is given too.

    `max_batches` ends it earlier, 0 does not. A rank gets its part of each batch, as many batches as any other; a part
    can be empty. Raises DataError. Close the iterator to stop before its end.
    """
    order = Order(
        dataset.fingerprint, dataset.block_rows, seed=0, batch_size=batch_size, shuffle=False, remainder="keep"
    )
    with Feed(dataset, order, columns, Cursor(), rank=rank, world_size=world_size, fills=fills) as feed:
        given = 0
        while (not max_batches or given < max_batches) and (batch := feed.next()) is not None:
            yield batch.record_batch
            given += 1
