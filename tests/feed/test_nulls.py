"""Nulls: refused where they stand, filled with what the spec says, or let through; and what a footer knows of them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trn.errors import DataError
from trn.feed import (
    Cursor,
    Feed,
    Fills,
    Order,
    make_cache,
    open_cache,
    open_dataset,
    open_manifest,
    read_sequential,
    write_manifest,
)
from trn.feed.statistics import known_nulls

FIXED = pa.list_(pa.int32(), 2)
NESTED = pa.list_(pa.list_(pa.float32(), 2), 1)
KINDS: Mapping[str, tuple[pa.DataType, Any]] = {
    "number": (pa.int16(), -1),
    "real": (pa.float32(), 0.5),
    "flag": (pa.bool_(), True),
    "text": (pa.string(), "none"),
    "pair": (FIXED, 7),
    "nested": (NESTED, -2.0),
    "many": (pa.list_(pa.int64()), 9),
    "large": (pa.large_list(pa.uint8()), 255),
    "lists": (pa.list_(pa.int8(), 1), 3),
    "fixed_of_many": (pa.list_(pa.list_(pa.int32()), 2), 4),
}
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in KINDS.items()])
FILLS: Fills = {name: value for name, (_, value) in KINDS.items()}


def save(path: Path, table: pa.Table, rows: int = 5, **options: Any) -> str:
    pq.write_table(table, path, row_group_size=rows, **options)
    return str(path)


def filled(value: Any, kind: pa.DataType, fill: Any) -> Any:
    """What the docstring of `trn.feed.nulls` says, element by element."""
    if pa.types.is_fixed_size_list(kind):
        elements = [None] * kind.list_size if value is None else value
        return [filled(one, kind.value_type, fill) for one in elements]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [filled(one, kind.value_type, fill) for one in value or ()]
    return fill if value is None else value


def values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_fixed_size_list(kind):
        plain = st.lists(values_of(kind.value_type), min_size=kind.list_size, max_size=kind.list_size)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        plain = st.lists(values_of(kind.value_type), max_size=3)
    elif pa.types.is_boolean(kind):
        plain = st.booleans()
    elif pa.types.is_string(kind):
        plain = st.text("ab", max_size=2)
    else:
        plain = st.integers(0, 100)
    return st.none() | plain


ROWS = st.lists(
    st.fixed_dictionaries({name: values_of(kind) for name, (kind, _) in KINDS.items()}), min_size=1, max_size=23
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, shuffle=st.booleans(), readahead=st.sampled_from([0, 2]), is_cached=st.booleans())
def test_filled_batches_are_what_a_slow_reader_makes_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], shuffle: bool, readahead: int, is_cached: bool
) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    expected = [{name: filled(row[name], kind, fill) for name, (kind, fill) in KINDS.items()} for row in rows]
    dataset = open_dataset([save(tmp_path_factory.mktemp("d") / "a.parquet", table)], columns=None, fills=FILLS)
    order = Order(
        dataset.fingerprint,
        dataset.block_rows,
        seed=3,
        batch_size=4,
        window=2,
        shuffle=shuffle,
        remainder="keep",
        passes=1,
    )
    seen, cache = 0, None
    if is_cached:
        folder = tmp_path_factory.mktemp("cache")
        make_cache(dataset, list(dataset.columns), folder)
        cache = open_cache(dataset, list(dataset.columns), folder)
    with Feed(dataset, order, None, Cursor(), readahead=readahead, cache=cache, fills=FILLS) as feed:
        while (batch := feed.next()) is not None:
            batch.record_batch.validate(full=True)
            assert batch.record_batch.to_pylist() == [expected[row] for row in batch.row_ids.tolist()]
            assert all(column.null_count == 0 for column in batch.record_batch.columns)
            seen += len(batch.row_ids)
    assert seen == len(rows)


def test_a_null_ends_the_feed_at_its_batch_naming_file_column_and_row(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.parquet", pa.table({"x": [1] * 7, "y": [1.0] * 7}))
    broken = save(
        tmp_path / "b.parquet", pa.table({"x": [1, 2, 3, None, 5, 6], "y": [1.0] * 6}), write_statistics=False
    )
    dataset = open_dataset([whole, broken], columns=None, fills={})
    order = Order(dataset.fingerprint, dataset.block_rows, seed=1, batch_size=2, shuffle=False)
    for readahead in (0, 3):
        with Feed(dataset, order, None, Cursor(), readahead=readahead, fills={}) as feed:
            good = [feed.next() for _ in range(5)]
            assert all(batch is not None for batch in good)
            for _ in range(2):
                with pytest.raises(DataError, match=r'b\.parquet: column "x" is null.* in row 3 \(from 0\)') as caught:
                    feed.next()
        assert "dataset.nulls: {x: VALUE}" in str(caught.value)
    with pytest.raises(DataError, match="in row 3"):
        list(read_sequential(dataset, None, 4, fills={}))


@pytest.mark.parametrize("name", KINDS)
def test_a_null_deep_in_a_list_is_found(tmp_path: Path, name: str) -> None:
    kind = KINDS[name][0]
    rows = {"pair": [1, None], "nested": [[None, 1.0]], "many": [1, None], "large": [None], "lists": [None]}
    value = rows.get(name, [[1], [None]] if name == "fixed_of_many" else None)
    good = filled(None, kind, KINDS[name][1])
    path = save(tmp_path / "a.parquet", pa.table({name: pa.array([good, good, value], kind)}), write_statistics=False)
    dataset = open_dataset([path], columns=None, fills={})
    with pytest.raises(DataError, match=rf'column "{name}" is null, or holds a null, in row 2'):
        list(read_sequential(dataset, None, 2, fills={}))


def test_nulls_are_let_through_where_the_value_is_null(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", pa.table({"text": ["a", None], "x": [None, 1]}))
    fills: Fills = {"text": None, "x": 0}
    dataset = open_dataset([path], columns=None, fills=fills)
    (batch,) = read_sequential(dataset, None, 2, fills=fills)
    assert batch.to_pydict() == {"text": ["a", None], "x": [0, 1]}


def test_without_a_policy_data_are_read_as_they_lie(tmp_path: Path) -> None:
    path = save(tmp_path / "a.parquet", pa.table({"x": [None, 1]}))
    (batch,) = read_sequential(open_dataset([path], columns=None), None, 2)
    assert batch.to_pydict() == {"x": [None, 1]}


# what is refused before anything is read


@pytest.mark.parametrize(
    ("fills", "message"),
    [
        ({"y": 1}, r"dataset\.nulls\.y: there is no such column .*Read: \"number\", \"real\""),
        ({"number": 0.5}, r'dataset\.nulls\.number: 0\.5 is no value of column "number", which is int16'),
        ({"number": 40_000}, "40000 is no value"),
        ({"number": True}, "True is no value"),
        ({"number": "1"}, "'1' is no value"),
        ({"real": 1e300}, "is no value"),
        ({"real": 2**24 + 1}, "16777217 is no value"),
        ({"real": 10**400}, "is no value"),
        ({"double": 2**53 + 1}, "9007199254740993 is no value"),
        ({"unsigned": 2**64}, "is no value"),
        ({"unsigned": -1}, "-1 is no value"),
        ({"number": 2**70}, "is no value"),
        ({"text": "\ud800"}, "is no value"),
        ({"flag": 1}, "1 is no value"),
        ({"text": 1}, "1 is no value"),
        ({"pair": "x"}, "'x' is no value"),
        ({"large": -1}, "-1 is no value"),
        ({"nested": True}, "True is no value"),
    ],
)
def test_a_fill_that_its_column_cannot_hold_is_refused(tmp_path: Path, fills: Fills, message: str) -> None:
    schema = SCHEMA.append(pa.field("double", pa.float64())).append(pa.field("unsigned", pa.uint64()))
    path = save(tmp_path / "a.parquet", pa.Table.from_pylist([dict.fromkeys(schema.names)], schema=schema))
    with pytest.raises(DataError, match=message):
        open_dataset([path], columns=None, fills={**dict.fromkeys(schema.names), **fills})


@pytest.mark.parametrize(
    ("kind", "fill"),
    [
        (pa.float16(), 2048),
        (pa.float32(), 2**24),
        (pa.float32(), 2**24 + 1.0),
        (pa.float32(), 2**70),
        (pa.float64(), 2**70),
        (pa.float64(), -(2**53)),
        (pa.uint64(), 2**63),
        (pa.uint64(), 2**64 - 1),
        (pa.int64(), -(2**63)),
        (pa.large_string(), "none"),
    ],
)
def test_a_fill_that_is_accepted_is_filled_in(tmp_path: Path, kind: pa.DataType, fill: Any) -> None:
    for number, type_of in enumerate((kind, pa.list_(kind, 1), pa.list_(kind))):
        value = None if type_of == kind else [None]
        path = save(tmp_path / f"{number}.parquet", pa.table({"x": pa.array([value, value], type_of)}))
        fills: Fills = {"x": fill}
        (batch,) = read_sequential(open_dataset([path], columns=None, fills=fills), None, 2, fills=fills)
        held = 2.0**24 if fill == 2**24 + 1.0 else fill  # a float is rounded
        assert batch.column("x").to_pylist() == [held if type_of == kind else [held]] * 2


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.decimal128(5), pa.binary(), pa.struct([("x", pa.int8())])])
def test_types_that_cannot_be_filled_can_be_let_through(tmp_path: Path, kind: pa.DataType) -> None:
    path = save(tmp_path / "a.parquet", pa.table({"x": pa.array([None, None], kind)}))
    for value in (0, "", True, 0.5):
        with pytest.raises(DataError, match="is no value of column"):
            open_dataset([path], columns=None, fills={"x": value})
    fills: Fills = {"x": None}
    (batch,) = read_sequential(open_dataset([path], columns=None, fills=fills), None, 2, fills=fills)
    assert batch.column("x").null_count == 2


def test_nulls_that_the_footer_knows_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.parquet", pa.table({"x": [1, 2], "y": [1, 2]}))
    broken = save(tmp_path / "b.parquet", pa.table({"x": pa.array([None] * 7 + [1] * 7), "y": [None] + [1] * 13}))
    write_manifest([whole, broken], tmp_path / "dataset.json")
    message = r'b\.parquet: column "x" has 7 null values'
    with pytest.raises(DataError, match=message):
        open_dataset([whole, broken], columns=["x"], fills={})
    with pytest.raises(DataError, match=message):
        open_manifest(tmp_path / "dataset.json", columns=["x"], fills={})
    assert open_dataset([whole, broken], columns=["x"], fills={"x": -1}).rows == 16
    assert open_dataset([whole, broken], columns=["x"]).rows == 16
    with pytest.raises(DataError, match='column "y" has 1 null values'):
        open_dataset([whole, broken], columns=["x", "y"], fills={"x": 0})


# statistics of a footer


def footer(table: pa.Table, **options: Any) -> tuple[bytes, pa.Schema]:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    data = sink.getvalue()
    return data[-8 - int.from_bytes(data[-8:-4], "little") :], pq.read_schema(io.BytesIO(data))


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_a_footer_knows_exactly_the_nulls_of_what_it_can_tell(rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    tail, schema = footer(table, row_group_size=4)
    expected = {name: table[name].null_count for name in ("number", "real", "flag", "text") if table[name].null_count}
    found = known_nulls(tail, schema)
    assert {name: found[name] for name in found if name in ("number", "real", "flag", "text")} == expected
    for name in ("pair", "nested", "lists"):
        assert (name in found) == _holds_null([row[name] for row in rows])
    assert not {"many", "large"} & set(found)


def _holds_null(value: Any) -> bool:
    return value is None or (isinstance(value, list) and any(map(_holds_null, value)))


def test_columns_that_hold_others_do_not_shift_the_count(tmp_path: Path) -> None:
    columns = {
        "struct": pa.array([{"a": 1, "b": [None]}, None]),
        "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())),
        "word": pa.array(["a", None]).dictionary_encode(),
        "a.b": pa.array([None, 1]),
        "sure": pa.array([1, 2]),
        "last": pa.array([None, None], pa.int32()),
    }
    assert known_nulls(*footer(pa.table(columns))) == {"word": 1, "a.b": 1, "last": 2}
    assert known_nulls(*footer(pa.table(columns), write_statistics=False)) == {}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_footer_is_unknown_and_no_error(data: st.DataObject) -> None:
    tail, schema = footer(pa.table({"x": [None, 1], "y": [[1], None], "z": ["a", None]}), row_group_size=1)
    damaged = bytearray(tail)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(tail) - 1))] = data.draw(st.integers(0, 255))
    found = known_nulls(bytes(damaged[: data.draw(st.integers(0, len(tail)))]), schema)
    assert all(count > 0 for count in found.values())
