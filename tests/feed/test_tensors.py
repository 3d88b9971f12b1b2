"""Arrow to torch: no copy where the layout allows, and a named refusal where a tensor cannot say it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from trn.errors import DataError
from trn.feed import Cursor, Feed, Order, open_dataset
from trn.feed.tensors import to_tensors


def batch_of(**columns: object) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def fixed(values: list[object], kind: pa.DataType, *sizes: int) -> pa.Array:
    for size in sizes:
        kind = pa.list_(kind, size)
    return pa.array(values, kind)


NUMBERS = {
    pa.int8(): torch.int8,
    pa.int16(): torch.int16,
    pa.int32(): torch.int32,
    pa.int64(): torch.int64,
    pa.uint8(): torch.uint8,
    pa.uint16(): torch.uint16,
    pa.uint32(): torch.uint32,
    pa.uint64(): torch.uint64,
    pa.float16(): torch.float16,
    pa.float32(): torch.float32,
    pa.float64(): torch.float64,
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_keep_their_type_and_their_memory(kind: pa.DataType) -> None:
    column = pa.array([0, 1, 2, 3, 4], pa.int32()).cast(kind).slice(1, 3)
    tensor = to_tensors(batch_of(x=column), ["x"])["x"]
    assert tensor.dtype == NUMBERS[kind]
    assert tensor.tolist() == [1, 2, 3]
    assert tensor.data_ptr() == column.buffers()[1].address + kind.bit_width // 8


def test_fixed_size_lists_become_matrices_without_a_copy() -> None:
    column = fixed([[1, 2, 3], [4, 5, 6], [7, 8, 9]], pa.int32(), 3).slice(1)
    tensor = to_tensors(batch_of(x=column), ["x"])["x"]
    assert tensor.tolist() == [[4, 5, 6], [7, 8, 9]]
    assert tensor.data_ptr() == column.values.buffers()[1].address + 3 * 4


def test_nested_fixed_size_lists_keep_their_shape_and_memory() -> None:
    rows: list[object] = [[[i * 10 + j * 2, i * 10 + j * 2 + 1] for j in range(3)] for i in range(4)]
    column = fixed(rows, pa.float32(), 2, 3).slice(1, 2)
    tensor = to_tensors(batch_of(x=column), ["x"])["x"]
    assert tensor.tolist() == rows[1:3]
    assert tensor.data_ptr() == column.values.values.buffers()[1].address + 6 * 4


def test_booleans_become_bool_tensors() -> None:
    batch = batch_of(flag=pa.array([True, False, True, True]).slice(1), pair=fixed([[True, False]] * 3, pa.bool_(), 2))
    tensors = to_tensors(batch, ["flag", "pair"])
    assert tensors["flag"].dtype == torch.bool
    assert tensors["flag"].tolist() == [False, True, True]
    assert tensors["pair"].tolist() == [[True, False]] * 3


def test_only_the_columns_asked_for_are_looked_at() -> None:
    batch = batch_of(x=[1, 2], text=["a", None])
    assert list(to_tensors(batch, ["x"])) == ["x"]


def test_no_rows_give_empty_tensors_of_the_right_shape() -> None:
    schema = pa.schema([("x", pa.float32()), ("pair", pa.list_(pa.int32(), 2)), ("flag", pa.bool_())])
    tensors = to_tensors(pa.RecordBatch.from_pylist([], schema=schema), ["x", "pair", "flag"])
    assert {name: (tuple(one.shape), one.dtype) for name, one in tensors.items()} == {
        "x": ((0,), torch.float32),
        "pair": ((0, 2), torch.int32),
        "flag": ((0,), torch.bool),
    }


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None]),
        pa.array([True, None]),
        pa.array([1.0, None], pa.float32()),
        pa.array([[1, 2], None], pa.list_(pa.int32(), 2)),
        pa.array([[1, None], [1, 2]], pa.list_(pa.int32(), 2)),
        pa.array([[[1, 2]], [None]], pa.list_(pa.list_(pa.int32(), 2), 1)),
        pa.array([[1, 2], None]),
        pa.array([[], [1, None]]),
    ],
)
def test_nulls_are_refused_by_column(column: pa.Array) -> None:
    with pytest.raises(DataError, match=r'column "x": 1 of \d values are null'):
        to_tensors(batch_of(x=column), ["x"])


def test_nulls_outside_the_batch_do_not_matter() -> None:
    assert to_tensors(batch_of(x=pa.array([None, 1, 2]).slice(1)), ["x"])["x"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b"]),
        pa.array([b"a", b"b"]),
        pa.array([["a"], ["b", "c"]]),
        pa.array([[[1]], [[1, 2]]]),
        pa.array([{"x": 1}, {"x": 2}]),
        pa.array([1, 2], pa.timestamp("s")),
        pa.array([1, 2], pa.decimal128(5)),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.nulls(0),
        pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int32(), [2]), fixed([[1, 2], [3, 4]], pa.int32(), 2)),
    ],
)
def test_what_is_no_number_is_refused_with_a_way_out(column: pa.Array) -> None:
    with pytest.raises(DataError, match=r'column "x": .* is no number .* Read raw_batch\.column\("x"\) in `transform`'):
        to_tensors(batch_of(x=column), ["x"])


def test_an_unknown_column_is_refused() -> None:
    with pytest.raises(DataError, match='column "y": expected one column of this name, the batch has: x'):
        to_tensors(batch_of(x=[1]), ["y"])


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.int32())])
def test_lists_of_varying_length_become_values_and_offsets(kind: pa.DataType) -> None:
    column = pa.array([[9], [1, 2], [], [3], [4, 5, 6]], kind).slice(1, 3)
    tensors = to_tensors(batch_of(x=column, y=[1, 2, 3]))
    assert list(tensors) == ["x", "x_offsets", "y"]
    assert tensors["x"].tolist() == [1, 2, 3]
    assert tensors["x_offsets"].tolist() == [0, 2, 2, 3]
    assert tensors["x_offsets"].dtype == torch.int64
    assert tensors["x"].data_ptr() == column.values.buffers()[1].address + 4


def test_lists_of_vectors_and_of_booleans_keep_their_shape() -> None:
    vectors = pa.array([[[1, 2], [3, 4]], [[5, 6]]], pa.list_(pa.list_(pa.float32(), 2)))
    tensors = to_tensors(batch_of(x=vectors, flags=pa.array([[True], [False, True]])))
    assert tensors["x"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert tensors["flags"].tolist() == [True, False, True]
    assert tensors["x_offsets"].tolist() == [0, 2, 3]
    assert tensors["flags_offsets"].tolist() == [0, 1, 3]


def test_no_rows_give_no_values_and_one_offset() -> None:
    schema = pa.schema([("x", pa.list_(pa.int8())), ("y", pa.large_list(pa.list_(pa.float32(), 3)))])
    tensors = to_tensors(pa.RecordBatch.from_pylist([], schema=schema))
    assert {name: (tuple(one.shape), one.dtype) for name, one in tensors.items()} == {
        "x": ((0,), torch.int8),
        "x_offsets": ((1,), torch.int64),
        "y": ((0, 3), torch.float32),
        "y_offsets": ((1,), torch.int64),
    }


def test_a_column_that_is_called_like_offsets_is_refused() -> None:
    batch = batch_of(x=[[1], [2, 3]], x_offsets=[1, 2])
    with pytest.raises(DataError, match='column "x_offsets": the offsets of the lists in "x" have the same name'):
        to_tensors(batch)
    assert list(to_tensors(batch, ["x_offsets"])) == ["x_offsets"]


def test_other_columns_can_stay_in_arrow() -> None:
    batch = batch_of(x=[1, 2], text=["a", "b"])
    with pytest.raises(DataError, match='column "text": string is no number'):
        to_tensors(batch)
    assert to_tensors(batch, ["x"])["x"].tolist() == [1, 2]


def test_no_warning_is_given() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_tensors(batch_of(x=[1, 2], pair=fixed([[1, 2]] * 2, pa.int32(), 2)), ["x", "pair"])


def test_from_file_to_tensor_nothing_is_copied_without_shuffle(tmp_path: Path) -> None:
    tokens = fixed([[i, i, i] for i in range(8)], pa.int32(), 3)
    pq.write_table(pa.table({"tokens": tokens}), tmp_path / "a.parquet")
    dataset = open_dataset([str(tmp_path / "a.parquet")], columns=["tokens"])
    order = Order(dataset.fingerprint, dataset.block_rows, seed=1, batch_size=4, shuffle=False)
    with Feed(dataset, order, None, Cursor()) as feed:
        first, second = feed.next(), feed.next()
    assert first is not None
    assert second is not None
    pointers = [to_tensors(one.record_batch, ["tokens"])["tokens"].data_ptr() for one in (first, second)]
    decoded = first.record_batch.column("tokens").values.buffers()[1].address
    assert pointers == [decoded, decoded + 4 * 3 * 4]
