"""The order of the data is a pure function, and a cursor is enough to go on anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trn.errors import DataError
from trn.feed.order import Batch, Cursor, Order, Remainder, permutation, share_of
from trn.records import JsonError

FINGERPRINT = "0f" * 32
START = Cursor()
REMAINDERS: tuple[Remainder, ...] = ("carry", "drop", "keep")


@st.composite
def orders(draw: st.DrawFn, *, max_rows: int = 9) -> Order:
    remainder: Remainder = draw(st.sampled_from(REMAINDERS))
    block_rows = tuple(draw(st.lists(st.integers(1, max_rows), min_size=1, max_size=7)))
    largest = sum(block_rows) if remainder == "drop" else sum(block_rows) + 5
    return Order(
        FINGERPRINT,
        block_rows,
        seed=draw(st.integers(0, 3)),
        batch_size=draw(st.integers(1, largest)),
        window=draw(st.integers(1, 4)),
        shuffle=draw(st.booleans()),
        remainder=remainder,
        passes=draw(st.sampled_from([1, 2, 3, None])),
    )


def walk(order: Order, cursor: Cursor = START, limit: int = 10_000) -> list[Batch]:
    """All batches from a cursor on; of endless data those of the first three passes."""
    found: list[Batch] = []
    while len(found) < limit and (batch := order.batch(cursor)) is not None:
        if order.passes is None and batch.span.cursor.pass_index >= 3:
            break
        found.append(batch)
        cursor = batch.span.next_cursor
    return found


def as_lists(batches: list[Batch]) -> list[tuple[object, ...]]:
    return [(batch.span, batch.rows.tolist(), batch.passes.tolist()) for batch in batches]


def philox(key: int) -> Iterator[int]:
    """Philox4x64-10 in plain Python; Salmon et al. 2011, table 2 and section 3.2."""
    mask = (1 << 64) - 1
    counter = 0
    while True:
        counter += 1
        x = [counter, 0, 0, 0]
        k0, k1 = key & mask, key >> 64
        for _ in range(10):
            p0, p1 = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
            x = [(p1 >> 64) ^ x[1] ^ k0, p1 & mask, (p0 >> 64) ^ x[3] ^ k1, p0 & mask]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        yield from x


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 64, 65, 1000])
def test_a_permutation_is_what_the_documentation_says(count: int) -> None:
    key = (0xABCDEF << 100) | 3
    bits = (count - 1).bit_length() if count else 0
    drawn = zip(philox(key), range(count), strict=False)
    values = sorted(value >> bits << bits | index for value, index in drawn)
    assert permutation(count, key).tolist() == [value & ((1 << bits) - 1) for value in values]


def test_permutations_never_change() -> None:
    assert permutation(12, key=1).tolist() == [3, 5, 2, 9, 7, 10, 0, 8, 6, 11, 1, 4]
    large = permutation(100_003, key=(1 << 127) + 5)
    assert sorted(large.tolist()) == list(range(100_003))
    assert large[[0, 1, 2, 50_000, 100_002]].tolist() == [59488, 36360, 7279, 61126, 97709]


def test_the_order_of_a_shuffled_data_set_never_changes() -> None:
    order = Order(FINGERPRINT, (3, 5, 2, 4), seed=42, batch_size=4, window=2, passes=2)
    assert [batch.rows.tolist() for batch in walk(order)] == [
        [13, 10, 12, 11], [8, 9, 4, 1], [2, 7, 6, 3], [5, 0, 0, 1], [2, 9, 8, 13], [11, 10, 3, 6], [4, 12, 5, 7],
    ]  # fmt: skip


def test_permutations_are_fair() -> None:
    counts = dict.fromkeys(permutations(range(3)), 0)
    for key in range(6000):
        counts[tuple(permutation(3, key).tolist())] += 1
    assert all(880 < count < 1120 for count in counts.values())  # 1000 +- 4 standard deviations


@given(orders())
def test_a_pass_holds_every_row_exactly_once(order: Order) -> None:
    batches = walk(order)
    rows = np.concatenate([batch.rows for batch in batches] or [np.empty(0, np.int64)])
    passes = np.concatenate([batch.passes for batch in batches] or [np.empty(0, np.int32)])
    for pass_index in range(int(passes.max()) + 1 if len(passes) else 0):
        of_pass = rows[passes == pass_index].tolist()
        assert len(set(of_pass)) == len(of_pass)
        is_whole = (passes > pass_index).any() or order.remainder == "keep"
        missing = order.rows - len(of_pass)
        assert missing == (order.rows % order.batch_size if order.remainder == "drop" else 0) or not is_whole


@given(orders())
@settings(max_examples=200)
def test_going_on_at_any_cursor_equals_the_uninterrupted_sequence(order: Order) -> None:
    whole = walk(order)
    expected = as_lists(whole)
    for index, batch in enumerate(whole):
        cursor = Cursor.from_json(batch.span.cursor.to_json())
        again = Order(
            order.fingerprint, order.block_rows, order.seed, order.batch_size, order.window, order.shuffle,
            order.remainder, order.passes,
        )  # fmt: skip
        assert as_lists(walk(again, cursor, limit=len(whole) - index)) == expected[index:]
        assert order.cursor_at(index) == cursor


@given(orders())
def test_the_number_of_batches_is_known_beforehand(order: Order) -> None:
    whole = walk(order)
    if order.passes is not None:
        assert len(whole) == order.batches_total(order.passes)
    assert all(len(batch.rows) == len(batch.passes) == batch.span.rows for batch in whole)
    short = [batch for batch in whole if batch.span.rows < order.batch_size]
    assert not short or order.remainder == "keep"


@given(orders())
def test_each_later_pass_is_announced_once(order: Order) -> None:
    started = [batch for batch in walk(order) if batch.span.wrapped]
    passes = [batch.span.pass_index for batch in started]
    assert passes == sorted(set(passes))
    assert 0 not in passes
    for batch in walk(order):
        assert batch.span.pass_index == batch.passes[-1]
    if order.batch_size <= order.rows and len(walk(order)) > 0:
        assert passes == list(range(1, int(walk(order)[-1].passes[-1]) + 1))


@given(orders(), st.sampled_from([1, 2, 3, 4]))
def test_ranks_share_the_same_global_batches(order: Order, world_size: int) -> None:
    order = Order(FINGERPRINT, order.block_rows, 1, order.batch_size, order.window, order.shuffle, order.remainder)
    per_rank: list[list[int]] = []
    for rank in range(world_size):
        rows: list[int] = []
        for index in range(order.windows_per_pass):
            window = order.window_of(0, index)
            rows += window.row_ids[order.places_of(window, 0, rank, world_size)].tolist()
        per_rank.append(rows)
    for batch in walk(order):
        expected = batch.rows.tolist()
        found: list[int] = []
        for rank in range(world_size):
            begin, end = share_of(len(expected), rank, world_size)
            found += per_rank[rank][: end - begin]
            per_rank[rank] = per_rank[rank][end - begin :]
        assert found == expected


def test_shares_are_contiguous_and_as_equal_as_possible() -> None:
    for rows in range(20):
        for world_size in range(1, 6):
            shares = [share_of(rows, rank, world_size) for rank in range(world_size)]
            assert shares[0][0] == 0
            assert shares[-1][1] == rows
            assert all(one[1] == next_one[0] for one, next_one in pairwise(shares))
            sizes = [end - begin for begin, end in shares]
            assert max(sizes) - min(sizes) <= 1


def test_rows_stay_inside_their_window() -> None:
    order = Order(FINGERPRINT, (4,) * 12, seed=1, batch_size=4, window=3)
    for index in range(order.windows_per_pass):
        window = order.window_of(0, index)
        assert len(window.blocks) == 3
        assert {row // 4 for row in window.row_ids.tolist()} == set(window.blocks)


def test_passes_seeds_and_data_sets_have_orders_of_their_own() -> None:
    def first_rows(order: Order, pass_index: int = 0) -> list[int]:
        batch = order.batch(Cursor(pass_index, 0))
        assert batch is not None
        return [int(row) for row in batch.rows]

    block_rows = (50, 50)
    one = Order(FINGERPRINT, block_rows, seed=1, batch_size=100, passes=None)
    assert first_rows(one) == first_rows(Order(FINGERPRINT, block_rows, seed=1, batch_size=100))
    assert first_rows(one) != first_rows(one, pass_index=1)
    assert first_rows(one) != first_rows(Order(FINGERPRINT, block_rows, seed=2, batch_size=100))
    assert first_rows(one) != first_rows(Order("ab" * 32, block_rows, seed=1, batch_size=100))


def test_without_shuffle_rows_come_as_they_lie_in_the_files() -> None:
    order = Order(FINGERPRINT, (3, 5, 2), seed=9, batch_size=4, shuffle=False, remainder="keep")
    assert [batch.rows.tolist() for batch in walk(order)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_carry_completes_the_tail_of_a_pass_with_the_next_one() -> None:
    order = Order(FINGERPRINT, (5,), seed=9, batch_size=3, shuffle=False, passes=2)
    batches = walk(order)
    assert [batch.rows.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]
    assert [batch.passes.tolist() for batch in batches] == [[0, 0, 0], [0, 0, 1], [1, 1, 1]]
    assert [batch.span.wrapped for batch in batches] == [False, True, False]


def test_a_batch_larger_than_the_data_spans_many_passes_when_carried() -> None:
    order = Order(FINGERPRINT, (2,), seed=9, batch_size=5, shuffle=False, passes=None)
    batch = order.batch(Cursor())
    assert batch is not None
    assert batch.passes.tolist() == [0, 0, 1, 1, 2]
    assert batch.span.next_cursor == Cursor(2, 1)


def test_a_far_cursor_is_as_near_as_the_first() -> None:
    order = Order(FINGERPRINT, (1000,) * 50, seed=1, batch_size=32, passes=None)
    batch = order.batch(order.cursor_at(10**12))
    assert batch is not None
    assert len(set(batch.rows.tolist())) == 32


def test_a_batch_that_can_never_be_filled_is_refused() -> None:
    with pytest.raises(DataError, match="fewer than one batch of 8"):
        Order(FINGERPRINT, (3, 4), seed=1, batch_size=8, remainder="drop")
    with pytest.raises(DataError, match=r"dataset\.batch_size: expected at least 1, found 0"):
        Order(FINGERPRINT, (3, 4), seed=1, batch_size=0)
    with pytest.raises(DataError, match="no rows"):
        Order(FINGERPRINT, (), seed=1, batch_size=1)


@pytest.mark.parametrize("cursor", [Cursor(0, 1), Cursor(0, 10), Cursor(1, 3), Cursor(-1, 0), Cursor(0, -4)])
@pytest.mark.parametrize("remainder", REMAINDERS)
def test_a_cursor_of_another_order_is_refused(cursor: Cursor, remainder: Remainder) -> None:
    order = Order(FINGERPRINT, (10,), seed=1, batch_size=4, remainder=remainder, passes=None)
    with pytest.raises(ValueError, match="not between two batches"):
        order.span(cursor)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"offset": 0},
        {"offset": 0, "pass_index": -1},
        {"offset": True, "pass_index": 0},
        {"offset": 0.0, "pass_index": 0},
        {"offset": 0, "pass_index": 0, "more": 1},
    ],
)
def test_a_cursor_is_read_strictly(value: object) -> None:
    with pytest.raises(JsonError, match="cursor"):
        Cursor.from_json(value)
