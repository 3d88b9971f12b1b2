"""Opening data: what is found, what is refused and how it is named, and the value that goes into the plan."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trn.errors import DataError
from trn.feed import Dataset, check_unchanged, open_dataset, write_manifest
from trn.records import JsonError, canonical_json, from_json

WriteParquet = Callable[..., str]


def save(path: Path, **columns: object) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_files_row_groups_types_and_rows_are_known(write: WriteParquet) -> None:
    dataset = open_dataset([write("b.parquet", [3, 0, 5]), write("a.parquet", [2], first=8)], columns=["pair", "id"])
    assert [file.row_groups for file in dataset.files] == [(3, 0, 5), (2,)]
    assert dataset.rows == 10
    assert dataset.block_rows == (3, 5, 2)
    assert [(block.file, block.row_group, block.first_row) for block in dataset.blocks] == [
        (0, 0, 0),
        (0, 2, 3),
        (1, 0, 8),
    ]
    assert list(dataset.columns.items()) == [("pair", "fixed_size_list<element: int32>[2]"), ("id", "int64")]
    assert dataset.files[0].size_bytes == os.stat(dataset.files[0].path).st_size


def test_no_columns_asked_means_all(write: WriteParquet) -> None:
    assert list(open_dataset([write("a.parquet", [1])], columns=None).columns) == ["id", "pair", "name"]


def test_globs_and_folders_are_sorted_and_given_order_is_kept(write: WriteParquet, tmp_path: Path) -> None:
    for name in (
        "d/10.parquet",
        "d/9.parquet",
        "d/sub/1.parquet",
        "d/.hidden.parquet",
        "d/_tmp/x.parquet",
        "z.parquet",
    ):
        write(name, [1])
    (tmp_path / "d" / "notes.txt").write_text("no data")

    def names(*paths: str) -> list[str]:
        dataset = open_dataset([str(tmp_path / path) for path in paths], columns=None)
        return [os.path.relpath(file.path, tmp_path) for file in dataset.files]

    assert names("d") == ["d/10.parquet", "d/9.parquet", "d/sub/1.parquet"]
    assert names("d/*.parquet") == ["d/10.parquet", "d/9.parquet"]
    assert names("d/**/[0-9]*.parquet") == ["d/10.parquet", "d/9.parquet", "d/sub/1.parquet"]
    assert names("z.parquet", "d/1*.parquet", "d/9.parquet") == ["z.parquet", "d/10.parquet", "d/9.parquet"]


def test_a_file_whose_name_looks_like_a_pattern_is_itself(write: WriteParquet) -> None:
    path = write("part[1].parquet", [2])
    assert open_dataset([path], columns=None).files[0].path == path


def test_files_without_rows_are_fine_beside_others(write: WriteParquet) -> None:
    dataset = open_dataset([write("a.parquet", []), write("b.parquet", [0]), write("c.parquet", [4])], columns=["id"])
    assert dataset.block_rows == (4,)


def test_the_fingerprint_knows_content_and_neither_place_nor_time_nor_columns(
    write: WriteParquet, tmp_path: Path
) -> None:
    path = write("a.parquet", [3, 4])
    one = open_dataset([path], columns=["id"])
    copy = str(shutil.copy(path, tmp_path / "elsewhere.parquet"))
    os.utime(copy, (1, 1))
    assert open_dataset([copy], columns=["pair", "id"]).fingerprint == one.fingerprint
    assert open_dataset([write("b.parquet", [4, 3])], columns=["id"]).fingerprint != one.fingerprint
    assert open_dataset([write("c.parquet", [3, 4], first=1)], columns=["id"]).fingerprint != one.fingerprint


def test_the_fingerprint_depends_on_the_order_of_files(write: WriteParquet) -> None:
    a, b = write("a.parquet", [3]), write("b.parquet", [4])
    assert open_dataset([a, b], columns=None).fingerprint != open_dataset([b, a], columns=None).fingerprint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.parquet: the file does not exist"):
        open_dataset([str(tmp_path / "nowhere.parquet")], columns=None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("*.parquet", "no file matches this pattern"),
        ("", r"the folder holds no \*\.parquet file"),
        ("fifo", "not a regular file"),
    ],
)
def test_places_without_data_are_refused(tmp_path: Path, given: str, message: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DataError, match=message):
        open_dataset([str(tmp_path / given)], columns=None)


def test_names_that_cannot_be_recorded_are_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.parquet")).touch()
    for given in (str(tmp_path / "*.parquet"), str(tmp_path), "a\0b"):
        with pytest.raises(DataError, match="expected a name in UTF-8") as caught:
            open_dataset([given], columns=None)
        str(caught.value).encode()


def test_paths_are_absolute_so_that_the_plan_holds_anywhere(
    write: WriteParquet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("d/a.parquet", [1])
    monkeypatch.chdir(tmp_path)
    for given in ("d", "d/a.parquet", "d/*"):
        assert open_dataset([given], columns=None).files[0].path == path


def test_no_paths_at_all_are_refused() -> None:
    with pytest.raises(DataError, match="no data files are named"):
        open_dataset([], columns=None)


def test_a_file_named_twice_is_refused(write: WriteParquet, tmp_path: Path) -> None:
    path = write("a.parquet", [1])
    (tmp_path / "link.parquet").symlink_to(path)
    for other in (path, str(tmp_path / "." / "a.parquet"), str(tmp_path / "link.parquet"), str(tmp_path)):
        with pytest.raises(DataError, match="named twice"):
            open_dataset([path, other], columns=None)


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"just text, and longer than any tail", b"PAR1\xff\xff\xff\x7fPAR1", b"PAR1" + b"\0" * 40]
)
def test_what_is_not_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: (not a parquet file|the parquet footer)"):
        open_dataset([str(tmp_path / "a.parquet")], columns=None)


def test_a_damaged_footer_never_ends_the_process_and_is_refused_in_one_line(
    write: WriteParquet, tmp_path: Path
) -> None:
    path = Path(write("a.parquet", [5]))
    whole = path.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    messages = []
    for at in range(len(whole) - 8 - length, len(whole) - 8, 2):
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        try:
            write_manifest([str(path)], tmp_path / "dataset.json")
        except DataError as error:
            messages.append(str(error))
    assert messages
    assert all("a.parquet" in message and "\n" not in message for message in messages)


def test_an_unknown_column_is_refused_with_the_nearest_name(write: WriteParquet) -> None:
    with pytest.raises(DataError, match=r'a\.parquet: there is no column "pairs"; .*Did you mean "pair"\?'):
        open_dataset([write("a.parquet", [1])], columns=["id", "pairs"])


def test_a_column_that_only_some_files_have_is_refused(write: WriteParquet, tmp_path: Path) -> None:
    a, b = write("a.parquet", [1]), save(tmp_path / "b.parquet", id=[1])
    assert open_dataset([a, b], columns=["id"]).rows == 2
    with pytest.raises(DataError, match=r'b\.parquet: there is no column "pair"'):
        open_dataset([a, b], columns=["id", "pair"])
    with pytest.raises(DataError, match=r'a\.parquet: column "pair" is not in .*b\.parquet'):
        open_dataset([b, a], columns=None)


def test_a_type_conflict_names_file_column_and_both_types(tmp_path: Path) -> None:
    a = save(tmp_path / "a.parquet", x=pa.array([1], pa.int64()))
    b = save(tmp_path / "b.parquet", x=pa.array([1], pa.int32()))
    with pytest.raises(DataError, match=r'b\.parquet: column "x" is int32 here, and int64 in .*a\.parquet'):
        open_dataset([a, b], columns=["x"])


def test_columns_named_twice_are_refused(write: WriteParquet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match='column "id" is there or asked for twice'):
        open_dataset([write("a.parquet", [1])], columns=["id", "id"])
    double = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    pq.write_table(double, tmp_path / "d.parquet")
    with pytest.raises(DataError, match='column "x" is there'):
        open_dataset([str(tmp_path / "d.parquet")], columns=["x"])


def test_no_rows_at_all_are_refused(write: WriteParquet) -> None:
    with pytest.raises(DataError, match=r"a\.parquet: there are no rows in this file nor in 1 more"):
        open_dataset([write("a.parquet", []), write("b.parquet", [0, 0])], columns=None)


def test_extension_types_are_refused_and_only_where_they_are_read(tmp_path: Path) -> None:
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int32(), [2]), pa.FixedSizeListArray.from_arrays(pa.array([1, 2], pa.int32()), 2)
    )
    path = save(tmp_path / "a.parquet", t=tensors, x=[1])
    assert open_dataset([path], columns=["x"]).rows == 1
    with pytest.raises(DataError, match='column "t" has the Arrow extension type'):
        open_dataset([path], columns=["t", "x"])


def test_extension_types_that_the_library_does_not_know_are_refused_at_any_depth(tmp_path: Path) -> None:
    inner = pa.field("deep", pa.int32(), metadata={"ARROW:extension:name": "someone.elses"})
    plain = pa.field("deep", pa.int32())
    for is_struct, value in [(True, {"deep": 1}), (False, [1])]:
        paths = []
        for name, field in [("plain", plain), ("odd", inner)]:
            schema = pa.schema([pa.field("s", pa.struct([field]) if is_struct else pa.list_(field))])
            pq.write_table(pa.Table.from_pylist([{"s": value}], schema=schema), tmp_path / f"{name}.parquet")
            paths.append(str(tmp_path / f"{name}.parquet"))
        assert open_dataset(paths[:1], columns=None).rows == 1
        with pytest.raises(DataError, match=r'odd\.parquet: column "s" has the Arrow extension type .*someone\.elses'):
            open_dataset(paths, columns=None)


@pytest.mark.parametrize(
    ("view", "value", "name", "instead"),
    [
        (pa.string_view(), "a", "string_view", "string or large_string"),
        (pa.binary_view(), b"a", "binary_view", "binary or large_binary"),
        (pa.list_view(pa.int32()), [1], "list_view", "list or large_list"),
        (pa.large_list_view(pa.string()), ["a"], "large_list_view", "list or large_list"),
    ],
)
def test_view_types_are_refused_at_any_depth_and_only_where_they_are_read(
    tmp_path: Path, view: pa.DataType, value: object, name: str, instead: str
) -> None:
    deep = pa.large_list(pa.struct([("n", pa.int8()), ("m", pa.map_(pa.string(), pa.list_(view, 1)))]))
    for kind, row in [
        (view, value),
        (pa.list_(view), [value]),
        (pa.list_(view, 2), [value, value]),
        (pa.struct([("n", pa.int8()), ("v", view)]), {"n": 1, "v": value}),
        (pa.map_(view, pa.int8()), [(value, 1)]),
        (pa.map_(pa.int8(), view), [(1, value)]),
        (deep, [{"n": 1, "m": [("k", [value])]}]),
    ]:
        path = save(tmp_path / "a.parquet", v=pa.array([row], kind), x=[1])
        found = pq.read_schema(path).field("v").type
        assert name in str(found)
        assert open_dataset([path], columns=["x"]).rows == 1
        for columns in (None, ["x", "v"]):
            with pytest.raises(DataError) as caught:
                open_dataset([path], columns=columns, fills={"v": None})
            assert (caught.value.where, caught.value.message, caught.value.hint) == (
                path,
                f'column "v" is {found}; Arrow\'s {name} is not read.',
                f"Write it as {instead}, or leave the column out with dataset.columns.",
            )


def test_a_view_type_in_the_second_file_is_named_there(tmp_path: Path) -> None:
    paths = [
        save(tmp_path / f"{kind}.parquet", s=pa.array(["a"], kind), x=[1]) for kind in (pa.string(), pa.string_view())
    ]
    assert open_dataset(paths, columns=["x"]).rows == 2
    with pytest.raises(DataError, match=r"string_view\.parquet: column \"s\" is string_view; Arrow's"):
        open_dataset(paths, columns=["s"])


@pytest.mark.parametrize("kind", [pa.large_string(), pa.large_binary(), pa.large_list(pa.int32())])
def test_large_types_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    value = [1] if pa.types.is_large_list(kind) else b"a"
    assert open_dataset([save(tmp_path / "a.parquet", v=pa.array([value], kind))], columns=None).rows == 1


def test_a_data_set_goes_through_the_plan_unchanged(write: WriteParquet) -> None:
    dataset = open_dataset([write("a.parquet", [3, 0]), write("b.parquet", [2])], columns=["pair", "id"])
    again = Dataset.from_json(from_json(canonical_json(dataset.to_json())))
    assert again == dataset
    assert list(again.columns) == ["pair", "id"]


def test_a_data_set_is_read_strictly(write: WriteParquet) -> None:
    good = json.dumps(open_dataset([write("a.parquet", [3, 2])], columns=["id"]).to_json())
    for old, new in [
        ('"rows": 5,', '"rows": 6,'),
        ("[3, 2]", "[3, 3]"),
        ("[3, 2]", "[3, true]"),
        ("[3, 2]", "[7, -2]"),
        ('"digests": null', '"digests": []'),
        ('"size_bytes"', '"size"'),
        ('"fingerprint": "', '"fingerprint": "0'),
        ('{"name": "id", "type": "int64"}', '{"name": "id"}'),
        ('{"name": "id", "type": "int64"}', '{"name": "id", "type": "int64"}, {"name": "id", "type": "int64"}'),
        ('"footer_sha256": "', '"footer_sha256": "x'),
    ]:
        assert old in good
        with pytest.raises(JsonError, match="dataset"):
            Dataset.from_json(json.loads(good.replace(old, new)))


def test_unchanged_files_pass_and_touched_ones_are_told(write: WriteParquet) -> None:
    a, b = write("a.parquet", [3]), write("b.parquet", [2])
    dataset = open_dataset([a, b], columns=None)
    assert check_unchanged(dataset) == ()
    os.utime(b, (1, 1))
    assert check_unchanged(dataset) == (b,)


def test_changed_files_are_refused_by_name(write: WriteParquet) -> None:
    a, b = write("a.parquet", [3]), write("b.parquet", [20])
    dataset = open_dataset([a, b], columns=None)
    write("b.parquet", [21])
    with pytest.raises(DataError, match=r"b\.parquet: the file has changed: it has \d+ bytes"):
        check_unchanged(dataset)
    write("b.parquet", [20], first=1)
    if os.stat(b).st_size == dataset.files[1].size_bytes:
        with pytest.raises(DataError, match=r"b\.parquet: the file has changed: same size"):
            check_unchanged(dataset)
    os.unlink(a)
    with pytest.raises(DataError, match=r"a\.parquet: the file does not exist"):
        check_unchanged(dataset)
