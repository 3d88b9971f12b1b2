"""Rows are compared by their values, whatever can be shown of them: dates before year 1, nanoseconds, bytes no text."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trn.feed.checks import validate_data
from trn.feed.overlap import row_hashes
from trn.feed.subject import Subject, named

Leaf = tuple[pa.DataType, pa.DataType, tuple[Any, ...]]
"""A type, the one that its values are given in here, and five of them."""

NUMBERS = (-(10**18), 1, 10**18, 2, 0)  # of units from ns to ms: years before 1 and past 9999 among them
SECONDS = (-62167219201, 1, 10**14, 2, 0)  # no more than a file can hold, which counts milliseconds
DAYS = (-719529, 1, 2**31 - 1, 2, 0)  # the first is in year 0
BYTES = (b"\xff\xfe", b"a", b"\xff\xff", "é".encode(), b"")
UNITS = ("s", "ms", "us", "ns")
LEAVES: list[Leaf] = [
    (pa.timestamp("s"), pa.int64(), SECONDS),
    *((pa.timestamp(unit), pa.int64(), NUMBERS) for unit in UNITS[1:]),
    (pa.timestamp("ns", "Europe/Paris"), pa.int64(), NUMBERS),
    (pa.timestamp("us", "Nowhere/City"), pa.int64(), NUMBERS),
    *((pa.duration(unit), pa.int64(), NUMBERS) for unit in UNITS),
    (pa.time64("ns"), pa.int64(), NUMBERS),
    (pa.time64("us"), pa.int64(), NUMBERS),
    (pa.time32("ms"), pa.int32(), DAYS),
    (pa.date32(), pa.int32(), DAYS),
    (pa.string(), pa.binary(), BYTES),
    (pa.large_string(), pa.large_binary(), BYTES),
]
MORE_LEAVES: list[Leaf] = [
    (pa.date64(), pa.int64(), NUMBERS),  # a file holds date32 in its place
    (pa.float64(), pa.float64(), (0.0, -0.0, float("nan"))),
]
WRAPS: dict[str, tuple[Callable[[pa.DataType], pa.DataType], Callable[[Any], Any]]] = {
    "bare": (lambda kind: kind, lambda value: value),
    "list": (pa.list_, lambda value: [None, value]),
    "large list": (pa.large_list, lambda value: [value, None]),
    "fixed-size list": (lambda kind: pa.list_(kind, 2), lambda value: [value, value]),
    "list of lists": (lambda kind: pa.list_(pa.list_(kind)), lambda value: [[], None, [value]]),
    "struct": (lambda kind: pa.struct([("n", pa.int8()), ("x", kind)]), lambda value: {"n": 1, "x": value}),
    "list of structs": (lambda kind: pa.list_(pa.struct([("x", kind)])), lambda value: [None, {"x": value}]),
    "map to": (lambda kind: pa.map_(pa.int8(), kind), lambda value: [(1, value), (2, None)]),
    "map of": (lambda kind: pa.map_(kind, pa.int8()), lambda value: [(value, 1)]),
}


def written(values: list[Any], kind: pa.DataType, plain: pa.DataType) -> pa.Array:
    """Values given as integers and bytes, in a type whose values Python cannot always show."""
    return pa.array(values, plain).cast(kind, safe=False)


def overlap(folder: Path, training: pa.Array, validation: pa.Array) -> str:
    """What is found in two files of one column each, in row groups of two rows; empty where it is nothing."""
    paths = [str(folder / name) for name in ("train.parquet", "val.parquet")]
    for path, column in zip(paths, (training, validation), strict=True):
        pq.write_table(pa.table({"x": column}), path, row_group_size=2)
    subject = Subject(training=named(paths[:1]), validation=named(paths[1:]), fills={"x": None})
    lines = [str(one) for one in validate_data(subject)]
    assert len(lines) <= 1, lines
    return "".join(lines)


def check_found(folder: Path, rows: pa.Array) -> None:
    """Of five rows that differ, the second file has first none, and then one of its own and two of the other."""
    assert overlap(folder, rows.slice(0, 3), rows.slice(3)) == ""
    shown = overlap(folder, rows.slice(0, 3), pa.concat_arrays([rows.slice(4), rows.slice(1, 2)]))
    assert "2 of 3 rows of the validation data" in shown
    assert "row 1 of " + str(folder / "val.parquet") in shown
    assert "row 1 of " + str(folder / "train.parquet") in shown


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: str(leaf[0]))
def test_overlap_is_found_in_values_that_python_cannot_show(leaf: Leaf, wrap: str, tmp_path: Path) -> None:
    kind, plain, values = leaf
    type_of, value_of = WRAPS[wrap]
    check_found(tmp_path, written([value_of(value) for value in values], type_of(kind), type_of(plain)))


@pytest.mark.parametrize("depth", [0, 1])
def test_overlap_is_found_in_dictionaries_of_text_that_is_none(depth: int, tmp_path: Path) -> None:
    rows = written(list(BYTES), pa.string(), pa.binary()).dictionary_encode()
    check_found(tmp_path, pa.ListArray.from_arrays(pa.array(range(6), pa.int32()), rows) if depth else rows)


def test_overlap_is_found_in_fields_of_one_name(tmp_path: Path) -> None:
    times = written(list(NUMBERS), pa.timestamp("ns"), pa.int64())
    check_found(tmp_path, pa.StructArray.from_arrays([times, pa.array([1, 1, 1, 1, 1])], ["x", "x"]))
    check_found(tmp_path, pa.StructArray.from_arrays([pa.nulls(5, pa.int8()), times], ["x", "x"]))


def test_what_lies_under_a_null_of_any_depth_is_no_content() -> None:
    times = [written(values, pa.timestamp("ns"), pa.int64()) for values in ([1, 2, 3], [1, 9, 3])]
    mask = pa.array([False, True, False])
    structs = [pa.StructArray.from_arrays([one], ["x"], mask=mask) for one in times]
    assert hashes(structs[0]) == hashes(structs[1])
    fixed = [pa.FixedSizeListArray.from_arrays(one, 1, mask=mask) for one in structs]
    assert hashes(fixed[0]) == hashes(fixed[1])
    assert len(set(hashes(fixed[0]))) == 3


def test_rows_of_nested_types_hash_alike_where_they_are_equal_and_nowhere_else() -> None:
    draw = random.Random(7)
    for _ in range(300):
        kind, plain, value = nested(draw, depth=3)
        pool = [value() for _ in range(6)]
        values = [draw.choice(pool) for _ in range(20)]
        rows = written(values, kind, plain)
        shown = [repr(one) for one in pa.array(values, plain).to_pylist()]
        found = hashes(rows)
        assert len(set(zip(found, shown, strict=True))) == len(set(found)) == len(set(shown)), kind
        first, count = draw.randrange(20), draw.randrange(20)
        assert hashes(rows.slice(first, count)) == found[first : first + count], kind
        assert hashes(rows.slice(1).slice(first, count)) == found[first + 1 : first + 1 + count], kind
        order = draw.sample(range(20), 20)
        assert hashes(pa.concat_arrays([rows.slice(one, 1) for one in order])) == [found[one] for one in order], kind
        assert hashes(pa.StructArray.from_arrays([rows], ["x"]).slice(first)) == hashes(
            pa.StructArray.from_arrays([rows.slice(first)], ["x"])
        ), kind


def hashes(column: pa.Array) -> list[int]:
    shown: list[int] = row_hashes(pa.record_batch({"x": column})).tolist()
    return shown


def nested(draw: random.Random, depth: int) -> tuple[pa.DataType, pa.DataType, Callable[[], Any]]:
    """A random type, the one its values are given in, and what draws one of them."""
    if not depth or draw.random() < 0.2:
        kind, plain, values = draw.choice([*LEAVES, *MORE_LEAVES])
        return kind, plain, lambda: draw.choice([*values, None])
    kind, plain, value = nested(draw, depth - 1)
    match draw.randrange(5):
        case 0:
            other, other_plain, other_value = nested(draw, depth - 1)
            kinds = [pa.struct([("x", one), ("y", two)]) for one, two in ((kind, other), (plain, other_plain))]
            return kinds[0], kinds[1], lambda: draw.choice([{"x": value(), "y": other_value()}, None])
        case 1:
            kinds = [pa.map_(pa.int8(), one) for one in (kind, plain)]
            return kinds[0], kinds[1], lambda: draw.choice([[(1, value()), (2, value())], [], None])
        case 2:
            kinds = [pa.list_(one, 2) for one in (kind, plain)]
            return kinds[0], kinds[1], lambda: draw.choice([[value(), value()], None])
        case _:
            list_of = draw.choice([pa.list_, pa.large_list])
            return (
                list_of(kind),
                list_of(plain),
                lambda: draw.choice([[value() for _ in range(3)], [value()], [], None]),
            )
