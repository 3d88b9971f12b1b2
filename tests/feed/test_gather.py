"""Gathered rows are those of Arrow's own take, whatever the type and wherever the memory lies."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trn.errors import DataError
from trn.feed import gather
from trn.feed.gather import Gather, concat, plain_rows, plain_type
from trn.feed.shared import shared_tensor
from trn.feed.tensors import to_tensors

ROWS = 29


def fixed(values: Any, size: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(values, size)


def columns() -> dict[str, pa.Array]:
    count = np.arange(ROWS * 12)
    return {
        "i8": pa.array(count[:ROWS] % 100, pa.int8()),
        "u16": pa.array(count[:ROWS], pa.uint16()),
        "f32": pa.array(count[:ROWS] / 7, pa.float32()),
        "i64": pa.array(count[:ROWS]),
        "time": pa.array(count[:ROWS], pa.timestamp("us")),
        "odd": fixed(pa.array(count[: ROWS * 3], pa.int8(), safe=False), 3),
        "wide": fixed(pa.array(count.astype(np.int32)), 12),
        "deep": fixed(fixed(pa.array(count.astype(np.float64)), 3), 4),
        "deep_hole": fixed(fixed(pa.array(count), 3), 4)
        .filter(pa.array([True] * ROWS))
        .take(pa.array([None if one % 5 == 0 else one for one in range(ROWS)])),
        "hole": pa.array([None if one % 4 == 0 else one for one in range(ROWS)]),
        "inner_hole": fixed(pa.array([None if one % 9 == 0 else one for one in range(ROWS * 2)]), 2),
        "bit": pa.array([one % 3 == 0 for one in range(ROWS)]),
        "text": pa.array(["x" * (one % 5) for one in range(ROWS)]),
        "lists": pa.array([list(range(one % 4)) for one in range(ROWS)]),
    }


BATCH = pa.record_batch(columns())


@pytest.fixture(params=[0, 1 << 20], ids=["each piece", "laid in one"])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "_NARROW_BYTES", request.param)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("cuts", [[], [10], [1, 2, 17, 28]])
@pytest.mark.parametrize("first", [0, 3])
def test_rows_are_those_of_arrow(cuts: list[int], first: int) -> None:
    ends = [first, *(cut for cut in cuts if cut > first), ROWS]
    pieces = [BATCH.slice(begin, end - begin) for begin, end in pairwise(ends)]
    places = np.random.default_rng(1).integers(0, ROWS - first, 50)
    taken = Gather(pieces, BATCH.schema).take(places)
    taken.validate(full=True)
    # from the whole batch: Arrow's take of a slice of lists of lists is wrong, in pyarrow 26.0
    assert taken.equals(pc.take(BATCH, pa.array(places + first)))


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.data())
def test_any_pieces_and_any_places(sizes: list[int], data: st.DataObject) -> None:
    total = sum(sizes)
    rows = BATCH.slice(0, total) if total <= ROWS else BATCH
    if rows.num_rows < total:
        return
    begins = np.cumsum([0, *sizes])
    pieces = [rows.slice(int(begin), size) for begin, size in zip(begins, sizes, strict=False)]
    places = np.array(data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=20)), np.int64)
    assert Gather(pieces, BATCH.schema).take(places).equals(pc.take(rows, pa.array(places)))


def test_what_is_gathered_is_memory_of_its_own() -> None:
    source = pa.record_batch({"wide": BATCH.column("wide")})
    for places in ([3, 3, 1], [0, 1, 2]):
        taken = Gather([source.slice(0, 10), source.slice(10)], source.schema).take(np.array(places, np.int64))
        to_tensors(taken, ["wide"])["wide"].fill_(-1)
    assert source.column("wide").equals(columns()["wide"])


@pytest.mark.parametrize("name", [name for name in BATCH.schema.names if name not in ("text", "lists", "bit")])
@pytest.mark.parametrize("first", [0, 5])
def test_plain_rows_are_the_memory_of_the_column(name: str, first: int) -> None:
    column = BATCH.column(name).slice(first, 20)
    plain = plain_type(column.type)
    assert plain is not None
    view = plain_rows(column, plain)
    if "hole" in name:
        assert view is None
    else:
        assert view is not None
        assert plain.wrap(pa.py_buffer(np.ascontiguousarray(view)), 20).equals(column)


def test_a_shared_tensor_is_that_of_the_way_for_every_column() -> None:
    gathered = Gather([BATCH], BATCH.schema).take(np.arange(ROWS))
    for name, shape in (("i8", [7]), ("f32", [7]), ("i64", [7]), ("wide", [7, 12]), ("deep", [7, 4, 3])):
        column = gathered.column(name).slice(4, 7)
        shared = shared_tensor(column)
        assert shared is not None
        assert list(shared.shape) == shape
        assert shared.tolist() == column.to_pylist()
    for name in ("hole", "inner_hole", "deep_hole", "bit", "text", "lists", "time"):
        assert shared_tensor(gathered.column(name)) is None
    assert shared_tensor(gathered.column("i64").slice(0, 0)) is None
    assert shared_tensor(pa.Array.from_buffers(pa.int64(), 10, [None, pa.py_buffer(bytes(80))])) is None


SIZE = 1 << 27


def one_row(kind: pa.DataType) -> pa.RecordBatch:
    """A small column, and `v`, whose row has 128 MiB or 2^27 values: zeros that nobody looks at take no memory."""
    offsets = pa.array([0, SIZE], pa.int32())
    if pa.types.is_struct(kind):
        row = pa.StructArray.from_arrays([one_row(kind.field(0).type).column("v")], fields=list(kind))
    elif pa.types.is_list(kind):
        row = pa.ListArray.from_arrays(offsets, pa.nulls(SIZE), type=kind)
    else:
        row = pa.Array.from_buffers(kind, 1, [None, offsets.buffers()[1], pa.py_buffer(bytes(SIZE))])
    return pa.record_batch({"x": pa.array([1]), "v": row})


def is_refused(error: DataError, kind: pa.DataType) -> bool:
    return str(error) == (
        f'data error [data_error] at dataset.batch_size: column "v" is {kind}, and 16 rows together hold more than its'
        " 32-bit offsets reach: 2 GiB of text or bytes, or 2^31 values in lists. Use a smaller batch, or write the"
        " column as large_string, large_binary or large_list."
    )


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.binary(), pa.list_(pa.null()), pa.struct([("s", pa.string())])], ids=str
)
def test_more_than_32_bit_offsets_reach_in_one_batch_is_refused_by_name(kind: pa.DataType) -> None:
    # Arrow adds up the lengths before it asks for memory: nothing is copied
    batch = one_row(kind)
    with pytest.raises(DataError) as caught:
        concat([batch] * 16, batch.schema)
    assert is_refused(caught.value, kind)
    assert isinstance(caught.value.__cause__, pa.ArrowInvalid)


@pytest.mark.slow
def test_more_than_32_bit_offsets_reach_gathered_from_pieces_is_refused_by_name() -> None:
    # 2 GiB are copied: what is taken from one piece has memory of its own
    batch = one_row(pa.string())
    with pytest.raises(DataError) as caught:
        Gather([batch] * 16, batch.schema).take(np.arange(16))
    assert is_refused(caught.value, pa.string())


def test_another_error_of_arrow_is_not_taken_for_an_overflow() -> None:
    batches = [pa.record_batch({"x": pa.array([1], kind)}) for kind in (pa.int8(), pa.int16())]
    with pytest.raises(pa.ArrowInvalid, match="identically typed"):
        concat(batches, batches[0].schema)
