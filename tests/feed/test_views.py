"""Tensors cut out of a part's arrays are those of the batch's own columns, and only that batch's."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from trn.errors import DataError
from trn.feed import Cursor, Dataset, Feed, Order, RawBatch, make_cache, open_cache, open_dataset, parts, views
from trn.feed.tensors import to_tensors

COLUMNS = ["id", "pair"]


def order_of(dataset: Dataset, **changes: Any) -> Order:
    settings = {"seed": 7, "batch_size": 4, "window": 2, "passes": 3} | changes
    return Order(dataset.fingerprint, dataset.block_rows, **settings)


def take(feed: Feed) -> Iterator[RawBatch]:
    with feed:
        while (batch := feed.next()) is not None:
            yield batch


def listed(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: (tensor.dtype, tensor.tolist()) for name, tensor in tensors.items()}


@pytest.fixture(params=["parquet", "cache"])
def feed_of(request: pytest.FixtureRequest, dataset: Dataset, tmp_path: Path) -> Callable[..., Feed]:
    if request.param == "cache":
        make_cache(dataset, COLUMNS, tmp_path / "cache")

    def make(order: Order, cursor: Cursor, **share: int) -> Feed:
        cache = open_cache(dataset, COLUMNS, tmp_path / "cache") if request.param == "cache" else None
        return Feed(dataset, order, COLUMNS, cursor, cache=cache, **share)

    return make


@pytest.mark.parametrize("part_bytes", [1, 200, parts._PART_BYTES])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2), (0, 5)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_tensors_are_the_rows_of_the_order_at_every_cursor(
    dataset: Dataset,
    feed_of: Callable[..., Feed],
    monkeypatch: pytest.MonkeyPatch,
    part_bytes: int,
    rank: int,
    world_size: int,
    shuffle: bool,
) -> None:
    """Parts of one batch and of many, batches over the end of a pass, and a rank (0 of 5) that never gets a row."""
    monkeypatch.setattr(parts, "_PART_BYTES", part_bytes)
    order = order_of(dataset, shuffle=shuffle)
    seen = 0
    for index in (0, 3, 6):
        cursor = order.cursor_at(index)
        for batch in take(feed_of(order, cursor, rank=rank, world_size=world_size)):
            expected = order.batch(cursor)
            assert expected is not None
            mine = expected.rows[4 * rank // world_size : 4 * (rank + 1) // world_size].tolist()
            tensors = to_tensors(batch.record_batch)
            assert batch.row_ids.tolist() == tensors["id"].tolist() == mine
            assert tensors["pair"].tolist() == [[row, 2 * row] for row in mine]
            again = pa.RecordBatch.from_arrays(batch.record_batch.columns, schema=batch.record_batch.schema)
            assert views.given_as(again) is None
            assert listed(to_tensors(again)) == listed(tensors)
            cursor = batch.next_cursor
            seen += views.given_as(batch.record_batch) is not None
    if part_bytes > 200:  # else some parts are one batch, and no batch lies within a part that was waiting
        assert bool(seen) == ((rank, world_size) != (0, 5))


def test_tensors_share_the_memory_of_the_batch_and_have_storage_of_their_own(
    dataset: Dataset, feed_of: Callable[..., Feed]
) -> None:
    batches, first = [], []
    with feed_of(order_of(dataset, window=99, passes=1), Cursor()) as feed:
        while (batch := feed.next()) is not None:
            first.append(to_tensors(batch.record_batch)["id"])
            batches.append(batch)
    for tensor, batch in zip(first, batches, strict=True):
        assert tensor.untyped_storage().nbytes() == 8 * batch.record_batch.num_rows
        assert tensor._version == 0, "another batch was written to"
        tensor.fill_(-1)
        assert batch.record_batch.column("id").to_pylist() == [-1] * batch.record_batch.num_rows
    for batch in batches:
        assert batch.record_batch.column("pair").to_pylist() == [[row, 2 * row] for row in batch.row_ids.tolist()]


def test_a_batch_that_is_not_the_last_one_is_not_taken_for_it(dataset: Dataset, feed_of: Callable[..., Feed]) -> None:
    order = order_of(dataset, window=99)
    with feed_of(order, Cursor()) as one, feed_of(order, order.cursor_at(2)) as other:
        batches = [one.next(), one.next(), other.next(), one.next(), other.next()]
        for batch in batches:
            assert batch is not None
            assert to_tensors(batch.record_batch, ["id"])["id"].tolist() == batch.row_ids.tolist()


def test_columns_are_chosen_ordered_and_refused_as_ever(dataset: Dataset, feed_of: Callable[..., Feed]) -> None:
    with feed_of(order_of(dataset, window=99), Cursor()) as feed:
        assert feed.next() is not None
        batch = feed.next()
        assert batch is not None
        assert views.given_as(batch.record_batch) is not None
        assert list(to_tensors(batch.record_batch)) == COLUMNS
        assert list(to_tensors(batch.record_batch, ["pair", "id"])) == ["pair", "id"]
        assert to_tensors(batch.record_batch, []) == {}
        with pytest.raises(DataError, match="expected one column of this name"):
            to_tensors(batch.record_batch, ["id", "nme"])


def test_columns_that_have_no_array_come_beside_those_that_have(tmp_path: Path) -> None:
    rows = 24
    table = pa.table(
        {
            "id": np.arange(rows),
            "bit": [one % 3 == 0 for one in range(rows)],
            "many": [list(range(one % 4)) for one in range(rows)],
            "hole": pa.array([None if one == 0 else one for one in range(rows)], pa.int32()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    dataset = open_dataset([str(tmp_path / "a.parquet")], columns=None)
    refused = 0
    for batch in take(Feed(dataset, order_of(dataset, passes=1), None, Cursor())):
        ids = batch.row_ids.tolist()
        tensors = to_tensors(batch.record_batch, ["many", "bit", "id"])
        assert list(tensors) == ["many", "many_offsets", "bit", "id"]
        assert tensors["id"].tolist() == ids
        assert tensors["bit"].tolist() == [one % 3 == 0 for one in ids]
        assert tensors["many"].tolist() == [value for one in ids for value in range(one % 4)]
        if 0 in ids:
            refused += 1
            with pytest.raises(DataError, match="1 of 4 values are null"):
                to_tensors(batch.record_batch)
        else:
            assert to_tensors(batch.record_batch)["hole"].tolist() == ids
    assert refused == 1


def test_columns_of_one_name_have_no_array() -> None:
    def numbers() -> pa.Array:
        return pa.Array.from_buffers(pa.int64(), 3, [None, pa.allocate_buffer(24)])

    rows = pa.RecordBatch.from_arrays([numbers(), numbers(), numbers()], names=["a", "b", "a"])
    assert list(views.shared_arrays(rows)) == ["b"]


def test_the_cursor_of_a_feed_is_after_the_batch_it_gave_last(dataset: Dataset, feed_of: Callable[..., Feed]) -> None:
    """Whatever lies ready beyond that batch: from there, another feed goes on with the next one."""
    order = order_of(dataset, window=99, passes=2)
    with feed_of(order, Cursor()) as feed:
        while (batch := feed.next()) is not None:
            assert feed.cursor == batch.next_cursor
            expected = order.batch(feed.cursor)
            with feed_of(order, feed.cursor) as resumed:
                after = resumed.next()
            assert (after is None) == (expected is None)
            assert after is None or expected is None or after.row_ids.tolist() == expected.rows.tolist()
        assert feed.next() is None


@pytest.mark.slow
def test_a_part_is_let_go_of_when_its_last_batch_is_past(dataset: Dataset, feed_of: Callable[..., Feed]) -> None:
    with feed_of(order_of(dataset, window=99, passes=3), Cursor(), readahead=0) as feed:
        parts: dict[int, weakref.ref[Any]] = {}
        while (batch := feed.next()) is not None:
            given = views.given_as(batch.record_batch)
            if given is not None:
                parts[batch.pass_index] = weakref.ref(given[1])  # type: ignore[arg-type]  # a Part can be referred to
            del given
            gc.collect()
            alive = [index for index, part in parts.items() if part() is not None]
            assert all(index >= batch.pass_index - 1 for index in alive)
        assert sorted(parts) == [0, 1, 2]


def test_a_closed_feed_holds_no_part(dataset: Dataset, feed_of: Callable[..., Feed]) -> None:
    with feed_of(order_of(dataset, window=99, passes=1), Cursor()) as feed:
        assert feed.next() is not None
        batch = feed.next()
        assert batch is not None
        given = views.given_as(batch.record_batch)
        assert given is not None
        part = weakref.ref(given[1])
        del given
    gc.collect()
    assert part() is None
    assert to_tensors(batch.record_batch)["id"].tolist() == batch.row_ids.tolist()
