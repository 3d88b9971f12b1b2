"""`trn data inspect|validate|cache` over files and specs: all that is wrong is said, and what is shown is true."""

from __future__ import annotations

import io
import json
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trn.doors.data import program_of
from trn.feed import Cursor, Order, make_cache, open_dataset, open_manifest, write_manifest
from trn.feed.__main__ import main
from trn.feed.checks import validate_data
from trn.feed.overlap import find_overlap, row_hashes
from trn.feed.subject import Subject, named
from trn.plan.__main__ import main as main_of_spec

WriteParquet = Callable[..., str]


def validate(*paths: str, **changes: Any) -> list[str]:
    return [str(one) for one in validate_data(Subject(training=named(paths), **changes))]


def only(lines: list[str], *parts: str) -> None:
    assert len(lines) == 1, lines
    for part in parts:
        assert part in lines[0]


def write_table(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_good_data_have_no_findings(write: WriteParquet) -> None:
    assert validate(write("a.parquet", [3, 0, 5]), write("b.parquet", [2])) == []


def test_all_that_is_wrong_is_said_and_not_the_first(write: WriteParquet, tmp_path: Path) -> None:
    good = write("a.parquet", [3, 4])
    cut = write("cut.parquet", [5])
    os.truncate(cut, 100)
    torn = write("torn.parquet", [50, 50], compression="none")
    damage(torn, 0)
    other = write_table(tmp_path / "other.parquet", id=["x"], pair=[[1, 2]])
    gone = str(tmp_path / "gone.parquet")
    lines = validate(good, cut, torn, other, gone)
    assert len(lines) == 6, lines
    for path, text in (
        (gone, "does not exist"),
        (cut, "not a parquet file, or cut short"),
        (torn, "row group 0"),
        (other, '"id" is string here'),
        (other, '"pair" is list<'),
        (other, '"name"'),
    ):
        assert any(path in line and text in line for line in lines), (path, text, lines)
    assert all("\n" not in line for line in lines)


def damage(path: str, group: int) -> None:
    """Write over the first page header of a row group."""
    place = pq.read_metadata(path).row_group(group).column(0)
    with open(path, "r+b") as stream:
        stream.seek(place.dictionary_page_offset or place.data_page_offset)
        stream.write(b"\xff" * 16)


def test_nulls_are_errors_where_no_fill_stands_for_them(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", x=[1, None, 3], y=pa.array([[1], [None], None], pa.list_(pa.int8(), 1)))
    lines = validate(path)
    assert len(lines) == 2, lines
    assert "1 values are null" in lines[0]
    assert 'column "x"' in lines[0]
    only(validate(path, fills={"x": 0}), 'column "y"')
    only(validate(path, fills={"x": "zero", "y": None}), "'zero' is no value of column")


def test_numbers_that_are_none_are_warnings(tmp_path: Path) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, np.nan, -np.inf, 2.0]), 2)
    path = write_table(tmp_path / "a.parquet", x=[1.0, np.inf], v=vectors)
    lines = validate(path)
    assert [line.split(":")[0] for line in lines] == ["warning", "warning"]
    assert "2 values are NaN or infinite" in lines[1]


def test_a_row_group_that_differs_from_the_manifest_is_found(write: WriteParquet, tmp_path: Path) -> None:
    path = write("a.parquet", [30, 40], compression="none")
    manifest = tmp_path / "dataset.json"
    write_manifest([path], manifest)
    assert validate(str(manifest)) == []
    column = pq.read_metadata(path).row_group(1).column(0)
    with open(path, "r+b") as stream:  # a value in the last page: nothing but the digest can tell
        stream.seek(column.data_page_offset + column.total_compressed_size - 8)
        stream.write(b"\x07")
    only(validate(str(manifest)), "row group 1", "the manifest says")
    os.truncate(path, 500)
    assert any("500 bytes" in line for line in validate(str(manifest)))


def test_no_rows_and_batches_that_never_fill_are_errors(write: WriteParquet) -> None:
    empty, small = write("empty.parquet", [0]), write("small.parquet", [3])
    lines = validate(empty)
    assert [line.split(":")[0] for line in lines] == ["warning", "error"]
    only(validate(small, empty), "warning", "no rows in this file")
    planned = {"is_planned": True, "batch_size": 8}
    only(validate(small, **planned, remainder="drop"), "there is no batch")
    only(validate(small, **planned, remainder="carry"), "there is no whole batch")
    only(validate(small, **planned, remainder="keep"), "warning: dataset.batch_size")


def test_a_file_that_is_named_twice_is_an_error(write: WriteParquet, tmp_path: Path) -> None:
    path = write("a.parquet", [3])
    only(validate(path, str(tmp_path)), "named twice")


def test_rows_of_both_training_and_validation_are_found(write: WriteParquet) -> None:
    training = write("train.parquet", [10, 10])
    apart = write("apart.parquet", [5], first=100)
    shared = write("shared.parquet", [4], first=18)
    assert validate(training, validation=named([apart])) == []
    only(
        validate(training, validation=named([apart, shared])),
        "2 of 9 rows of the validation data are in the training data too",
        "row 0 of " + shared,
        "row 18 of " + training,
    )


def test_overlap_is_that_of_sets_however_small_the_partitions() -> None:
    draw = np.random.default_rng(3)
    ours, theirs = (draw.integers(0, 5000, 3000).astype(np.uint64) << np.uint64(51) for _ in range(2))
    expected = np.isin(theirs, ours)
    for partition_rows in (10, 1000, 10**6):
        found = find_overlap(
            np.array_split(ours, 7), np.array_split(theirs, 3), rows=6000, partition_rows=partition_rows
        )
        assert found.rows == expected.sum()
        assert found.first_row == int(np.flatnonzero(expected)[0])
        assert ours[found.same_as] == theirs[found.first_row]


def test_hashes_of_rows_are_those_of_their_content() -> None:
    values = np.arange(4000, dtype=np.int32) % 1000
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values), 4)
    batch = pa.record_batch({"a": lists, "b": [str(one % 250) for one in range(1000)]})
    hashes = row_hashes(batch)
    assert len(set(hashes.tolist())) == 250
    assert (hashes[:250] == hashes[250:500]).all()
    assert (row_hashes(batch.slice(7, 20)) == hashes[7:27]).all()
    swapped = pa.record_batch({"a": pa.array([1, 2]), "b": pa.array([2, 1])})
    assert len(set(row_hashes(swapped).tolist())) == 2
    nothing = pa.record_batch({"a": pa.array([0, None], pa.int64())})
    assert len(set(row_hashes(nothing).tolist())) == 2


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.int64(), [1, 0, None, 3, 4]),
        (pa.float16(), [1.5, 0.0, None, 3.0, 4.0]),
        (pa.timestamp("us"), [1, 0, None, 3, 4]),
        (pa.string(), ["1", "", None, "3", "4"]),
        (pa.bool_(), [True, None]),
        (pa.list_(pa.int32(), 2), [[1, 2], [0, 0], None, [None, 0], [0, None], [None, None], [3, 4], [5, 6]]),
        (pa.list_(pa.list_(pa.int8(), 1), 2), [[[1], [2]], [[0], [0]], None, [None, [0]], [[None], [0]], [[3], [4]]]),
    ],
)
def test_a_row_hashes_alike_whatever_its_batch_holds(kind: pa.DataType, values: list[Any]) -> None:
    batch = pa.record_batch({"first": [7] * len(values), "a": pa.array(values, kind)})
    hashes = row_hashes(batch)
    assert len(set(hashes.tolist())) == len(values)
    for row, value in enumerate(values):
        alone = pa.record_batch({"first": [7], "a": pa.array([value], kind)})
        assert row_hashes(alone)[0] == row_hashes(batch.slice(row, 1))[0] == hashes[row]


def test_many_rows_with_nulls_hash_as_they_do_alone() -> None:
    values = [None if row % 7 == 3 else row for row in range(200_000)]
    batch = pa.record_batch({"a": pa.array(values, pa.int64())})
    hashes = row_hashes(batch)
    assert len(hashes) == 200_000
    for row in (0, 3, 65_535, 65_536, 65_537, 131_072, 199_999):
        assert row_hashes(batch.slice(row, 1))[0] == hashes[row]
    assert len(row_hashes(batch.slice(0, 0))) == 0


def test_what_lies_under_a_null_is_no_content() -> None:
    some, others = (
        pa.Array.from_buffers(pa.int32(), 2, [pa.py_buffer(b"\x02"), pa.py_buffer(np.array(values, np.int32))])
        for values in ([1, 5], [9, 5])
    )
    assert some.to_pylist() == others.to_pylist() == [None, 5]
    assert (row_hashes(pa.record_batch({"a": some})) == row_hashes(pa.record_batch({"a": others}))).all()
    lists = [pa.FixedSizeListArray.from_arrays(one, 2, mask=pa.array([True])) for one in (pa.array([1, 2]), some)]
    hashes = [row_hashes(pa.record_batch({"a": one.cast(pa.list_(pa.int64(), 2))})) for one in lists]
    assert hashes[0] == hashes[1]


def test_overlap_is_found_where_a_batch_of_one_side_holds_a_null(tmp_path: Path) -> None:
    training = write_table(tmp_path / "train.parquet", x=[1, 2, 3])
    validation = write_table(tmp_path / "val.parquet", x=[None, 2, 3])
    only(validate(training, fills={"x": None}, validation=named([validation])), "2 of 3 rows of the validation data")


def test_the_search_opens_no_more_files_than_a_process_may() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # above what other tests have left open in this process
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 480, before[1]))
    try:
        hashes = np.arange(5000, dtype=np.uint64) << np.uint64(50)
        assert find_overlap([hashes], [hashes], rows=10_000, partition_rows=1).rows == 5000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_temporary_folder_that_takes_nothing_is_one_line_and_74(
    write: WriteParquet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.parquet", [3])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert main(["validate", path, "--validation", path]) == 74
    shown = capsys.readouterr().err
    assert "gone/trn-overlap-" in shown
    assert "cannot keep the hashes of rows: No such file or directory" in shown
    assert shown.count("\n") == 1


def test_validation_columns_of_another_type_are_found(write: WriteParquet, tmp_path: Path) -> None:
    training = write("train.parquet", [3])
    other = write_table(tmp_path / "val.parquet", id=pa.array([100], pa.int32()))
    lines = validate(training, columns=("id",), validation=named([other]))
    only(lines, other, f'column "id" is int32 here, and int64 in {training}')


def test_inspect_shows_the_order_that_a_run_has(
    write: WriteParquet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("a.parquet", [30, 40, 50])
    assert main(["inspect", path, "--batch-size", "16", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    dataset = open_dataset([path], columns=None)
    batch = Order(dataset.fingerprint, dataset.block_rows, seed=0, batch_size=16).batch(Cursor())
    assert batch is not None
    assert report["order"]["first_batches"][0] == batch.rows[:8].tolist()
    assert (report["rows"], report["row_groups"], report["fingerprint"]) == (120, 3, dataset.fingerprint)
    assert report["reading"]["batches"] == 7
    assert report["reading"]["source"] == "parquet"
    assert main(["inspect", path]) == 0
    shown = capsys.readouterr().out
    assert "120 rows in 3 row groups of 1 files" in shown
    assert "  id: int64" in shown
    assert "rows/s" in shown


def test_validate_prints_findings_and_ends_with_65(
    write: WriteParquet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("a.parquet", [3])
    assert main(["validate", path]) == 0
    assert capsys.readouterr() == ("", "nothing is wrong\n")
    gone = str(tmp_path / "gone.parquet")
    assert main(["validate", path, gone]) == 65
    shown = capsys.readouterr()
    assert shown.out.count("\n") == 1
    assert shown.out.startswith(f"error: {gone}: the file does not exist")
    assert shown.err == "1 errors, 0 warnings\n"
    assert main(["validate", path, "--columns", "id", "--validation", path, "--json"]) == 65
    value = json.loads(capsys.readouterr().out)
    assert (value["errors"], value["warnings"]) == (1, 0)
    assert value["findings"][0]["level"] == "error"


def test_cache_is_made_once_and_says_where(
    write: WriteParquet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write("a.parquet", [3, 4]), tmp_path / "cache"
    assert main(["cache", path]) == 2
    assert "Give --out DIR" in capsys.readouterr().err
    assert main(["cache", path, "--columns", "id,pair", "--out", str(out), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (Path(value["path"]).parent, value["rows"]) == (out, 7)
    assert main(["cache", path, "--columns", "id,pair", "--out", str(out)]) == 0
    assert "was there already, 7 rows" in capsys.readouterr().out


@pytest.fixture
def spec(write: WriteParquet, tmp_path: Path) -> Path:
    write("train.parquet", [30, 40])
    write("val.parquet", [5], first=1000)
    path = tmp_path / "spec.yaml"
    path.write_text(
        "config_version: 1\ntrainer: nobody:Trainer\nseed: 3\ndevice: cpu\nprecision: none\nddp: false\nmax_steps: 2\n"
        "dataset: {parquet_paths: [train.parquet], columns: [id, pair], batch_size: 16, window: all, cache: cache}\n"
        "validation: {parquet_paths: [val.parquet]}\n"
    )
    return path


def test_a_spec_names_data_order_and_cache(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_of_spec(["inspect", str(spec), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [column["name"] for column in report["columns"]] == ["id", "pair"]
    assert (report["order"]["seed"], report["order"]["batch_size"], report["order"]["window"]) == (3, 16, 2)
    assert main_of_spec(["cache", str(spec)]) == 0
    assert str(spec.parent / "cache") in capsys.readouterr().out
    assert main_of_spec(["inspect", str(spec), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["reading"]["source"] == "cache"
    assert again["order"]["first_batches"] == report["order"]["first_batches"]


def test_validation_data_and_cache_of_a_spec_are_looked_at(
    spec: Path, write: WriteParquet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_of_spec(["cache", str(spec)]) == 0
    assert main_of_spec(["validate", str(spec)]) == 0
    capsys.readouterr()
    (made,) = (spec.parent / "cache").glob("*.arrow")
    data = bytearray(made.read_bytes())
    data[len(data) // 2] ^= 1
    made.write_bytes(data)
    write("val.parquet", [5])
    assert main_of_spec(["validate", str(spec)]) == 65
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "not a whole cache: it has sha256" in lines[0]
    assert "5 of 5 rows of the validation data" in lines[1]


def test_the_cache_of_a_manifest_is_looked_at(write: WriteParquet, tmp_path: Path) -> None:
    write_manifest([write("a.parquet", [5])], tmp_path / "dataset.json")
    made = make_cache(open_manifest(tmp_path / "dataset.json", ["id"]), ["id"], tmp_path / "cache")
    looked_at = Subject(named([str(tmp_path / "dataset.json")]), columns=("id",), cache=tmp_path / "cache")
    assert validate_data(looked_at) == []
    data = bytearray(made.path.read_bytes())
    data[len(data) // 2] ^= 1
    made.path.write_bytes(data)
    only([str(one) for one in validate_data(looked_at)], "not a whole cache: it has sha256")


def test_fills_of_columns_that_are_not_asked_for_are_left_out(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec.write_text(spec.read_text().replace("batch_size: 16", "nulls: {id: 0}, batch_size: 16"))
    for verb in ("inspect", "validate"):
        for columns in ("pair", "id"):
            assert main_of_spec([verb, str(spec), "--columns", columns]) == 0, capsys.readouterr().err


def test_output_that_cannot_be_written_is_one_line_and_74(
    spec: Path, write: WriteParquet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.parquet", [3])
    for run, subject in ((main, path), (main_of_spec, str(spec))):
        full = io.TextIOWrapper(open("/dev/full", "wb", buffering=0), write_through=True)  # noqa: SIM115 - closed below
        monkeypatch.setattr("sys.stdout", full)
        assert run(["inspect", subject]) == 74
        shown = capsys.readouterr().err
        assert "No space left on device" in shown
        assert shown.count("\n") == 1
        full.detach().close()


@pytest.mark.parametrize("given", ["0", "-1", "many", "1.5"])
def test_a_number_that_is_none_is_told_with_what_was_expected(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "a.parquet", f"--batch-size={given}"]) == 2
    assert f"--batch-size: expected a whole number above 0, found '{given}'" in capsys.readouterr().err


def test_a_spec_that_is_wrong_is_told_as_elsewhere(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec.write_text(spec.read_text().replace("window: all", "window: every"))
    assert main_of_spec(["inspect", str(spec)]) != 0
    shown = capsys.readouterr().err
    assert "dataset.window" in shown
    assert "expected a number of row groups from 1, or all" in shown


def test_a_spec_is_sent_to_the_program_that_finds_trainers(tmp_path: Path) -> None:
    spec, manifest = tmp_path / "spec.json", tmp_path / "dataset.json"
    spec.write_text('{"config_version": 1}')
    manifest.write_text('{"fingerprint": "", "files": [], "rows": 0}')
    assert program_of(["inspect", "a.yaml"]) == "trn.plan"
    assert program_of(["validate", "--json", str(spec)]) == "trn.plan"
    assert program_of(["validate", str(manifest)]) == "trn.feed"
    assert program_of(["inspect", "a.parquet"]) == "trn.feed"
    assert program_of(["index", "a.yaml"]) == "trn.feed"
    assert program_of([]) == "trn.feed"
