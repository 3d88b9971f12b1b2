"""The order of the data: a pure function of (fingerprint, seed, pass, index), so that a cursor is two integers.

    blocks (row groups) -> permuted for each pass -> windows of `window` blocks -> rows permuted inside each window
        -> one sequence of rows a pass -> cut into global batches of `batch_size`, across windows, blocks and files

Without shuffle a window is one block and nothing is permuted. The remainder of a pass, its last rows that do not fill
a batch:

    carry   the first rows of the next pass complete it: a batch is `batch_size` positions of the endless sequence of
            passes, and passes have no edge. What is left after the *last* pass is not delivered.
    drop    not delivered; each pass starts with a new batch.
    keep    delivered as a short batch; each pass starts with a new batch.

`passes` says where the data ends: 1 is one pass, E is E passes, None never ends (`end: cycle`).

**The permutation** of n things, which must never change, since runs are resumed with it: n values of 64 bits are drawn
from Philox4x64-10 with a key of 128 bits and the counters 1, 2, 3, ... (four values each); in each value the lowest
bits, as many as n - 1 has, are replaced by the value's index; they are sorted, and what the lowest bits then say is the
permutation. All values differ, so every sorting algorithm gives the same result. The key is the first 16 bytes,
little-endian, of sha256 over "FINGERPRINT/SEED/PASS/blocks" for the blocks of a pass, and over
"FINGERPRINT/SEED/PASS/rows/WINDOW" for the rows of a window of it; numbers are decimal and count from 0 (the tests have
all of it in plain Python).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trn.errors import DataError
from trn.feed.strict import fields

__all__ = ["Batch", "Cursor", "Order", "Remainder", "Span", "Window", "permutation", "share_of"]

Remainder = Literal["carry", "drop", "keep"]
Int64 = NDArray[np.int64]


class Cursor(NamedTuple):
    """A place between two global batches: the next one starts with row `offset` of pass `pass_index`, both from 0.

    `offset` counts rows in the order of that pass. A cursor means something only with the Order it came from. A tuple,
    since each batch has a new one: a frozen dataclass takes twice as long to make.
    """

    pass_index: int = 0
    offset: int = 0

    def to_json(self) -> dict[str, int]:
        return {"offset": self.offset, "pass_index": self.pass_index}

    @classmethod
    def from_json(cls, value: Any) -> Cursor:
        """Raises JsonError for missing, unknown, ill-typed or negative fields."""
        return cls(**fields(value, "cursor", {"offset": int, "pass_index": int}))


@dataclass(frozen=True)
class Span:
    """Where one global batch lies, without its rows."""

    cursor: Cursor
    next_cursor: Cursor
    rows: int
    pass_index: int
    """The pass of its last row."""
    wrapped: bool
    """It holds the first row of a pass that is not the first."""


@dataclass(frozen=True)
class Batch:
    """One global batch: row numbers in the data set, and the pass that each row belongs to."""

    span: Span
    rows: Int64
    passes: NDArray[np.int32]


@dataclass(frozen=True)
class Window:
    """Some consecutive blocks of a pass and the order of their rows.

    With the rows of `blocks` laid end to end, row i of the window is row `take[i]` of them, and row `row_ids[i]` of the
    data set. `start` is the offset of the window's first row in its pass.
    """

    pass_index: int
    start: int
    blocks: tuple[int, ...]
    take: Int64
    row_ids: Int64


@dataclass(frozen=True)
class _Layout:
    """One pass: its blocks in their order, and where its windows start; one more entry marks the end."""

    blocks: Int64
    starts: Int64


@dataclass(frozen=True)
class Order:
    """Which rows make which global batch. Construction raises DataError where no batch could ever be made.

    Equal for any number of ranks; `share_of` cuts a rank's part out of a batch. Safe to use from several threads.
    """

    fingerprint: str
    block_rows: tuple[int, ...]
    """Rows of each block of the data set, none of them 0."""
    seed: int
    batch_size: int
    """Rows of a batch over all ranks and micro-batches."""
    window: int = 8
    shuffle: bool = True
    remainder: Remainder = "carry"
    passes: int | None = 1
    _layouts: dict[int, _Layout] = field(default_factory=dict, init=False, repr=False, compare=False)
    _recent: list[tuple[int, int, Window]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("batch_size", "window", "passes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"expected at least 1, found {value}.", where=f"dataset.{name}")
        if not self.block_rows or min(self.block_rows) < 1:
            raise DataError("the data set has no rows.", where="dataset")
        if self.remainder == "drop" and self.rows < self.batch_size:
            raise DataError(
                f"a pass has {self.rows} rows, fewer than one batch of {self.batch_size}, and remainder is drop.",
                where="dataset.batch_size",
                hint="Use a smaller batch, or remainder: keep.",
            )

    @cached_property
    def rows(self) -> int:
        """Rows of one pass."""
        return sum(self.block_rows)

    @cached_property
    def delivered_rows(self) -> int:
        """Rows of a pass that become part of a batch, in this pass or the next: with `drop` not its last ones."""
        return self.rows // self.batch_size * self.batch_size if self.remainder == "drop" else self.rows

    @property
    def batches_per_pass(self) -> int:
        """Batches that lie in one pass: the whole ones, and with `keep` also the short one."""
        return -(-self.rows // self.batch_size) if self.remainder == "keep" else self.rows // self.batch_size

    def batches_total(self, passes: int) -> int:
        """Batches of `passes` passes from the start; with `carry` the whole ones of all rows together."""
        if self.remainder == "carry":
            return passes * self.rows // self.batch_size
        return passes * self.batches_per_pass

    def cursor_at(self, batch_index: int) -> Cursor:
        """The cursor before batch number `batch_index`, counted from 0 over all passes; not limited by `passes`."""
        if self.remainder == "carry":
            return Cursor(*divmod(batch_index * self.batch_size, self.rows))
        pass_index, index = divmod(batch_index, self.batches_per_pass)
        return Cursor(pass_index, index * self.batch_size)

    def span(self, cursor: Cursor) -> Span | None:
        """Where the batch at `cursor` lies, None at the end of the data. ValueError for a cursor of another Order."""
        if self.remainder == "carry":
            return self._span_over_passes(cursor)
        end = self.delivered_rows
        if not 0 <= cursor.offset < end or cursor.offset % self.batch_size or cursor.pass_index < 0:
            raise ValueError(f"{cursor} is not between two batches of this order")
        if self.passes is not None and cursor.pass_index >= self.passes:
            return None
        after = min(cursor.offset + self.batch_size, end)
        return Span(
            cursor=cursor,
            next_cursor=Cursor(cursor.pass_index + 1, 0) if after == end else Cursor(cursor.pass_index, after),
            rows=after - cursor.offset,
            pass_index=cursor.pass_index,
            wrapped=cursor.offset == 0 and cursor.pass_index > 0,
        )

    def _span_over_passes(self, cursor: Cursor) -> Span | None:
        first = cursor.pass_index * self.rows + cursor.offset
        if not 0 <= cursor.offset < self.rows or first % self.batch_size or first < 0:
            raise ValueError(f"{cursor} is not between two batches of this order")
        after = first + self.batch_size
        if self.passes is not None and after > self.passes * self.rows:
            return None
        last_pass = (after - 1) // self.rows
        return Span(
            cursor=cursor,
            next_cursor=Cursor(*divmod(after, self.rows)),
            rows=self.batch_size,
            pass_index=last_pass,
            wrapped=last_pass > (max(first - 1, 0)) // self.rows,
        )

    def batch(self, cursor: Cursor) -> Batch | None:
        """The global batch at `cursor`, None at the end of the data; the cost does not grow with the cursor."""
        span = self.span(cursor)
        if span is None:
            return None
        pass_index, offset, left = cursor.pass_index, cursor.offset, span.rows
        rows, passes = [], []
        while left:
            window = self._window_again(pass_index, self.window_at(pass_index, offset))
            taken = window.row_ids[offset - window.start :][:left]
            rows.append(taken)
            passes.append(np.full(len(taken), pass_index, np.int32))
            left -= len(taken)
            pass_index, offset = self._forward(pass_index, offset + len(taken))
        return Batch(span, np.concatenate(rows), np.concatenate(passes))

    def _forward(self, pass_index: int, offset: int) -> tuple[int, int]:
        return (pass_index + 1, 0) if offset == self.rows else (pass_index, offset)

    @property
    def windows_per_pass(self) -> int:
        return -(-len(self.block_rows) // self._blocks_per_window)

    @property
    def _blocks_per_window(self) -> int:
        return self.window if self.shuffle else 1

    def window_at(self, pass_index: int, offset: int) -> int:
        """The number of the window that holds row `offset` of a pass."""
        return int(np.searchsorted(self._layout(pass_index).starts, offset, side="right")) - 1

    def window_of(self, pass_index: int, index: int) -> Window:
        """Window number `index` of a pass, made anew at each call."""
        layout = self._layout(pass_index)
        wide = self._blocks_per_window
        blocks = layout.blocks[index * wide : (index + 1) * wide]
        sizes = self._sizes[blocks]
        take = np.arange(int(sizes.sum()), dtype=np.int64)
        if self.shuffle:
            take = permutation(len(take), self._key(pass_index, f"rows/{index}"))
        # row number of a row = its place among the laid-out blocks, moved by as much as its block is
        moved = np.repeat(self._first_rows[blocks] - (np.cumsum(sizes) - sizes), sizes)
        return Window(
            pass_index=pass_index,
            start=int(layout.starts[index]),
            blocks=tuple(blocks.tolist()),
            take=take,
            row_ids=take + moved[take],
        )

    def _window_again(self, pass_index: int, index: int) -> Window:
        """Like `window_of`; the last one is kept, since batches that follow each other mostly share it."""
        for kept_pass, kept_index, window in self._recent:
            if (kept_pass, kept_index) == (pass_index, index):
                return window
        window = self.window_of(pass_index, index)
        self._recent[:] = [(pass_index, index, window)]
        return window

    def _layout(self, pass_index: int) -> _Layout:
        layout = self._layouts.get(pass_index)
        if layout is None:
            layout = self._make_layout(pass_index)
            if len(self._layouts) >= 4:
                self._layouts.clear()
            self._layouts[pass_index] = layout
        return layout

    def _make_layout(self, pass_index: int) -> _Layout:
        blocks = np.arange(len(self.block_rows), dtype=np.int64)
        if self.shuffle:
            blocks = permutation(len(blocks), self._key(pass_index, "blocks"))
        ends = np.concatenate(([0], np.cumsum(self._sizes[blocks])))
        return _Layout(blocks, np.append(ends[: -1 : self._blocks_per_window], ends[-1]))

    @cached_property
    def _sizes(self) -> Int64:
        return np.asarray(self.block_rows, np.int64)

    @cached_property
    def _first_rows(self) -> Int64:
        return np.cumsum(self._sizes) - self._sizes

    def _key(self, pass_index: int, what: str) -> int:
        text = f"{self.fingerprint}/{self.seed}/{pass_index}/{what}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")

    def places_of(self, window: Window, offset: int, rank: int, world_size: int) -> Int64:
        """Which rows of `window` a rank gets, from row `offset` of the pass on: their places in it, in order."""
        if world_size == 1:  # all of them: without arrays of masks, since a window can be the whole data set
            first = max(offset - window.start, 0)
            end = min(len(window.take), self.delivered_rows - window.start)
            return np.arange(first, max(first, end), dtype=np.int64)
        offsets = np.arange(window.start, window.start + len(window.take), dtype=np.int64)
        within = offsets
        size: int | Int64 = self.batch_size
        wanted = offsets >= offset
        whole = self.rows // self.batch_size * self.batch_size
        if self.remainder == "carry":
            within = offsets + window.pass_index * self.rows % self.batch_size
        elif self.remainder == "drop":
            wanted &= offsets < whole
        else:
            size = np.where(offsets < whole, self.batch_size, self.rows - whole)
        within = within % self.batch_size
        wanted &= (within >= rank * size // world_size) & (within < (rank + 1) * size // world_size)
        return np.flatnonzero(wanted)


def share_of(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """Where a rank's part of a batch of `rows` rows begins and ends: contiguous, and as equal as the number allows."""
    return rank * rows // world_size, (rank + 1) * rows // world_size


def permutation(count: int, key: int) -> Int64:
    """The permutation of 0 .. count - 1 that `key` (128 bits) stands for; see the head of this module."""
    bits = np.uint64(max(count - 1, 0).bit_length())
    values = np.random.Philox(key=key).random_raw(count)
    values = (values >> bits << bits) | np.arange(count, dtype=np.uint64)
    values.sort()
    result: Int64 = (values & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    return result
